"""Compressed constants and activation quantisation (coremltools ``iOS16/constexpr_ops.py``, ``iOS17/quantization_ops.py``, ``iOS18/compression.py``)."""

from __future__ import annotations

import math

import numpy as np

from edgekit.converters.coreml_reference._registry import dtype_of, number, numbers, op
from edgekit.converters.coreml_reference._values import Array, unpack_bits


def _along(vector: Array, rank: int, axis: Array | None) -> Array:
    """A scalar, or a vector laid along ``axis`` of a tensor of ``rank``."""
    if vector.ndim == 0 or vector.size == 1:
        return vector.reshape(())
    if axis is None or vector.ndim != 1:
        raise ValueError(f"a parameter of shape {vector.shape} without an axis")
    shape = [1] * rank
    shape[number(axis)] = vector.size
    return vector.reshape(shape)


@op("constexpr_affine_dequantize", primary="scale")
def _affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    return _dequantize(quantized_data, scale, zero_point, axis)


@op("dequantize", primary="scale")
def _dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: Array | None = None) -> Array:  # noqa: A002 - MIL's name
    centred = input.astype(np.float32)
    if zero_point is not None:
        centred = centred - _along(zero_point, input.ndim, axis).astype(np.float32)
    return np.asarray(_along(scale, input.ndim, axis) * centred)


@op("quantize", result="own")
def _quantize(
    input: Array,  # noqa: A002 - MIL's name
    scale: Array,
    output_dtype: str,
    zero_point: Array | None = None,
    axis: Array | None = None,
) -> Array:
    target = dtype_of(output_dtype)
    limits = np.iinfo(target)
    levels = np.rint(input / _along(scale, input.ndim, axis))
    if zero_point is not None:
        levels = levels + _along(zero_point, input.ndim, axis).astype(np.float32)
    return np.clip(levels, limits.min, limits.max).astype(target)


@op("constexpr_cast", result="own", widen=False)
def _constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    return source_val.astype(dtype_of(output_dtype))


@op("constexpr_lut_to_dense", primary="lut", widen=False)
def _lut_to_dense(indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None) -> Array:
    """Form of iOS 16: packed indices, one table, ``shape``. iOS 18: an index a element, tables of shape ``(*groups, palettes, vector)``."""
    if shape is not None:
        bits = int(math.log2(lut.size))
        return np.asarray(lut[unpack_bits(indices, bits, math.prod(numbers(shape)), signed=False)].reshape(numbers(shape)))
    palettes, width = lut.shape[-2:]
    groups = lut.shape[:-2]
    if len(groups) != indices.ndim or any(dim % group for dim, group in zip(indices.shape, groups, strict=True)):
        raise ValueError(f"tables of shape {lut.shape} for indices of shape {indices.shape}")
    if indices.size and int(indices.max()) >= palettes:
        raise ValueError(f"index {int(indices.max())} in tables of {palettes}")
    where: tuple[Array, ...] = np.indices(indices.shape, sparse=True)
    table = [grid // (dim // group) for grid, dim, group in zip(where, indices.shape, groups, strict=True)]
    vectors = lut[(*table, indices)]
    if width == 1:
        return np.asarray(vectors[..., 0])
    if vector_axis is None:
        raise ValueError("vectors in the table without vector_axis")
    axis = number(vector_axis) % indices.ndim
    dims = [dim * width if index == axis else dim for index, dim in enumerate(indices.shape)]
    return np.asarray(np.moveaxis(vectors, -1, axis + 1).reshape(dims))


@op("constexpr_sparse_to_dense", primary="nonzero_data", widen=False)
def _sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """Form of iOS 16: a packed mask and ``shape``. iOS 18: an element of the mask an element."""
    dims = list(mask.shape) if shape is None else numbers(shape)
    bits = mask.reshape(-1) if shape is None else unpack_bits(mask, 1, math.prod(dims), signed=False)
    if int(np.count_nonzero(bits)) != nonzero_data.size:
        raise ValueError(f"{nonzero_data.size} values for {int(np.count_nonzero(bits))} set bits")
    out = np.zeros(math.prod(dims), nonzero_data.dtype)
    out[bits != 0] = nonzero_data
    return out.reshape(dims)


@op("constexpr_blockwise_shift_scale", primary="scale")
def _blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    if data.ndim != scale.ndim or any(dim % blocks for dim, blocks in zip(data.shape, scale.shape, strict=True)):
        raise ValueError(f"scales of shape {scale.shape} for data of shape {data.shape}")
    centred = data.astype(np.float32)
    if offset is not None:
        centred = centred - _spread(offset.astype(np.float32), data.shape)
    return _spread(scale, data.shape) * centred


def _spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    for axis, dim in enumerate(shape):
        blocks = np.repeat(blocks, dim // blocks.shape[axis], axis)
    return blocks
