"""Tensor data on the wire: raw bytes and JSON arrays, in and out. Pure: no I/O, nothing allocated by a size that only the sender claims.

Layout (Open Inference Protocol v2, "binary tensor data extension"): row-major, little-endian, without padding. A BYTES element is its length as a
4-byte little-endian unsigned integer, followed by that many bytes. BOOL is one byte, 0 or 1.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from edgekit.errors import RequestError
from edgekit.protocol._types import Parameters, numpy_dtype

__all__ = [
    "Limits",
    "array_from_json",
    "array_from_raw",
    "array_from_values",
    "array_within",
    "check_count",
    "check_unique",
    "check_values",
    "element_count",
    "json_from_array",
    "raw_from_array",
    "refuse_unsupported",
    "shorten",
    "tensor_thing",
    "wire_dtype",
]

_MAX_ELEMENTS = 1 << 48  # beyond any memory; keeps NumPy's own size arithmetic from overflowing
_LENGTH = struct.Struct("<I")
_LITTLE = sys.byteorder == "little"
_COPY_BYTES = 64 << 10  # up to here a copy is cheaper than what avoids it
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_JSON_SCALARS: dict[str, Any] = {
    "BOOL": bool,
    # msgspec's bounds end at 2**63 - 1; NumPy refuses what lies beyond.
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],
    "INT64": int,
    "BYTES": str,
    **dict.fromkeys(_FLOATS, float),
    **{
        f"{sign}{bits}": Annotated[
            int,
            msgspec.Meta(ge=0 if sign == "UINT" else -(1 << bits - 1), le=(1 << bits if sign == "UINT" else 1 << bits - 1) - 1),
        ]
        for sign in ("UINT", "INT")
        for bits in (8, 16, 32)
    },
}
# Extensions that change the answer; where they are not at hand (our clients, a codec without regions), ignoring them would be wrong.
_UNSUPPORTED = ("shared_memory_region", "classification")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one message may hold. A message beyond a limit is refused with `RequestError` before anything is allocated for it.

    Attributes:
        body_bytes: whole body, after decompression.
        json_bytes: of it, what is JSON: numbers as text take many times their size in memory, and are better sent as bytes.
        values: elements of a tensor that become objects one by one: BYTES, and typed contents over gRPC.
        tensors: inputs of a request, its requested outputs, outputs of a response; each.
        dims: rank of a tensor.
    """

    body_bytes: int = 256 << 20
    json_bytes: int = 16 << 20
    values: int = 8 << 20
    tensors: int = 256
    dims: int = 16


def shorten(text: str, limit: int = 96) -> str:
    """``text``, cut to ``limit`` characters: names come from outside and end up in error lines."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def tensor_thing(side: str, name: str) -> str:
    """How errors name a tensor: ``input 'x'``."""
    return f"{side} {shorten(name)!r}"


def check_count(what: str, count: int, limits: Limits) -> None:
    """Raise `RequestError` when a list of tensors is longer than the limit."""
    if count > limits.tensors:
        raise RequestError(what, f"{count} of them", f"at most {limits.tensors}", "send fewer tensors in one request")


def check_values(thing: str, count: int, limits: Limits) -> None:
    """Raise `RequestError` for more elements than may become objects one by one."""
    if count > limits.values:
        raise RequestError(thing, f"{count} elements", f"at most {limits.values}", "send numbers in binary form, or in several requests")


def check_unique(side: str, names: Iterable[str]) -> None:
    """Raise `RequestError` for a tensor name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RequestError(tensor_thing(side, name), "given twice", "each name once")
        seen.add(name)


def refuse_unsupported(thing: str, parameters: Parameters) -> None:
    """Raise `RequestError` for tensor parameters that would change the answer and are not implemented."""
    for key in _UNSUPPORTED:
        if parameters.get(key):
            raise RequestError(
                thing, f"parameter {key!r}", "no such parameter", "this server has no such extension; send the tensor itself"
            )


def element_count(thing: str, shape: Sequence[int], limits: Limits) -> int:
    """Number of elements of ``shape``; raises `RequestError` for a negative dimension, too many of them, or an impossible product."""
    if len(shape) > limits.dims:
        raise RequestError(thing, f"{len(shape)} dimensions", f"at most {limits.dims}")
    product = 1
    for dim in shape:
        if dim < 0:
            raise RequestError(thing, f"dimension {dim} in shape {_shape_text(shape)}", "sizes of 0 or more")
        product *= dim or 1
        if product > _MAX_ELEMENTS:
            raise RequestError(thing, f"shape {_shape_text(shape)} has too many elements", f"at most {_MAX_ELEMENTS}")
    return product if all(shape) else 0


def wire_dtype(dtype: np.dtype) -> np.dtype:
    """The same in the byte order of the wire. Where that is the machine's it is the very object, with which NumPy makes and compares arrays in half the time."""
    return dtype if _LITTLE else dtype.newbyteorder("<")


def array_from_raw(thing: str, datatype: str, shape: Sequence[int], raw: memoryview | bytes, limits: Limits) -> np.ndarray:
    """A tensor from its raw bytes.

    The array shares memory with ``raw`` and is read-only, unless ``raw`` is not aligned to the element size (then it is one copy) or
    the datatype is BYTES (then it is an object array of ``bytes``).

    Raises:
        RequestError: unknown datatype, bad shape, a size that is not the shape's, or a BOOL byte that is neither 0 nor 1.
    """
    dtype = numpy_dtype(shorten(datatype), thing)
    count = element_count(thing, shape, limits)
    if datatype == "BYTES":
        check_values(thing, count, limits)
        return _object_array(_split_bytes(thing, shape, count, raw), shape)
    _check_size(thing, datatype, shape, len(raw), count * dtype.itemsize)
    if datatype == "BOOL":
        _check_bools(thing, raw)
    return array_within(raw, wire_dtype(dtype), shape)


def array_within(data: memoryview | bytes | bytearray, dtype: np.dtype, shape: Sequence[int], start: int = 0) -> np.ndarray:
    """The tensor that begins at byte ``start`` of ``data``, which is known to hold it. Read-only; shares memory with ``data`` unless it is not aligned there."""
    array: np.ndarray = np.ndarray(shape, dtype, data, start)
    flags = array.flags
    if not flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    elif flags.writeable:
        flags.writeable = False
    return array


def raw_from_array(array: np.ndarray) -> bytes | memoryview:
    """The raw bytes of a tensor; shares memory with ``array`` where it is large and contiguous."""
    if array.dtype.kind in "OSU":
        return b"".join(_LENGTH.pack(len(item)) + item for item in map(_as_bytes, array.ravel().tolist()))
    if not (_LITTLE and array.dtype.isnative):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if array.nbytes <= _COPY_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def array_from_json(thing: str, datatype: str, shape: Sequence[int], data: bytes | memoryview, limits: Limits) -> np.ndarray:
    """A tensor from its JSON ``data``: a flat list in row-major order, or lists nested as ``shape`` says.

    Raises:
        RequestError: values that the datatype cannot hold, a wrong count, ragged or wrongly nested lists.
    """
    numpy_dtype(shorten(datatype), thing)
    count = element_count(thing, shape, limits)
    depth = _nesting(data)
    if depth not in {1, len(shape) or 1}:
        raise RequestError(thing, f"data nested {depth} deep", f"a flat list, or lists nested as shape {_shape_text(shape)}")
    kind: Any = _JSON_SCALARS[datatype]
    for _ in range(depth):
        kind = list[kind]
    try:
        values = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError(thing, f"data does not fit {datatype}: {shorten(str(exc), 160)}", f"a list of {datatype} values") from exc
    if depth > 1:
        values = _flatten(thing, values, shape)
    if len(values) != count:
        raise RequestError(thing, f"{len(values)} values", f"{count} for shape {_shape_text(shape)}")
    return array_from_values(thing, datatype, shape, values)


def array_from_values(thing: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> np.ndarray:
    """A tensor from a flat sequence of Python values of the right kind and count; raises `RequestError` for those out of range."""
    dtype = numpy_dtype(datatype, thing)
    if datatype == "BYTES":
        return _object_array([_as_bytes(value) for value in values], shape)
    if datatype in _FLOATS:
        return _narrow_floats(thing, datatype, np.array(values, dtype=np.float64), dtype).reshape(shape)
    try:
        exact = np.array(values, dtype=dtype if datatype in {"BOOL", "INT64", "UINT64"} else np.int64)
    except OverflowError as exc:
        raise RequestError(thing, "a value out of range", f"values of {datatype}") from exc
    array = exact.astype(dtype, copy=False)
    if exact.dtype != dtype and not np.array_equal(array, exact):
        raise RequestError(thing, "a value out of range", f"values of {datatype}")
    return array.reshape(shape)


def json_from_array(thing: str, array: np.ndarray) -> list[Any]:
    """The flat JSON list of a tensor.

    Raises:
        RequestError: values that JSON cannot carry (NaN, infinities, bytes that are not UTF-8).
    """
    flat = array.ravel()
    if array.dtype.kind in "OSU":
        return [_as_text(thing, item) for item in flat.tolist()]
    if array.dtype.kind == "V":  # bfloat16
        flat = flat.astype(np.float32)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise RequestError(thing, "holds NaN or infinity, which JSON cannot carry", "", "ask for this output as binary_data")
    values: list[Any] = flat.tolist()
    return values


def _narrow_floats(thing: str, datatype: str, exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        array = exact.astype(dtype)
    if not np.array_equal(np.isfinite(array), np.isfinite(exact)):
        raise RequestError(thing, "a value out of range", f"values of {datatype}")
    return array


def _check_size(thing: str, datatype: str, shape: Sequence[int], found: int, expected: int) -> None:
    if found != expected:
        raise RequestError(thing, f"{found} bytes of data", f"{expected} for {datatype}{_shape_text(shape)}")


def _check_bools(thing: str, raw: memoryview | bytes) -> None:
    octets = np.frombuffer(raw, dtype=np.uint8)
    if octets.size and int(octets.max()) > 1:
        index = int(np.argmax(octets > 1))
        raise RequestError(thing, f"byte {int(octets[index])} at element {index}", "0 or 1 for BOOL")


def _split_bytes(thing: str, shape: Sequence[int], count: int, raw: memoryview | bytes) -> list[bytes]:
    """Cut a BYTES tensor's raw form into its elements."""
    if count * _LENGTH.size > len(raw):
        raise RequestError(thing, f"{len(raw)} bytes of data", f"at least {count * _LENGTH.size} for BYTES{_shape_text(shape)}")
    elements: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(raw):
            raise RequestError(thing, f"data ends before the length of element {index}", f"{count} elements, each with a 4-byte length")
        offset = start + _LENGTH.unpack_from(raw, offset)[0]
        if offset > len(raw):
            raise RequestError(thing, f"element {index} claims {offset - start} bytes, {len(raw) - start} are left", "lengths that fit")
        elements.append(bytes(raw[start:offset]))
    if offset != len(raw):
        raise RequestError(thing, f"{len(raw) - offset} bytes after the last element", f"{count} elements for BYTES{_shape_text(shape)}")
    return elements


def _nesting(data: bytes | memoryview) -> int:
    """How many lists open before the first value."""
    head = bytes(data[:256]).translate(None, b" \t\r\n")
    return len(head) - len(head.lstrip(b"["))


def _flatten(thing: str, values: list[Any], shape: Sequence[int]) -> list[Any]:
    """Values of lists nested exactly as ``shape`` says, row-major."""
    level: list[Any] = [values]
    for axis, dim in enumerate(shape):
        for part in level:
            if len(part) != dim:
                raise RequestError(thing, f"a list of {len(part)} along axis {axis}", f"{dim}, as shape {_shape_text(shape)} says")
        level = [item for part in level for item in part]
    return level


def _object_array(elements: Sequence[bytes], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _as_bytes(item: bytes | str) -> bytes:
    return item.encode() if isinstance(item, str) else bytes(item)


def _as_text(thing: str, item: bytes | str) -> str:
    try:
        return item if isinstance(item, str) else bytes(item).decode()
    except UnicodeDecodeError as exc:
        raise RequestError(
            thing, "holds bytes that are not UTF-8, which JSON cannot carry", "", "ask for this output as binary_data"
        ) from exc


def _shape_text(shape: Sequence[int]) -> str:
    return shorten("[" + ",".join(str(dim) for dim in shape) + "]")
