"""Which dtype carries a tensor inside the file: TensorFlow Lite's kernels know few, ONNX many.

A *logical* dtype is the source's; its *carrier* is what lies in memory. float16, bfloat16 and float64 are computed in float32, narrow integers
in a wider one; operators whose results could leave the logical range bring them back with `narrow`. 64-bit unsigned integers lie in int64 with
the same bits, so addition and multiplication need nothing, and order, division and conversion to float do.

int8 and uint8 are carried as they are, since the kernels that move data take them; arithmetic widens them with `widen`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.bundle import TensorSpec
from edgekit.converters._graph import Graph, TensorType

__all__ = ["CARRIERS", "carried", "carrier", "convert", "from_ordered", "in_carrier", "narrow", "ordered", "through_int32", "widen"]

CARRIERS = {
    "float16": "float32",
    "bfloat16": "float32",
    "float64": "float32",
    "int16": "int32",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}
_LOWEST64 = np.int64(-(2**63))


def carrier(dtype: str) -> str:
    """What lies in memory for a logical dtype."""
    return CARRIERS.get(dtype, dtype)


def carried(graph: Graph) -> Graph:
    """``graph`` with every tensor and constant in its carrier; a graph that needs none comes back as it is."""
    if not any(kind.dtype in CARRIERS for kind in graph.types.values()):
        return graph

    def spec(old: TensorSpec) -> TensorSpec:
        return TensorSpec(old.name, carrier(old.dtype), old.shape)

    return replace(
        graph,
        inputs=tuple(map(spec, graph.inputs)),
        outputs=tuple(map(spec, graph.outputs)),
        constants={name: in_carrier(array) for name, array in graph.constants.items()},
        types={name: TensorType(carrier(kind.dtype), kind.shape) for name, kind in graph.types.items()},
    )


def in_carrier(array: np.ndarray) -> np.ndarray:
    """A constant in its carrier; float64 beyond float32's range becomes infinite, uint64 keeps its bits."""
    with np.errstate(over="ignore"):
        return array.astype(carrier(array.dtype.name), copy=False)


def widen(tf: Any, x: Any) -> Any:
    """int8, uint8 and bool as int32, in which arithmetic kernels exist; others as they are."""
    return tf.cast(x, "int32") if x.dtype.name in ("int8", "uint8", "bool") else x


def narrow(tf: Any, x: Any, logical: str) -> Any:
    """The result of integer arithmetic in its carrier, wrapped around as arithmetic in the logical dtype would have."""
    if logical in ("int8", "uint8"):
        return tf.cast(x, logical)
    if logical in ("int16", "uint16", "uint32"):
        return tf.cast(tf.cast(x, logical), carrier(logical))
    return x


def through_int32(tf: Any, x: Any, kinds: tuple[str, ...], function: Callable[[Any], Any]) -> Any:
    """``function`` of a tensor, on int32 where its kernel does not take the tensor's dtype (one of ``kinds``); it moves values only."""
    return tf.cast(function(tf.cast(x, "int32")), x.dtype) if x.dtype.name in kinds else function(x)


def ordered(tf: Any, x: Any, logical: str) -> Any:
    """A form of integers that compares as the logical values do; undone by `from_ordered`."""
    return x + _LOWEST64 if logical == "uint64" else widen(tf, x)


def from_ordered(tf: Any, x: Any, logical: str) -> Any:
    """Undo `ordered` for a result that is one of its operands."""
    return x + _LOWEST64 if logical == "uint64" else narrow(tf, x, logical) if logical in ("int8", "uint8") else x


def convert(tf: Any, x: Any, source: str, target: str) -> Any:
    """Cast carrier to carrier with the meaning of a cast between the logical dtypes.

    Floats are cut towards zero; what an integer dtype cannot hold wraps around (ONNX leaves it open for floats).
    """
    if target == "bool":
        return tf.not_equal(widen(tf, x), tf.zeros((), widen(tf, x).dtype)) if source != "bool" else x
    if carrier(target) == "float32":
        return _to_float(tf, x, source)
    if carrier(source) == "float32":
        return _from_float(tf, x, target)
    if target in ("int8", "uint8"):
        return tf.cast(x, target)
    if target in ("int16", "uint16", "uint32") and source not in _HELD_BY[target]:
        return narrow(tf, x, target)
    return tf.cast(x, carrier(target))


_HELD_BY = {
    "int16": ("int16", "int8", "uint8", "bool"),
    "uint16": ("uint16", "uint8", "bool"),
    "uint32": ("uint32", "uint16", "uint8", "bool"),
}
"""Logical dtypes whose values all fit."""


def _to_float(tf: Any, x: Any, source: str) -> Any:
    y = tf.cast(x, "float32")
    return tf.where(tf.less(x, np.int64(0)), y + np.float32(2.0**64), y) if source == "uint64" else y


def _from_float(tf: Any, x: Any, target: str) -> Any:
    if target == "uint64":  # int64 ends at 2^63: what lies above is converted less that and gets its top bit back
        high = tf.greater_equal(x, np.float32(2.0**63))
        low = tf.cast(tf.where(high, x - np.float32(2.0**63), x), "int64")
        return tf.where(high, low + _LOWEST64, low)
    wide = tf.cast(x, "int64" if target in ("int64", "uint32") else "int32")
    return narrow(tf, wide, target)
