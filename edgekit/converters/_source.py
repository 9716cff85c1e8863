"""Read a source model of any kind, judge it once, and give every later step plain facts: signature, digest, opset.

`load_source` refuses what cannot be built, each case in one line; `graph_from_onnx` turns a normalised ONNX model into the plain graph that
the front ends of our own read.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.converters._isolation import Guard
from edgekit.converters._plain_graph import graph_from_onnx
from edgekit.converters.sources._judge import MIN_OPSET, dtype_name, import_onnx
from edgekit.converters.sources._kinds import kind_of
from edgekit.converters.sources._model import NativeModel, SourceModel
from edgekit.converters.sources._onnx_file import read_bytes, read_onnx
from edgekit.converters.sources._ort_file import read_ort
from edgekit.converters.sources._tf_source import read_tensorflow
from edgekit.converters.sources._torch_export import is_module
from edgekit.converters.sources._torch_source import read_archive, read_module
from edgekit.errors import UsageError

__all__ = ["MIN_OPSET", "NativeModel", "SourceModel", "dtype_name", "graph_from_onnx", "load_source", "path_of"]


def load_source(
    model: object,
    *,
    signature: str = "",
    example_inputs: object = None,
    dynamic_shapes: object = None,
    guard: Guard | None = None,
) -> SourceModel:
    """Read and check a model.

    Args:
        model: path of an ONNX file, an ORT format file, a Keras file, a SavedModel directory or a torch.export archive; or a ``torch.nn.Module``.
        signature: of a SavedModel with several.
        example_inputs: what a module is called with (`edgekit.converters.sources._torch_export.export_module`).
        dynamic_shapes: of a module, as `torch.onnx.export` takes them.
        guard: where TensorFlow and PyTorch run; in this process without.

    Raises:
        ModelError: missing, of a kind that is not taken, truncated, invalid, without outputs, with sequence or optional inputs, or with external
            data that is not there.
        UnsupportedOperatorsError: operators that neither ONNX nor ONNX Runtime defines, or that have no ONNX form.
        UsageError: an option that does not fit the kind; several signatures and none chosen.
        BuildError: the export to ONNX failed or gives other numbers.
        EnvironmentMissingError: a package that reads this kind is not installed.
        StorageError: the file cannot be read.
    """
    import_onnx()
    guard = guard or Guard(isolate=False)
    if not isinstance(model, str | os.PathLike):
        if not is_module(model):
            raise UsageError("model", f"an object of type {type(model).__name__}", "a path or a torch.nn.Module", "")
        _refuse_options(f"module {type(model).__name__}", signature=signature)
        return read_module(model, example_inputs, dynamic_shapes, guard)
    path = path_of(model)
    _refuse_options(str(path), example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    kind = kind_of(path)
    if kind == "saved-model":
        return read_tensorflow(path, kind, signature, guard)
    _refuse_options(str(path), signature=signature)
    match kind:
        case "keras":
            return read_tensorflow(path, kind, "", guard)
        case "torch-export":
            return read_archive(path, guard)
        case "ort":
            return read_ort(path, read_bytes(path))
        case _:
            return read_onnx(path, read_bytes(path))


def path_of(model: object) -> Path:
    """Where a model lies; for an object, its class's name."""
    return Path(model) if isinstance(model, str | os.PathLike) else Path(type(model).__name__)


def _refuse_options(thing: str, **given: object) -> None:
    """An option that means nothing for this kind of model is a mistake.

    Raises:
        UsageError: names the option and what it is for.
    """
    uses = {"signature": "a SavedModel", "example_inputs": "a torch.nn.Module", "dynamic_shapes": "a torch.nn.Module"}
    for name, value in given.items():
        if value is not None and value != "":
            flag = "--signature" if name == "signature" else name
            raise UsageError(thing, f"takes no {flag}", f"{uses[name]} with it", "leave it out")
