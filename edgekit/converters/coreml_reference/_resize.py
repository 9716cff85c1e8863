"""Image resizing (coremltools ``iOS15/image_resizing.py`` and ``iOS17/image_resizing.py``).

Linear sampling follows the grid formulas of the ``resize_bilinear`` docstring. Nearest sampling has no formula there; what is used, and why:

- ``upsample_nearest_neighbor``: input ``floor(i / scale)`` (each pixel repeated, for integer scales). A fractional scale for which dividing by the scale and by
  the ratio of the lengths picks different pixels is refused.
- ``resize_nearest_neighbor`` and ``resize`` with ``NEAREST_NEIGHBOR``: half-pixel centres, ``floor((i + 0.5) * in / out)``: coremltools' TensorFlow front end
  maps ``ResizeNearestNeighbor(half_pixel_centers=True)`` to both, and their tests on macOS agree. Other sampling modes of the latter are refused.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.converters.coreml_reference._registry import flag, number, numbers, op
from edgekit.converters.coreml_reference._values import Array


def _grid(size: int, out: int, mode: str) -> Array:
    """Input coordinate of each of ``out`` samples, in float64, clamped into the input."""
    index = np.arange(out, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = index * (size - 1) / max(1, out - 1)
        if out == 1 and mode == "ALIGN_CORNERS":
            points += (size - 1) / 2
    elif mode == "DEFAULT":
        points = index * size / out  # (size - size / out) / (out - 1)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        points = 0.5 * delta + index * delta
    elif mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * size / out - 0.5
    else:
        raise ValueError(f"sampling_mode {mode!r}")
    return np.asarray(np.clip(points, 0, size - 1))


def _linear(x: Array, axis: int, out: int, mode: str) -> Array:
    """Linear interpolation of one axis to ``out`` samples."""
    size = x.shape[axis]
    points = _grid(size, out, mode)
    low = np.floor(points).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    shape = [1] * x.ndim
    shape[axis] = out
    share = (points - low).astype(np.float32).reshape(shape)
    return np.asarray(np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share)


def _bilinear(x: Array, height: int, width: int, mode: str) -> Array:
    return _linear(_linear(x, x.ndim - 2, height, mode), x.ndim - 1, width, mode)


def _half_pixel(size: int, out: int) -> Array:
    return np.minimum((2 * np.arange(out) + 1) * size // (2 * out), size - 1)


@op("upsample_bilinear")
def _upsample_bilinear(
    x: Array,
    scale_factor_height: Array | int = 1,
    scale_factor_width: Array | int = 1,
    align_corners: Array | bool = True,
    half_pixel_centers: Array | bool | None = None,
) -> Array:
    aligned = flag(align_corners)
    centred = not aligned if half_pixel_centers is None else flag(half_pixel_centers)  # iOS16/image_resizing.py
    if aligned and centred:
        raise ValueError("align_corners with half_pixel_centers: what it samples is not documented")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _bilinear(x, math.floor(x.shape[-2] * float(scale_factor_height)), math.floor(x.shape[-1] * float(scale_factor_width)), mode)


@op("resize_bilinear")
def _resize_bilinear(
    x: Array, target_size_height: Array | int = 1, target_size_width: Array | int = 1, sampling_mode: str = "DEFAULT"
) -> Array:
    return _bilinear(x, number(target_size_height), number(target_size_width), sampling_mode)


@op("upsample_nearest_neighbor", widen=False)
def _upsample_nearest(x: Array, scale_factor_height: Array | int = 1, scale_factor_width: Array | int = 1) -> Array:
    for axis, factor in ((x.ndim - 2, float(scale_factor_height)), (x.ndim - 1, float(scale_factor_width))):
        size = x.shape[axis]
        out = math.floor(size * factor)
        by_ratio = np.arange(out) * size // max(1, out)
        by_scale = np.minimum(np.floor(np.arange(out) / factor).astype(np.int64), size - 1)
        if not np.array_equal(by_ratio, by_scale):
            raise ValueError(f"scale {factor} of a length of {size}: which pixels it picks is not documented")
        x = np.take(x, by_ratio, axis)
    return x


@op("resize_nearest_neighbor", widen=False)
def _resize_nearest(x: Array, target_size_height: Array, target_size_width: Array) -> Array:
    rows = np.take(x, _half_pixel(x.shape[-2], number(target_size_height)), x.ndim - 2)
    return np.asarray(np.take(rows, _half_pixel(x.shape[-1], number(target_size_width)), x.ndim - 1))


@op("resize")
def _resize(x: Array, shape: Array, resized_dims: Array, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT") -> Array:
    count = number(resized_dims)
    targets = numbers(shape)[len(numbers(shape)) - count :]
    if count > x.ndim or len(targets) != count:
        raise ValueError(f"resized_dims {count} for shape {numbers(shape)} and rank {x.ndim}")
    for axis, target in zip(range(x.ndim - count, x.ndim), targets, strict=True):
        out = target or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = _linear(x, axis, out, sampling_mode)
        elif interpolation_mode == "NEAREST_NEIGHBOR" and sampling_mode == "DEFAULT":
            x = np.take(x, _half_pixel(x.shape[axis], out), axis)
        else:
            raise ValueError(
                f"interpolation_mode {interpolation_mode!r} with sampling_mode {sampling_mode!r}: its rounding is not documented"
            )
    return x
