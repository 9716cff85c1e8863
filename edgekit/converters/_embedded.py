"""Samples inside an ONNX file: a reproducer is one file, and a build of it needs nothing else.

They are the archive that ``numpy.savez`` would write (``<sample>.<input>`` for each array), in base64 under one key of the model's metadata. Other tools
ignore it. A build takes them as its calibration where none is given.
"""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit._storage_errors import storage_errors
from edgekit.converters._options import BuildOptions
from edgekit.converters._scratch import scratch_folder
from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["KEY", "embed_samples", "extract_samples", "with_own_samples"]

KEY = "edgekit.samples"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of the zip format: equal samples are equal bytes


def embed_samples(model: onnx.ModelProto, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write inputs into a model's metadata, in the place of what may be there.

    Args:
        model: is changed.
        samples: inputs by name.
    """
    for index in reversed([index for index, entry in enumerate(model.metadata_props) if entry.key == KEY]):
        del model.metadata_props[index]
    arrays = {f"{index}.{name}": array for index, sample in enumerate(samples) for name, array in sample.items()}
    model.metadata_props.add(key=KEY, value=base64.b64encode(_archive(arrays)).decode("ascii"))


def extract_samples(model: onnx.ModelProto, folder: Path) -> bool:
    """Write a model's own samples as ``<sample>.npz`` files; False when it has none.

    Raises:
        ModelError: they cannot be read.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "")
    if not text:
        return False
    samples: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as archive:
            for key in archive.files:
                index, _, name = key.partition(".")
                samples.setdefault(index, {})[name] = archive[key]
    except (binascii.Error, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise ModelError(f"metadata {KEY}", f"cannot be read: {exc}", "samples as edgekit writes them", "remove the entry") from exc
    for index, arrays in samples.items():
        (folder / f"{index}.npz").write_bytes(_archive(arrays))
    return bool(samples)


def with_own_samples(path: Path, options: BuildOptions, folders: ExitStack) -> BuildOptions:
    """The options, with the samples that an ONNX file carries as its calibration unless another is given.

    Args:
        path: of the model, whatever it is.
        options: of the build.
        folders: keeps the samples' folder.

    Raises:
        ModelError: the samples cannot be read. StorageError: the file cannot be read.
    """
    if options.get("calibration") is not None or path.suffix != ".onnx" or not path.is_file():
        return options
    with storage_errors(path):
        data = path.read_bytes()
    if KEY.encode() not in data:
        return options
    from edgekit.converters.sources._onnx_file import parse_onnx

    folder = folders.enter_context(scratch_folder("samples"))
    return {**options, "calibration": folder} if extract_samples(parse_onnx(path, data), folder) else options


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What ``numpy.savez`` writes, without its limits on names and without the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()
