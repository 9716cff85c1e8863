"""Convolution, matrix products and normalisation (coremltools ``iOS15/conv.py``, ``linear.py``, ``normalization.py``). Layout is ``(N, C, *spatial)``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.converters.coreml_reference._activation import softmax
from edgekit.converters.coreml_reference._registry import flag, number, numbers, op
from edgekit.converters.coreml_reference._values import Array
from edgekit.converters.coreml_reference._window import Axis, pad_spatial, window_axes

# Columns of one matrix product: small enough to stay in a core's cache, large enough for the product to dominate.
_COLUMN_BYTES = 16 << 20


@op("conv")
def _conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    rank = x.ndim - 2
    group_count = number(groups)
    if rank not in (1, 2, 3) or weight.ndim != x.ndim or group_count < 1:
        raise ValueError(f"input of shape {x.shape}, weight of shape {weight.shape}, {group_count} groups")
    if x.shape[1] != weight.shape[1] * group_count or weight.shape[0] % group_count:
        raise ValueError(f"{x.shape[1]} input channels, weight of shape {weight.shape}, {group_count} groups")
    axes = window_axes(
        x.shape[2:], weight.shape[2:], numbers(strides, [1] * rank), numbers(dilations, [1] * rank), pad_type, numbers(pad, [0] * 2 * rank)
    )
    padded = pad_spatial(x, axes, 0)
    depthwise = weight.shape[1] == 1 and group_count > 1
    out = _depthwise(padded, weight, axes) if depthwise else _grouped(padded, weight, axes, group_count)
    if bias is not None:
        out += bias.reshape(-1, *(1,) * rank)
    return out


def _tap(axes: Sequence[Axis], position: Sequence[int]) -> tuple[slice, ...]:
    """What the kernel's tap at ``position`` reads of the padded input, for all windows."""
    return tuple(
        slice(tap * axis.dilation, tap * axis.dilation + (axis.out - 1) * axis.stride + 1, axis.stride)
        for tap, axis in zip(position, axes, strict=True)
    )


def _depthwise(padded: Array, weight: Array, axes: Sequence[Axis]) -> Array:
    """One input channel a group: a multiply-add for each tap, vectorised over channels and windows."""
    channels = padded.shape[1]
    multiplier = weight.shape[0] // channels
    scales = weight.reshape(channels, multiplier, *weight.shape[2:])
    out = np.zeros((padded.shape[0], channels, multiplier, *(axis.out for axis in axes)), np.float32)
    product = np.empty_like(out)
    for position in np.ndindex(*(axis.kernel for axis in axes)):
        scale = scales[(slice(None), slice(None), *position)].reshape(channels, multiplier, *(1,) * len(axes))
        np.multiply(padded[(slice(None), slice(None), *_tap(axes, position))][:, :, None], scale, out=product)
        out += product
    return out.reshape(padded.shape[0], channels * multiplier, *out.shape[3:])


def _grouped(padded: Array, weight: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Columns of windows times the weight matrix, some rows of windows at a time."""
    batch, channels = padded.shape[:2]
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    out_shape = [axis.out for axis in axes]
    if all(axis.kernel == 1 and axis.stride == 1 for axis in axes):
        product = np.matmul(matrix, padded.reshape(batch, groups, channels // groups, -1))
        return np.asarray(product).reshape(batch, weight.shape[0], *out_shape)
    spans = [(axis.kernel - 1) * axis.dilation + 1 for axis in axes]
    windows: Array = np.lib.stride_tricks.sliding_window_view(
        padded, spans, axis=tuple(range(2, padded.ndim))
    )  # (N, C, *all positions, *spans)
    every = [slice(None)] * 2
    every += [slice(None, None, axis.stride) for axis in axes]
    every += [slice(None, None, axis.dilation) for axis in axes]
    windows = windows[tuple(every)]
    rank = len(axes)
    windows = windows.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    out = np.empty((batch, groups, matrix.shape[1], *out_shape), np.float32)
    row_bytes = batch * channels * math.prod(axis.kernel for axis in axes) * math.prod(out_shape[1:]) * 4
    rows = max(1, _COLUMN_BYTES // max(1, row_bytes))
    for start in range(0, out_shape[0], rows):
        part = windows[(slice(None),) * (2 + rank) + (slice(start, start + rows),)]
        columns = part.reshape(batch, groups, matrix.shape[2], -1)
        count = part.shape[2 + rank]
        out[:, :, :, start : start + rows] = np.matmul(matrix, columns).reshape(batch, groups, matrix.shape[1], count, *out_shape[1:])
    return out.reshape(batch, weight.shape[0], *out_shape)


@op("conv_transpose")
def _conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    pad: Array | None = None,
    output_shape: Array | None = None,
    pad_type: str = "valid",
    strides: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    rank, group_count = x.ndim - 2, number(groups)
    if rank not in (1, 2, 3) or weight.ndim != x.ndim or weight.shape[0] != x.shape[1] or x.shape[1] % group_count:
        raise ValueError(f"input of shape {x.shape}, weight of shape {weight.shape}, {group_count} groups")
    steps, gaps = numbers(strides, [1] * rank), numbers(dilations, [1] * rank)
    kernel = weight.shape[2:]
    batch, out_channels = x.shape[0], weight.shape[1] * group_count
    matrix = weight.reshape(group_count, x.shape[1] // group_count, -1).transpose(0, 2, 1)
    columns = np.matmul(matrix, x.reshape(batch, group_count, x.shape[1] // group_count, -1))
    columns = columns.reshape(batch, out_channels, *kernel, *x.shape[2:])
    full = [(size - 1) * step + (taps - 1) * gap + 1 for size, step, taps, gap in zip(x.shape[2:], steps, kernel, gaps, strict=True)]
    spread = np.zeros((batch, out_channels, *full), np.float32)
    for position in np.ndindex(*kernel):
        target = tuple(
            slice(tap * gap, tap * gap + (size - 1) * step + 1, step)
            for tap, gap, size, step in zip(position, gaps, x.shape[2:], steps, strict=True)
        )
        spread[(slice(None), slice(None), *target)] += columns[(slice(None), slice(None), *position)]
    sizes = None if output_shape is None else numbers(output_shape)[2:]
    out = _crop_transposed(spread, _transposed_extent(x.shape[2:], steps, full, pad_type, numbers(pad, [0] * 2 * rank), sizes))
    if bias is not None:
        out = out + bias.reshape(-1, *(1,) * rank)
    return out


def _transposed_extent(
    sizes: Sequence[int], steps: Sequence[int], full: Sequence[int], pad_type: str, pad: Sequence[int], wanted: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Where the output starts in the full transposed convolution, and its length, for each axis.

    ``output_shape`` names one of the lengths that the forward convolution would have mapped to the input; for ``same`` the position is the forward
    convolution's padding in front, as TensorFlow's ``conv2d_transpose`` has it.
    """
    if pad_type not in ("valid", "same", "custom") or (wanted is not None and len(wanted) != len(sizes)):
        raise ValueError(f"pad_type {pad_type!r}, output_shape {wanted}")
    extents = []
    for index, (size, step, length) in enumerate(zip(sizes, steps, full, strict=True)):
        reach = length - (size - 1) * step
        if pad_type == "same":
            out = size * step if wanted is None else wanted[index]
            if -(-out // step) != size:
                raise ValueError(f"output length {out} for input length {size} and stride {step}")
            extents.append((max(0, (size - 1) * step + reach - out) // 2, out))
            continue
        before, after = (pad[2 * index], pad[2 * index + 1]) if pad_type == "custom" else (0, 0)
        least = length - before - after
        out = least if wanted is None else wanted[index]
        if not least <= out < least + step:
            raise ValueError(f"output length {out}; {least} to {least + step - 1} map to this input")
        extents.append((before, out))
    return extents


def _crop_transposed(spread: Array, extents: Sequence[tuple[int, int]]) -> Array:
    """The named parts, with zeros where they reach beyond the end."""
    missing = [(0, max(0, start + out - size)) for (start, out), size in zip(extents, spread.shape[2:], strict=True)]
    if any(after for _, after in missing):
        spread = np.pad(spread, [(0, 0), (0, 0), *missing])
    return spread[(slice(None), slice(None), *(slice(start, start + out) for start, out in extents))]


@op("linear")
def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    out = np.matmul(x, weight.T)
    return np.asarray(out if bias is None else out + bias)


@op("matmul", result="either")
def _matmul(x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False) -> Array:
    left = x.swapaxes(-1, -2) if flag(transpose_x) and x.ndim > 1 else x
    right = y.swapaxes(-1, -2) if flag(transpose_y) and y.ndim > 1 else y
    return np.asarray(np.matmul(left, right))


@op("einsum", primary="values", variadic=("values",))
def _einsum(values: Sequence[Array], equation: str) -> Array:
    return np.asarray(np.einsum(equation, *values, optimize=len(values) > 1))


@op("scaled_dot_product_attention", primary="query")
def _attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    scores = np.matmul(query, key.swapaxes(-1, -2)) / np.sqrt(np.float32(query.shape[-1]))
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == np.bool_ else scores + attn_mask
    return np.asarray(np.matmul(softmax(scores), value))


def _per_channel(vector: Array, x: Array) -> Array:
    if vector.shape != (x.shape[1],):
        raise ValueError(f"a vector of shape {vector.shape} for {x.shape[1]} channels")
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


@op("batch_norm")
def _batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    scale = (1 if gamma is None else gamma) / np.sqrt(variance + np.asarray(epsilon, np.float32))
    out = (x - _per_channel(mean, x)) * _per_channel(np.asarray(scale), x)
    return np.asarray(out if beta is None else out + _per_channel(beta, x))


@op("instance_norm")
def _instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5) -> Array:
    out = _standardise(x, tuple(range(2, x.ndim)), epsilon)
    if gamma is not None:
        out = out * _per_channel(gamma, x)
    return np.asarray(out if beta is None else out + _per_channel(beta, x))


@op("layer_norm")
def _layer_norm(
    x: Array, axes: Array | None = None, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    over = sorted(axis % x.ndim for axis in numbers(axes, range(x.ndim)))
    shape = [x.shape[axis] if axis in over else 1 for axis in range(x.ndim)]
    out = _standardise(x, tuple(over), epsilon)
    if gamma is not None:
        out = out * gamma.reshape(shape)
    return np.asarray(out if beta is None else out + beta.reshape(shape))


def _standardise(x: Array, axes: tuple[int, ...], epsilon: Array | float) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + np.asarray(epsilon, np.float32)))


@op("l2_norm")
def _l2_norm(x: Array, epsilon: Array | float = 1e-6) -> Array:
    if x.ndim < 3:
        raise ValueError(f"rank {x.ndim}, at least 3 expected")
    return np.asarray(x / np.sqrt(np.square(x).sum(axis=(-3, -2, -1), keepdims=True) + np.asarray(epsilon, np.float32)))


@op("local_response_norm")
def _local_response_norm(x: Array, size: Array, alpha: Array | float = 1e-4, beta: Array | float = 0.75, k: Array | float = 1.0) -> Array:
    width = number(size)
    if width % 2 == 0:
        raise ValueError(f"an even size ({width}); on which side the odd channel lies is not documented")
    reach = width // 2
    squares = np.pad(np.square(x), [(0, 0), (reach, reach), *[(0, 0)] * (x.ndim - 2)])
    total = np.zeros_like(x)
    for offset in range(width):
        total += squares[:, offset : offset + x.shape[1]]
    return np.asarray(x / (k + np.asarray(alpha) / width * total) ** np.asarray(beta))
