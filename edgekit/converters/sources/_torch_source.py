"""PyTorch modules and torch.export archives as source models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit._storage_errors import storage_errors
from edgekit.converters.sources._judge import check, import_onnx, name_dimensions, signature_of
from edgekit.converters.sources._model import SourceModel
from edgekit.converters.sources._onnx_file import parse_onnx
from edgekit.converters.sources._torch_export import export_module

if TYPE_CHECKING:
    from edgekit.converters._isolation import Guard

__all__ = ["read_archive", "read_module"]

_COMPARED = "torch's ONNX form gave PyTorch's own outputs on the example inputs"


def read_archive(path: Path, guard: Guard) -> SourceModel:
    """Check a ``.pt2`` file; torch runs in the guard's process.

    Raises:
        See `edgekit.converters.sources._torch_export.export_archive`.
    """
    import_onnx()
    data = guard.call("torch", str(path), "edgekit.converters.sources._torch_export:export_archive", str(path))
    with storage_errors(path), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _source(path, data, "torch-export", digest)


def read_module(module: object, example_inputs: object, dynamic_shapes: object, guard: Guard) -> SourceModel:
    """Check a module; torch runs in this process, where the module is. The digest is that of its ONNX form.

    Raises:
        See `edgekit.converters.sources._torch_export.export_module`.
    """
    import_onnx()
    data = export_module(guard.tell, module, example_inputs, dynamic_shapes)
    return _source(Path(type(module).__name__), data, "torch", hashlib.sha256(data).hexdigest())


def _source(path: Path, data: bytes, kind: str, digest: str) -> SourceModel:
    onnx = import_onnx()
    model = parse_onnx(path, data)
    opset = check(onnx, path, model)
    name_dimensions(model)
    return SourceModel(path, model, kind, digest, opset, signature_of(path, model), passes=("source::torch_onnx",), notes=(_COMPARED,))
