"""Samples between pixels at computed places: a gather of the neighbours, weighted.

Everything that does not depend on the picture is arithmetic on the places alone, so constant grids and offsets fold into constant indices
and weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_CUBIC = -0.75
"""Coefficient of the cubic kernel (onnx operator GridSample)."""


class _Picture:
    """``[N, C, spatial...]`` as rows of channels, one for each pixel of each picture."""

    def __init__(self, piece: Piece, tensor: str, shape: Sequence[int], dtype: str) -> None:
        self.piece = piece
        self.batch, self.channels, *self.sizes = shape
        self.dtype = dtype
        rank = len(self.sizes)
        last = piece.op("Transpose", tensor, perm=[0, *range(2, rank + 2), 1])
        self.rows = piece.op("Reshape", last, np.array([-1, self.channels], np.int64))

    def at(self, places: Sequence[str], rank: int, zeros: bool) -> str:
        """Rows at whole places of shape ``[N, ...]``, one tensor an axis; outside is zero or must not occur."""
        piece = self.piece
        pixels = math.prod(self.sizes)
        total = piece.constant((np.arange(self.batch) * pixels).astype(np.float32).reshape(-1, *[1] * (rank - 1)))
        inside = ""
        for axis, (place, size) in enumerate(zip(places, self.sizes, strict=True)):
            kept = piece.op("Min", piece.op("Max", place, np.float32(0)), np.float32(size - 1))
            total = piece.op("Add", total, piece.op("Mul", kept, np.float32(math.prod(self.sizes[axis + 1 :]))))
            if zeros:
                same = piece.op("Cast", piece.op("Equal", kept, place), to=1)
                inside = piece.op("Mul", inside, same) if inside else same
        index = piece.op("Cast", total, to=7)
        found = piece.op("Gather", self.rows, index, axis=0)
        if not inside:
            return found
        return piece.op("Mul", found, self.weight(inside, rank))

    def weight(self, tensor: str, rank: int) -> str:
        """A float32 number for each place, for all channels, in the picture's dtype."""
        from onnx import helper

        wide = self.piece.unsqueeze(tensor, [rank])
        if self.dtype == "float32":
            return wide
        return self.piece.op("Cast", wide, to=helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def linear(self, places: Sequence[str], rank: int, zeros: bool) -> str:
        """Multilinear interpolation between the neighbours of a place."""
        piece = self.piece
        lows = [piece.op("Floor", place) for place in places]
        aboves = [piece.op("Sub", place, low) for place, low in zip(places, lows, strict=True)]
        belows = [piece.op("Sub", np.float32(1), above) for above in aboves]
        highs = [piece.op("Add", low, np.float32(1)) for low in lows]
        result = ""
        for corner in itertools.product((0, 1), repeat=len(places)):
            at = [(lows, highs)[side][axis] for axis, side in enumerate(corner)]
            weight = (belows, aboves)[corner[0]][0]
            for axis, side in enumerate(corner[1:], 1):
                weight = piece.op("Mul", weight, (belows, aboves)[side][axis])
            part = piece.op("Mul", self.at(at, rank, zeros), self.weight(weight, rank))
            result = piece.op("Add", result, part) if result else part
        return result


@lowers("GridSample")
def grid_sample(piece: Piece) -> None:
    """The grid's numbers become places in pixels; then the mode says which neighbours count, the padding what is outside."""
    image, grid = piece.node.inputs
    shape, places_shape = piece.around.shape(image), piece.around.shape(grid)
    if math.prod(shape) >= 1 << 24:
        raise CannotLowerError("a picture of more places than float32 counts")
    attrs, rank = piece.node.attrs, len(places_shape) - 1
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(name := str(attrs.get("mode", "linear")), name)
    padding, align = str(attrs.get("padding_mode", "zeros")), bool(attrs.get("align_corners", 0))
    wide = piece.op("Cast", grid, to=1)
    sizes = shape[2:]
    places = []
    for axis, size in enumerate(sizes):  # the grid names the last axis first
        part = piece.op("Gather", wide, np.asarray(len(sizes) - 1 - axis, np.int64), axis=-1)
        up = piece.op("Add", part, np.float32(1))
        if align:
            places.append(piece.op("Mul", up, np.float32((size - 1) / 2)))
        else:
            places.append(piece.op("Sub", piece.op("Mul", up, np.float32(size / 2)), np.float32(0.5)))
    picture = _Picture(piece, image, shape, piece.around.dtype(image))
    zeros = padding == "zeros"
    if mode == "cubic":
        result = _cubic(picture, places, rank, padding, align)
    elif mode == "nearest":
        rounded = [piece.op("Round", place) for place in _settled(piece, places, sizes, padding, align)]
        result = picture.at(_settled(piece, rounded, sizes, padding, align), rank, zeros)
    else:
        result = picture.linear(_settled(piece, places, sizes, padding, align), rank, zeros)
    piece.op("Transpose", result, perm=[0, rank, *range(1, rank)], into=piece.node.outputs[0])


def _settled(piece: Piece, places: Sequence[str], sizes: Sequence[int], padding: str, align: bool) -> list[str]:
    """Places outside of the picture brought back, by the border or by reflection."""
    if padding == "border":
        return [
            piece.op("Min", piece.op("Max", each, np.float32(0)), np.float32(size - 1)) for each, size in zip(places, sizes, strict=True)
        ]
    if padding == "reflection":
        return [_reflected(piece, each, size, align) for each, size in zip(places, sizes, strict=True)]
    return list(places)


def _reflected(piece: Piece, place: str, size: int, align: bool) -> str:
    """A triangle wave between the first and the last pixel's centre, or their outer edges."""
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return piece.op("Mul", place, np.float32(0))
    moved = piece.op("Sub", place, np.float32(low))
    turns = piece.op("Mul", piece.op("Floor", piece.op("Div", moved, np.float32(2 * span))), np.float32(2 * span))
    phase = piece.op("Sub", moved, turns)
    return piece.op("Sub", np.float32(low + span), piece.op("Abs", piece.op("Sub", phase, np.float32(span))))


def _cubic(picture: _Picture, places: Sequence[str], rank: int, padding: str, align: bool) -> str:
    """Four neighbours on each axis; the padding decides for each of them."""
    piece = picture.piece
    lows = [piece.op("Floor", place) for place in places]
    weights = [_cubic_weights(piece, piece.op("Sub", place, low)) for place, low in zip(places, lows, strict=True)]
    result = ""
    for taps in itertools.product(range(4), repeat=len(places)):
        at = [piece.op("Add", low, np.float32(tap - 1)) for low, tap in zip(lows, taps, strict=True)]
        weight = weights[0][taps[0]]
        for axis, tap in enumerate(taps[1:], 1):
            weight = piece.op("Mul", weight, weights[axis][tap])
        settled = _settled(piece, at, picture.sizes, padding, align)
        part = piece.op("Mul", picture.at(settled, rank, padding == "zeros"), picture.weight(weight, rank))
        result = piece.op("Add", result, part) if result else part
    return result


def _cubic_weights(piece: Piece, x: str) -> list[str]:
    a = _CUBIC

    def polynomial(tensor: str, *coefficients: float) -> str:
        result = piece.op("Mul", tensor, np.float32(coefficients[0]))
        for value in coefficients[1:-1]:
            result = piece.op("Mul", piece.op("Add", result, np.float32(value)), tensor)
        return piece.op("Add", result, np.float32(coefficients[-1]))

    rest = piece.op("Sub", np.float32(1), x)
    outer = (a, -5 * a, 8 * a, -4 * a)
    inner = (a + 2, -(a + 3), 0.0, 1.0)
    return [
        polynomial(piece.op("Add", x, np.float32(1)), *outer),
        polynomial(x, *inner),
        polynomial(rest, *inner),
        polynomial(piece.op("Add", rest, np.float32(1)), *outer),
    ]


@lowers("DeformConv")
def deform_conv(piece: Piece) -> None:
    """Columns of pixels sampled where each tap has been moved to, times the kernel as a matrix."""
    node, attrs = piece.node, piece.node.attrs
    x, weight, offset = node.inputs[:3]
    shape, kernel_shape = piece.around.shape(x), piece.around.shape(weight)
    if len(shape) != 4:
        raise CannotLowerError(f"rank {len(shape)}; pictures have rank 4")
    batch, channels = shape[:2]
    kernel, results = kernel_shape[2:], piece.around.shape(node.outputs[0])[2:]
    taps = kernel[0] * kernel[1]
    groups, moved = int(attrs.get("group", 1)), int(attrs.get("offset_group", 1))
    share = channels // moved
    dtype = piece.around.dtype(x)
    columns = []
    for group in range(moved):
        part = piece.op("Slice", x, piece.ints(group * share), piece.ints((group + 1) * share), piece.ints(1))
        picture = _Picture(piece, part, (batch, share, *shape[2:]), dtype)
        sampled = picture.linear(_tap_places(piece, offset, group, kernel, results), 4, True)  # batch, taps, rows, columns, channels
        if node.input(4):
            mask = piece.op("Slice", node.input(4), piece.ints(group * taps), piece.ints((group + 1) * taps), piece.ints(1))
            sampled = piece.op("Mul", sampled, piece.unsqueeze(mask, [4]))
        columns.append(piece.op("Transpose", sampled, perm=[0, 4, 1, 2, 3]))
    whole = columns[0] if len(columns) == 1 else piece.op("Concat", *columns, axis=1)
    count = math.prod(results)
    inner = channels // groups * taps
    matrix = piece.op("Reshape", whole, np.array([batch, groups, inner, count], np.int64))
    kernels = piece.op("Reshape", weight, np.array([1, groups, kernel_shape[0] // groups, inner], np.int64))
    product = piece.op("MatMul", kernels, matrix)
    bias = node.input(3)
    shaped = piece.op("Reshape", product, np.array([batch, kernel_shape[0], *results], np.int64), into="" if bias else node.outputs[0])
    if bias:
        piece.op("Add", shaped, piece.op("Reshape", bias, np.array([1, -1, 1, 1], np.int64)), into=node.outputs[0])


def _tap_places(piece: Piece, offset: str, group: int, kernel: Sequence[int], results: Sequence[int]) -> list[str]:
    """Rows and columns that the taps of one offset group look at, ``[N, taps, rows, columns]`` each."""
    attrs = piece.node.attrs
    strides, dilations, pads = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1]), attrs.get("pads", [0] * 4)
    taps = kernel[0] * kernel[1]
    batch = piece.around.shape(offset)[0]
    first = group * taps * 2
    mine = piece.op("Slice", piece.op("Cast", offset, to=1), piece.ints(first), piece.ints(first + taps * 2), piece.ints(1))
    pairs = piece.op("Reshape", mine, np.array([batch, taps, 2, *results], np.int64))
    grid = np.meshgrid(*(np.arange(size) for size in kernel), *(np.arange(size) for size in results), indexing="ij")
    found = []
    for axis in range(2):
        base = grid[2 + axis] * strides[axis] + grid[axis] * dilations[axis] - pads[axis]
        moved = piece.op("Gather", pairs, np.asarray(axis, np.int64), axis=2)
        found.append(piece.op("Add", moved, base.reshape(1, taps, *results).astype(np.float32)))
    return found
