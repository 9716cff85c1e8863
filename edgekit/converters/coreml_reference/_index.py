"""Gather and scatter (coremltools ``iOS15`` to ``iOS17/scatter_gather.py``). Since iOS 17 (opset 7) a negative index is out of bounds."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from edgekit.converters.coreml_reference._registry import number, op
from edgekit.converters.coreml_reference._values import Array

_NO_NEGATIVES = 7  # opset CoreML7, iOS 17


def _checked(indices: Array, size: int, opset: int) -> Array:
    """Indices as non-negative int64; out of bounds is an error here, whatever ``validate_indices`` says, because nothing defines the result."""
    wide = indices.astype(np.int64)
    lowest = 0 if opset >= _NO_NEGATIVES else -size
    if wide.size and (wide.min() < lowest or wide.max() >= size):
        raise ValueError(f"index {int(wide.min())} to {int(wide.max())} where {lowest} to {size - 1} is defined")
    return np.where(wide < 0, wide + size, wide)


@op("gather", widen=False)
def _gather(
    x: Array, indices: Array, opset: int, axis: Array | int = 0, batch_dims: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    del validate_indices
    where, batch = number(axis) % x.ndim, number(batch_dims)
    picked = _checked(indices, x.shape[where], opset)
    if batch == 0:
        return np.asarray(np.take(x, picked, axis=where))
    if where < batch or x.shape[:batch] != picked.shape[:batch]:
        raise ValueError(f"batch_dims {batch} for shapes {x.shape} and {picked.shape}, axis {where}")
    out = np.empty((*x.shape[:where], *picked.shape[batch:], *x.shape[where + 1 :]), x.dtype)
    for position in np.ndindex(*x.shape[:batch]):
        out[position] = np.take(x[position], picked[position], axis=where - batch)
    return out


@op("gather_along_axis", widen=False)
def _gather_along_axis(x: Array, indices: Array, opset: int, axis: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    del validate_indices
    where = number(axis) % x.ndim
    return np.take_along_axis(x, _checked(indices, x.shape[where], opset), axis=where)


def _nd_index(indices: Array, shape: tuple[int, ...], opset: int) -> tuple[Array, ...]:
    return tuple(_checked(indices[..., axis], shape[axis], opset) for axis in range(indices.shape[-1]))


@op("gather_nd", widen=False)
def _gather_nd(x: Array, indices: Array, opset: int, batch_dims: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    del validate_indices
    batch = number(batch_dims)
    if batch == 0:
        return np.asarray(x[_nd_index(indices, x.shape, opset)])
    depth = indices.shape[-1]
    out = np.empty((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)
    for position in np.ndindex(*x.shape[:batch]):
        out[position] = x[position][_nd_index(indices[position], x.shape[batch:], opset)]
    return out


def _apply(data: Array, index: tuple[Array | slice, ...], updates: Array, mode: str) -> Array:
    out = data.copy()
    if mode == "update":
        out[index] = updates
        return out
    modes = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
    if mode not in modes or (mode == "div" and not np.issubdtype(data.dtype, np.floating)):
        raise ValueError(f"mode {mode!r} on {data.dtype}")
    modes[mode].at(out, cast("Any", index), updates)  # numpy's annotation knows no tuple of slices
    return out


@op("scatter", primary="data", agree=("data", "updates"))
def _scatter(
    data: Array,
    indices: Array,
    updates: Array,
    opset: int,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    del validate_indices
    where = number(axis) % data.ndim
    return _apply(data, (*(slice(None),) * where, _checked(indices, data.shape[where], opset)), updates, mode)


@op("scatter_along_axis", primary="data", agree=("data", "updates"))
def _scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    opset: int,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    del validate_indices
    where = number(axis) % data.ndim
    index: list[Array | slice] = list(np.indices(indices.shape, sparse=True))
    index[where] = _checked(indices, data.shape[where], opset)
    return _apply(data, tuple(index), updates, mode)


@op("scatter_nd", primary="data", agree=("data", "updates"))
def _scatter_nd(
    data: Array, indices: Array, updates: Array, opset: int, mode: str = "add", validate_indices: Array | bool = False
) -> Array:
    del validate_indices
    return _apply(data, _nd_index(indices, data.shape, opset), updates, mode)
