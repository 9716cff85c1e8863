"""Geometry that convolution and pooling share: how far a window reaches over each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.converters.coreml_reference._values import Array

__all__ = ["Axis", "pad_spatial", "window_axes"]


@dataclass(frozen=True)
class Axis:
    """One spatial axis.

    Attributes:
        size: input length.
        kernel: taps.
        stride, dilation: steps between windows and between taps.
        before, after: padding that the op was given or that ``same`` implies.
        out: number of windows.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    out: int

    @property
    def reach(self) -> int:
        """Padded length that the windows cover."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def window_axes(
    sizes: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pad_type: str,
    pad: Sequence[int],
    *,
    ceil_mode: bool = False,
) -> list[Axis]:
    """Padding and output length of each spatial axis.

    ``same`` gives ``ceil(size / stride)`` windows with the odd element of padding behind, ``same_lower`` in front; ``pad`` counts for ``custom`` only. With
    ``ceil_mode`` a last window that would start in the padding behind is dropped (coremltools ``iOS15/pool.py``).
    """
    if not len(sizes) == len(kernels) == len(strides) == len(dilations) == len(pad) / 2:
        raise ValueError(
            f"{len(sizes)} spatial dimensions, {len(kernels)} kernel sizes, {len(strides)} strides, {len(dilations)} dilations, {len(pad)} paddings"
        )
    axes = []
    for index, (size, kernel, stride, dilation) in enumerate(zip(sizes, kernels, strides, dilations, strict=True)):
        if min(size, kernel, stride, dilation) < 1:
            raise ValueError(f"size {size}, kernel {kernel}, stride {stride}, dilation {dilation} on spatial axis {index}")
        reach = (kernel - 1) * dilation + 1
        if pad_type in ("same", "same_lower"):
            out = -(-size // stride)
            total = max(0, (out - 1) * stride + reach - size)
            before = total // 2 if pad_type == "same" else total - total // 2
            axes.append(Axis(size, kernel, stride, dilation, before, total - before, out))
            continue
        if pad_type not in ("valid", "custom"):
            raise ValueError(f"pad_type {pad_type!r}")
        before, after = (pad[2 * index], pad[2 * index + 1]) if pad_type == "custom" else (0, 0)
        total = before + after
        out = (size + total - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and total > 0 and (out - 1) * stride >= size + before:
            out -= 1
        if out < 1:
            raise ValueError(f"no window of {reach} fits into {size} + {total} on spatial axis {index}")
        axes.append(Axis(size, kernel, stride, dilation, before, after, out))
    return axes


def pad_spatial(x: Array, axes: Sequence[Axis], fill: float) -> Array:
    """``x`` of shape ``(N, C, *spatial)`` padded in front, and behind as far as the windows reach; what no window reaches is cut off."""
    if all(axis.before == 0 and axis.reach <= axis.size for axis in axes):
        return x[(slice(None), slice(None), *(slice(0, axis.reach) for axis in axes))]
    padded = np.full((*x.shape[:2], *(axis.reach for axis in axes)), fill, x.dtype)
    target, source = [slice(None)] * 2, [slice(None)] * 2
    for axis in axes:
        taken = max(0, min(axis.size, axis.reach - axis.before))
        target.append(slice(axis.before, axis.before + taken))
        source.append(slice(0, taken))
    padded[tuple(target)] = x[tuple(source)]
    return padded
