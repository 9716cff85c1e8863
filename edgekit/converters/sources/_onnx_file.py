"""Read an ONNX file and its external data; a model beyond protobuf's 2 GB keeps its large tensors on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit._storage_errors import storage_errors
from edgekit.converters.sources._judge import check, first_line, graphs, import_onnx, name_dimensions, signature_of
from edgekit.converters.sources._model import SourceModel
from edgekit.converters.sources._runnable import make_runnable
from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGE_BYTES", "SMALL_TENSOR_BYTES", "bytes_of", "parse_onnx", "read_bytes", "read_onnx", "tensors"]

LARGE_BYTES = 2**31 - 2**26
"""A model whose file and external data together reach this stays apart: protobuf ends at 2^31 - 1 bytes, and a graph grows a little on its way."""
SMALL_TENSOR_BYTES = 2**16
"""Tensors up to this size (shapes, axes, scales, biases) are loaded in any case: shape inference and folding read them."""

_IR_VERSION_TAG = 0x08  # protobuf key of ModelProto.ir_version (field 1, varint), the first byte that every exporter writes
_BLOCK = 1 << 20


def read_onnx(path: Path, data: bytes) -> SourceModel:
    """Check an ONNX file, given its bytes.

    Raises:
        ModelError: not ONNX, truncated, invalid, without outputs, with sequence or optional inputs, or with external data that is not there,
            too short, or outside the file's folder.
        UnsupportedOperatorsError: operators that neither ONNX nor ONNX Runtime defines.
    """
    onnx = import_onnx()
    model = parse_onnx(path, data)
    places = _external_tensors(path, model)
    files = {place.location: place.file for place in places}
    digest = hashlib.sha256(data)
    for name in sorted(files):
        with storage_errors(files[name]), open(files[name], "rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
    # The path form of the checker reads external data itself and has no 2 GB limit.
    opset = check(onnx, path, model, path if places else None)
    large = len(data) + sum(place.bytes for place in places) >= LARGE_BYTES
    kept = {tensor.name for tensor in model.graph.initializer} if large else set()
    for place in places:
        if place.tensor.name not in kept or place.bytes <= SMALL_TENSOR_BYTES:
            _load(path, place.tensor)
    weights = path.parent.resolve() if large else None
    passes, notes = make_runnable(path, model, opset, weights)
    if places:
        # ONNX Runtime itself refuses a file whose shapes and axes lie outside, as some exporters write them.
        passes = ("source::external_data", *passes)
    name_dimensions(model)
    signature = signature_of(path, model)
    return SourceModel(path, model, "onnx", digest.hexdigest(), opset, signature, weights=weights, passes=passes, notes=notes)


def read_bytes(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: it is missing or empty. StorageError: it cannot be read.
    """
    if not path.exists():
        raise ModelError(str(path), "no such file", "a model file", "check the path")
    with storage_errors(path):
        data = path.read_bytes()
    if not data:
        raise ModelError(str(path), "the file is empty", "an ONNX model", "export or download it again")
    return data


def parse_onnx(path: Path, data: bytes) -> onnx.ModelProto:
    """The protobuf of an ONNX file, with a graph that has outputs.

    Raises:
        ModelError: another format, or truncated.
    """
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as exc:
        if data[0] == _IR_VERSION_TAG:
            raise ModelError(
                str(path), f"truncated or damaged after {len(data)} bytes", "a whole ONNX model", "export or download it again"
            ) from exc
        raise ModelError(str(path), f"not an ONNX file (it begins with {data[:8]!r})", "an ONNX model", "export the model to ONNX") from exc
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise ModelError(str(path), "no ONNX graph in it (truncated, or another format)", "an ONNX model", "export or download it again")
    if not model.graph.output:
        raise ModelError(str(path), "the graph has no outputs", "at least one output", "the file may be truncated; export it again")
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, inner graphs and functions included."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in graphs(model.graph):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


# --- external data -------------------------------------------------------------------------------------------------------------------------


class _External:
    """Where one tensor's data lies; refused unless it is whole and inside the model's folder."""

    def __init__(self, path: Path, tensor: onnx.TensorProto) -> None:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        self.tensor = tensor
        self.location = fields.get("location", "")
        parts = Path(self.location).parts
        self.file = path.parent / self.location
        if not self.location or Path(self.location).is_absolute() or ".." in parts or "\\" in self.location or self._leaves(path):
            raise ModelError(
                str(path), f"tensor {tensor.name!r} has its data at {self.location!r}", "a file beside the model", "export the model again"
            )
        if not self.file.is_file():
            raise ModelError(
                str(path),
                f"external data file {self.location!r} is missing",
                f"it at {self.file}",
                "copy it beside the model, or export with the weights inside",
            )
        offset, self.bytes = self._extent(path, fields)
        size = self.file.stat().st_size
        if size < offset + self.bytes:
            raise ModelError(
                str(path),
                f"external data file {self.location!r} has {size} bytes",
                f"at least {offset + self.bytes} for tensor {tensor.name!r}",
                "copy it again",
            )

    def _leaves(self, path: Path) -> bool:
        """Whether a link on the way leads out of the model's folder; a missing file leads nowhere."""
        return self.file.exists() and not self.file.resolve().is_relative_to(path.parent.resolve())

    def _extent(self, path: Path, fields: dict[str, str]) -> tuple[int, int]:
        """Offset and length in bytes; the length is what dtype and shape need."""
        try:
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", -1))
        except ValueError as exc:
            raise ModelError(
                str(path), f"tensor {self.tensor.name!r} has a damaged external data entry ({exc})", "whole numbers", "export it again"
            ) from exc
        needed = bytes_of(self.tensor)
        length = needed if length < 0 else length
        if offset < 0 or length != needed:
            raise ModelError(
                str(path),
                f"tensor {self.tensor.name!r} has {length} bytes of external data at offset {offset}",
                f"{needed} bytes for its dtype and shape",
                "export the model again",
            )
        return offset, length


def bytes_of(tensor: onnx.TensorProto) -> int:
    """How much data a tensor's dtype and shape need."""
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        return 0  # ONNX allows no external strings; the checker says so
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits: int = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(dtype.name, dtype.itemsize * 8)
    return int(math.prod(tensor.dims) * bits + 7) // 8


def _external_tensors(path: Path, model: onnx.ModelProto) -> list[_External]:
    import onnx

    return [_External(path, tensor) for tensor in tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _load(path: Path, tensor: onnx.TensorProto) -> None:
    """Bring a tensor's external data into it."""
    import onnx

    try:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as exc:
        raise ModelError(str(path), f"external data cannot be read: {first_line(exc)}", "", "export the model again") from exc
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
