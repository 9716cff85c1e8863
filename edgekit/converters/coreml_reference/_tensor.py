"""Shapes, layout and generated tensors (coremltools ``iOS15/tensor_transformation.py`` and ``tensor_operation.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.converters.coreml_reference._registry import dtype_of, flag, number, numbers, op
from edgekit.converters.coreml_reference._values import Array

# Shape -----------------------------------------------------------------------------------------------------------------------------------------


@op("reshape", widen=False)
def _reshape(x: Array, shape: Array) -> Array:
    target = numbers(shape)
    for index, dim in enumerate(target):
        if dim == 0:  # inherits from x, counted from the right; 1 where x has no such dimension
            source = x.ndim - (len(target) - index)
            target[index] = x.shape[source] if source >= 0 else 1
    return x.reshape(target)


@op("reshape_like", widen=False, variadic=("ref_tensors", "begins", "ends", "end_masks"))
def _reshape_like(
    x: Array, ref_tensors: Sequence[Array], begins: Sequence[Array], ends: Sequence[Array], end_masks: Sequence[Array]
) -> Array:
    shape: list[int] = []
    for tensor, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += tensor.shape[number(begin) : None if flag(mask) else number(end)]
    return x.reshape(shape)


@op("transpose", widen=False)
def _transpose(x: Array, perm: Array) -> Array:
    return x.transpose(numbers(perm))


@op("expand_dims", widen=False)
def _expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(numbers(axes)))


@op("squeeze", widen=False)
def _squeeze(x: Array, axes: Array | None = None) -> Array:
    """Named dimensions that are not 1 stay."""
    chosen = {axis % x.ndim for axis in numbers(axes, range(x.ndim))}
    return x.squeeze(tuple(axis for axis in chosen if x.shape[axis] == 1))


@op("flatten2d", widen=False)
def _flatten2d(x: Array, axis: Array | int = 1) -> Array:
    cut = number(axis)
    return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))


@op("shape", result="own", widen=False)
def _shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


# Joining and cutting ---------------------------------------------------------------------------------------------------------------------------


@op("concat", primary="values", agree=("values",), variadic=("values",), widen=False)
def _concat(values: Sequence[Array], axis: Array, interleave: Array | bool = False) -> Array:
    if values[0].ndim == 0:
        return np.stack(values)
    where = number(axis) % values[0].ndim
    if not flag(interleave):
        return np.concatenate(values, axis=where)
    shape = list(values[0].shape)
    shape[where] *= len(values)
    return np.stack(values, axis=where + 1).reshape(shape)


@op("stack", primary="values", agree=("values",), variadic=("values",), widen=False)
def _stack(values: Sequence[Array], axis: Array) -> Array:
    return np.stack(values, axis=number(axis))


@op("split", widen=False)
def _split(x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None) -> tuple[Array, ...]:
    if split_sizes is not None:
        sizes = numbers(split_sizes)
        if sum(sizes) != x.shape[number(axis)]:
            raise ValueError(f"split sizes {sizes} of a dimension of {x.shape[number(axis)]}")
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=number(axis)))
    if num_splits is None:
        raise ValueError("neither num_splits nor split_sizes")
    return tuple(np.split(x, number(num_splits), axis=number(axis)))


def _index(
    rank: int,
    begin: Array,
    end: Array,
    stride: Array | None,
    begin_mask: Array | None,
    end_mask: Array | None,
    squeeze_mask: Array | None,
) -> tuple[slice | int, ...]:
    """Index of numpy for the arguments of ``slice_by_index``."""
    off = [0] * rank
    starts, stops, steps = numbers(begin), numbers(end), numbers(stride, [1] * rank)
    open_starts, open_stops, picks = numbers(begin_mask, off), numbers(end_mask, off), numbers(squeeze_mask, off)
    if not {len(part) for part in (starts, stops, steps, open_starts, open_stops, picks)} == {rank}:
        raise ValueError(f"begin, end, stride or masks do not have {rank} entries each")
    index: list[slice | int] = []
    for axis in range(rank):
        if picks[axis]:
            index.append(0 if open_starts[axis] else starts[axis])
        else:
            index.append(slice(None if open_starts[axis] else starts[axis], None if open_stops[axis] else stops[axis], steps[axis]))
    return tuple(index)


@op("slice_by_index", widen=False)
def _slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    return np.asarray(x[_index(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)])


@op("slice_update", widen=False, agree=("x", "update"))
def _slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    out = x.copy()
    index = _index(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if out[index].shape != update.shape:
        raise ValueError(f"an update of shape {update.shape} for a slice of shape {out[index].shape}")
    out[index] = update
    return out


@op("slice_by_size", widen=False)
def _slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    index = []
    for dim, start, length in zip(x.shape, numbers(begin), numbers(size), strict=True):
        first = start + dim if start < 0 else start
        stop = dim if length == -1 else first + length
        if not 0 <= first <= stop <= dim:
            raise ValueError(f"begin {start} and size {length} on a dimension of {dim}")
        index.append(slice(first, stop))
    return x[tuple(index)]


@op("sliding_windows", widen=False)
def _sliding_windows(x: Array, axis: Array, size: Array, stride: Array | int = 1) -> Array:
    where = number(axis) % x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, number(size), axis=where)
    return np.moveaxis(windows, -1, where + 1)[(slice(None),) * where + (slice(None, None, number(stride)),)]


@op("reverse", widen=False)
def _reverse(x: Array, axes: Array | None = None) -> Array:
    return np.flip(x, tuple(numbers(axes, range(x.ndim))))


@op("reverse_sequence", widen=False)
def _reverse_sequence(x: Array, lengths: Array, seq_axis: Array | int = 0, batch_axis: Array | int = 0) -> Array:
    out = np.moveaxis(x, (number(batch_axis), number(seq_axis)), (0, 1)).copy()
    for row, length in zip(out, numbers(lengths), strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(out, (0, 1), (number(batch_axis), number(seq_axis)))


@op("pad")
def _pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    amounts = numbers(pad)
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim or min(amounts, default=0) < 0:
        raise ValueError(f"pad {amounts} for rank {x.ndim}")
    pairs = [(0, 0)] * (x.ndim - len(amounts) // 2) + list(zip(amounts[::2], amounts[1::2], strict=True))
    if mode == "constant":
        return np.pad(x, pairs, constant_values=np.asarray(constant_val, x.dtype))
    if mode == "replicate":
        return np.pad(x, pairs, mode="edge")
    if mode != "reflect":
        raise ValueError(f"mode {mode!r}")
    if any(max(pair) >= dim for pair, dim in zip(pairs, x.shape, strict=True) if max(pair)):
        raise ValueError(f"reflect by {pairs} on shape {x.shape}; at most one less than the dimension")
    return np.pad(x, pairs, mode="reflect")


@op("tile", widen=False)
def _tile(x: Array, reps: Array) -> Array:
    return np.tile(x, numbers(reps))


@op("crop", widen=False)
def _crop(x: Array, crop_height: Array, crop_width: Array) -> Array:
    (top, bottom), (left, right) = numbers(crop_height), numbers(crop_width)
    if min(top, bottom, left, right) < 0:
        raise ValueError("a negative crop")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


# Depth and space -------------------------------------------------------------------------------------------------------------------------------


@op("depth_to_space", widen=False)
def _depth_to_space(x: Array, block_size: Array) -> Array:
    """Channels are ordered block row, block column, channel, as TensorFlow's (``pixel_shuffle`` is the other order)."""
    batch, channels, height, width = x.shape
    block = number(block_size)
    parts = x.reshape(batch, block, block, channels // block**2, height, width)
    return parts.transpose(0, 3, 4, 1, 5, 2).reshape(batch, channels // block**2, height * block, width * block)


@op("space_to_depth", widen=False)
def _space_to_depth(x: Array, block_size: Array) -> Array:
    batch, channels, height, width = x.shape
    block = number(block_size)
    parts = x.reshape(batch, channels, height // block, block, width // block, block)
    return parts.transpose(0, 3, 5, 1, 2, 4).reshape(batch, channels * block**2, height // block, width // block)


@op("pixel_shuffle", widen=False)
def _pixel_shuffle(x: Array, upscale_factor: Array) -> Array:
    batch, channels, height, width = x.shape
    factor = number(upscale_factor)
    parts = x.reshape(batch, channels // factor**2, factor, factor, height, width)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(batch, channels // factor**2, height * factor, width * factor)


@op("pixel_unshuffle", widen=False)
def _pixel_unshuffle(x: Array, downscale_factor: Array) -> Array:
    batch, channels, height, width = x.shape
    factor = number(downscale_factor)
    parts = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(batch, channels * factor**2, height // factor, width // factor)


@op("space_to_batch")
def _space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    rows, columns = numbers(block_shape)
    padded = np.pad(x, [(0, 0), (0, 0), *((int(pair[0]), int(pair[1])) for pair in paddings)])
    batch, channels, height, width = padded.shape
    parts = padded.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return parts.transpose(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // rows, width // columns)


@op("batch_to_space", widen=False)
def _batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    rows, columns = numbers(block_shape)
    batch, channels, height, width = x.shape
    parts = x.reshape(rows, columns, batch // (rows * columns), channels, height, width).transpose(2, 3, 4, 0, 5, 1)
    full = parts.reshape(-1, channels, height * rows, width * columns)
    (top, bottom), (left, right) = ((int(pair[0]), int(pair[1])) for pair in crops)
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


# Generated and ordered -------------------------------------------------------------------------------------------------------------------------


@op("fill", result="own", widen=False)
def _fill(shape: Array, value: Array | float = 0.0) -> Array:
    content = np.asarray(value, None if isinstance(value, np.ndarray) else np.float32)
    return np.full(numbers(shape), content)


@op("fill_like", result="own", widen=False)
def _fill_like(ref_tensor: Array, value: Array | float = 0.0) -> Array:
    content = np.asarray(value, None if isinstance(value, np.ndarray) else np.float32)
    return np.full(ref_tensor.shape, content)


@op("range_1d", primary="start", agree=("start", "end", "step"))
def _range_1d(end: Array, start: Array, step: Array) -> Array:
    count = math.ceil((float(end) - float(start)) / float(step))
    return np.asarray(start + np.arange(max(0, count)).astype(start.dtype) * step)


@op("band_part", widen=False)
def _band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    rows, columns = np.indices(x.shape[-2:])
    below, above = number(lower), number(upper)
    keep = ((below < 0) | (rows - columns <= below)) & ((above < 0) | (columns - rows <= above))
    return np.where(keep, x, np.zeros((), x.dtype))


@op("cumsum")
def _cumsum(x: Array, axis: Array | int = 0, exclusive: Array | bool = False, reverse: Array | bool = False) -> Array:
    where = number(axis)
    data = np.flip(x, where) if flag(reverse) else x
    total = np.cumsum(data, axis=where)
    if flag(exclusive):
        total = total - data
    return np.flip(total, where) if flag(reverse) else total


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Sorted indices; equal values keep their order."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.asarray(x.shape[axis] - 1 - np.flip(backwards, axis))


@op("argsort", result="own", widen=False)
def _argsort(x: Array, axis: Array | int = -1, ascending: Array | bool = False, output_dtype: str = "int32") -> Array:
    return _order(x, number(axis), ascending=flag(ascending)).astype(dtype_of(output_dtype))


@op("topk", result="own", widen=False)
def _topk(
    x: Array,
    k: Array | int = 1,
    axis: Array | int = -1,
    ascending: Array | bool = False,
    sort: Array | bool = True,
    return_indices: Array | bool = True,
    output_indices_dtype: str = "int32",
) -> Array | tuple[Array, Array]:
    """Without ``sort`` any order is allowed; the sorted one is given."""
    del sort
    where = number(axis)
    if number(k) > x.shape[where]:
        raise ValueError(f"k {number(k)} of {x.shape[where]}")
    chosen = np.take(_order(x, where, ascending=flag(ascending)), np.arange(number(k)), axis=where)
    values = np.take_along_axis(x, chosen, axis=where)
    return (values, chosen.astype(dtype_of(output_indices_dtype))) if flag(return_indices) else values


@op("one_hot", result="own", widen=False)
def _one_hot(
    indices: Array, one_hot_vector_size: Array, axis: Array | int = -1, on_value: Array | int = 1, off_value: Array | int = 0
) -> Array:
    size = number(one_hot_vector_size)
    if np.any((indices < 0) | (indices >= size)):
        raise ValueError(f"an index outside 0 to {size - 1}; what it selects is not documented")
    on, off = (np.asarray(value, None if isinstance(value, np.ndarray) else np.int32) for value in (on_value, off_value))
    hot = np.where(indices[..., None] == np.arange(size), on, off)
    return np.moveaxis(hot, -1, number(axis))


@op("non_zero", result="own", widen=False)
def _non_zero(x: Array) -> Array:
    return np.transpose(np.nonzero(x)).astype(np.int32)
