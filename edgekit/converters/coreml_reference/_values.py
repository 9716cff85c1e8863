"""MIL types and values of the specification as numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.converters.coreml_reference._blob import BlobFile
from edgekit.errors import BundleError, EngineError

__all__ = ["Array", "DeclaredType", "Value", "declared_type", "describe", "load_value", "unpack_bits"]

Array = npt.NDArray[Any]
Value = Array | str

# MIL data type's name: numpy type that holds one element, bits that one element takes in a file.
_TYPES: dict[str, tuple[Any, int]] = {
    "BOOL": (np.bool_, 8),
    "FLOAT16": (np.float16, 16),
    "FLOAT32": (np.float32, 32),
    "FLOAT64": (np.float64, 64),
    "INT8": (np.int8, 8),
    "INT16": (np.int16, 16),
    "INT32": (np.int32, 32),
    "INT64": (np.int64, 64),
    "UINT8": (np.uint8, 8),
    "UINT16": (np.uint16, 16),
    "UINT32": (np.uint32, 32),
    "UINT64": (np.uint64, 64),
    "INT4": (np.int8, 4),
    "UINT6": (np.uint8, 6),
    "UINT4": (np.uint8, 4),
    "UINT3": (np.uint8, 3),
    "UINT2": (np.uint8, 2),
    "UINT1": (np.uint8, 1),
}


@dataclass(frozen=True)
class DeclaredType:
    """A tensor type as the program declares it.

    Attributes:
        name: MIL data type (``FLOAT16``); ``STRING`` for text.
        dtype: numpy type of an element; None for text.
        shape: one entry a dimension, None where it is unknown; None as a whole for an unknown rank.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...] | None

    def admits(self, value: Value) -> bool:
        """Whether ``value`` has this type."""
        if isinstance(value, str):
            return self.dtype is None
        if value.dtype != self.dtype:
            return False
        return self.shape is None or (
            len(self.shape) == value.ndim and all(want in (None, have) for want, have in zip(self.shape, value.shape, strict=True))
        )

    def __str__(self) -> str:
        dims = "…" if self.shape is None else ",".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{'string' if self.dtype is None else self.dtype.name}[{dims}]"


def describe(value: Value) -> str:
    """Type of a computed value, written as `DeclaredType` writes it."""
    return "string[]" if isinstance(value, str) else f"{value.dtype.name}[{','.join(str(dim) for dim in value.shape)}]"


def declared_type(thing: str, value_type: Any, type_names: Callable[[int], str]) -> DeclaredType:
    """Type of a ``ValueType`` message; only tensors are known here.

    Args:
        thing: for the error message.
        value_type: the message.
        type_names: name of a number of the ``DataType`` enumeration.
    """
    if value_type.WhichOneof("type") != "tensorType":
        raise EngineError(thing, f"declared as {value_type.WhichOneof('type')}", "a tensor", "the reference interpreter knows tensors only")
    tensor = value_type.tensorType
    try:
        name = type_names(tensor.dataType)
    except ValueError:
        name = str(tensor.dataType)
    if name != "STRING" and name not in _TYPES:
        raise EngineError(thing, f"data type {name}", f"one of {', '.join(_TYPES)}", "the reference interpreter does not know this type")
    dtype = None if name == "STRING" else np.dtype(_TYPES[name][0])
    if tensor.rank < 0:
        return DeclaredType(name, dtype, None)
    if len(tensor.dimensions) != tensor.rank:
        raise EngineError(
            thing, f"{len(tensor.dimensions)} dimensions for rank {tensor.rank}", "as many as the rank", "the package is damaged"
        )
    shape = tuple(int(dim.constant.size) if dim.WhichOneof("dimension") == "constant" else None for dim in tensor.dimensions)
    return DeclaredType(name, dtype, shape)


def unpack_bits(data: Array, bits: int, count: int, *, signed: bool) -> Array:
    """The first ``count`` elements of ``bits`` bits (at most 8), packed from each byte's least significant bit on."""
    flat = np.unpackbits(data.view(np.uint8), bitorder="little")
    if flat.size < count * bits:
        raise ValueError(f"{data.size} bytes hold no {count} elements of {bits} bits")
    weights = (1 << np.arange(bits)).astype(np.uint16)
    values = flat[: count * bits].reshape(count, bits) @ weights
    if not signed:
        return values.astype(np.uint8)
    return np.where(values >= 1 << (bits - 1), values.astype(np.int16) - (1 << bits), values).astype(np.int8)


def load_value(thing: str, value: Any, type_names: Callable[[int], str], weights: Callable[[str], BlobFile]) -> Value:
    """A ``Value`` message as an array (or text), of the shape that it declares.

    Args:
        thing: for error messages.
        value: the message.
        type_names: name of a number of the ``DataType`` enumeration.
        weights: opens the weights file that a value names.

    Raises:
        BundleError: the weights file does not hold what the value declares.
        EngineError: the message contradicts itself or is of a kind that is not known here.
    """
    declared = declared_type(thing, value.type, type_names)
    if declared.shape is None or None in declared.shape:
        raise EngineError(thing, f"a value of type {declared}", "a static shape", "the package is damaged")
    shape = tuple(dim for dim in declared.shape if dim is not None)
    if value.WhichOneof("value") == "blobFileValue":
        blob = weights(value.blobFileValue.fileName).read(value.blobFileValue.offset)
        if blob.type_name != declared.name:
            raise BundleError(thing, f"{blob.type_name} in the weights file", f"{declared.name} as declared", "build the package again")
        return _from_bytes(thing, declared, shape, blob.data)
    if value.immediateValue.WhichOneof("value") != "tensor":
        raise EngineError(
            thing, f"a value of kind {value.immediateValue.WhichOneof('value')}", "a tensor", "the reference interpreter knows tensors only"
        )
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind is None:
        raise EngineError(thing, "an empty value", f"{declared}", "the package is damaged")
    raw = getattr(tensor, kind).values
    if kind == "bytes":
        return _from_bytes(thing, declared, shape, memoryview(raw))
    if (kind == "strings") != (declared.dtype is None) or len(raw) != math.prod(shape):
        raise EngineError(thing, f"{len(raw)} {kind}", f"a value of type {declared}", "the package is damaged")
    if declared.dtype is None:
        if shape:
            raise EngineError(thing, f"text of type {declared}", "a scalar", "the reference interpreter knows no tensors of text")
        return str(raw[0])
    with np.errstate(all="ignore"):
        return np.array(raw, dtype=_IMMEDIATE[kind]).astype(declared.dtype).reshape(shape)


_IMMEDIATE = {"floats": np.float32, "ints": np.int32, "bools": np.bool_, "longInts": np.int64, "doubles": np.float64}


def _from_bytes(thing: str, declared: DeclaredType, shape: tuple[int, ...], data: memoryview) -> Array:
    """Packed little-endian elements; a read-only view where elements are whole bytes."""
    if declared.dtype is None:
        raise EngineError(thing, "text stored as bytes", "strings", "the package is damaged")
    _, bits = _TYPES[declared.name]
    count = math.prod(shape)
    if len(data) != (count * bits + 7) // 8:
        raise BundleError(
            thing, f"{len(data)} bytes", f"{(count * bits + 7) // 8} for {declared}", "the package is damaged; build it again"
        )
    if bits < 8:
        return unpack_bits(np.frombuffer(data, np.uint8), bits, count, signed=declared.name.startswith("INT")).reshape(shape)
    return np.frombuffer(data, declared.dtype.newbyteorder("<")).astype(declared.dtype, copy=False).reshape(shape)
