"""Pooling (coremltools ``iOS15/pool.py``), one spatial axis after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.converters.coreml_reference._registry import flag, numbers, op
from edgekit.converters.coreml_reference._values import Array
from edgekit.converters.coreml_reference._window import Axis, pad_spatial, window_axes


def _axes(x: Array, kernel_sizes: Array, strides: Array | None, pad_type: str, pad: Array | None, ceil_mode: Array | bool) -> list[Axis]:
    rank = x.ndim - 2
    return window_axes(
        x.shape[2:],
        numbers(kernel_sizes),
        numbers(strides, [1] * rank),
        [1] * rank,
        pad_type,
        numbers(pad, [0] * 2 * rank),
        ceil_mode=flag(ceil_mode),
    )


def _reduce(padded: Array, axes: Sequence[Axis], combine: np.ufunc) -> Array:
    """``combine`` over each window; max and sum may go axis by axis."""
    for index, axis in enumerate(axes, start=2):
        result: Array | None = None
        for tap in range(axis.kernel):
            part = padded[(slice(None),) * index + (slice(tap, tap + (axis.out - 1) * axis.stride + 1, axis.stride),)]
            result = part.copy() if result is None else combine(result, part, out=result)
        padded = padded if result is None else result
    return padded


@op("max_pool")
def _max_pool(
    x: Array, kernel_sizes: Array, pad_type: str, strides: Array | None = None, pad: Array | None = None, ceil_mode: Array | bool = False
) -> Array:
    axes = _axes(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return _reduce(pad_spatial(x, axes, -np.inf), axes, np.maximum)


@op("avg_pool")
def _avg_pool(
    x: Array,
    kernel_sizes: Array,
    pad_type: str,
    strides: Array | None = None,
    pad: Array | None = None,
    ceil_mode: Array | bool = False,
    exclude_padding_from_average: Array | bool = False,
) -> Array:
    axes = _axes(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    total = _reduce(pad_spatial(x, axes, 0), axes, np.add)
    for index, axis in enumerate(axes):
        counts = _window_counts(axis, include_padding=not flag(exclude_padding_from_average))
        total = total / counts.reshape(-1, *(1,) * (len(axes) - 1 - index))
    return total


def _window_counts(axis: Axis, *, include_padding: bool) -> Array:
    """Elements that each window's mean counts. What ``ceil_mode`` adds behind the padding never counts, as in PyTorch."""
    starts = np.arange(axis.out) * axis.stride - axis.before
    low, high = (-axis.before, axis.size + axis.after) if include_padding else (0, axis.size)
    return (np.minimum(starts + axis.kernel, high) - np.maximum(starts, low)).astype(np.float32)


@op("l2_pool")
def _l2_pool(
    x: Array, kernel_sizes: Array, pad_type: str, strides: Array | None = None, pad: Array | None = None, ceil_mode: Array | bool = False
) -> Array:
    axes = _axes(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return np.asarray(np.sqrt(_reduce(pad_spatial(np.square(x), axes, 0), axes, np.add)))
