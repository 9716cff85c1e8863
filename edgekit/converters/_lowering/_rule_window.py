"""Pools of every form by slices: dilations, ceil_mode, padding and indices are then plain arithmetic.

Along each axis in turn a window is put together from windows of half its size, so that one of 60 places costs 6 steps::

    pairs[i] = max(x[i], x[i + d])      fours[i] = max(pairs[i], pairs[i + 2 d])      five[i] = max(fours[i], x[i + 4 d])
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers
from edgekit.converters.tflite._window import Window, window_of

__all__: list[str] = []

_MAX_TAPS = 128
"""Largest window that is taken apart place by place, for its indices."""


def _window(piece: Piece) -> Window:
    kernel = [int(size) for size in piece.node.attrs["kernel_shape"]]
    piece.around.shape(piece.node.inputs[0])
    piece.around.shape(piece.node.outputs[0])
    window = window_of(piece.node, piece.around.graph, kernel)
    for size, result, step, begin in zip(window.sizes, window.results, window.strides, window.begins, strict=True):
        if (result - 1) * step >= size + begin:
            # Shape inference before opset 22 counts such a window with ceil_mode; ONNX and ONNX Runtime leave it out.
            raise CannotLowerError("its last window begins behind the input")
    return window


def _padded(piece: Piece, tensor: str, window: Window, filler: float) -> str:
    dtype = np.dtype(piece.around.dtype(piece.node.inputs[0]))
    pads = [0, 0, *window.begins, 0, 0, *(max(end, 0) for end in window.ends)]
    return piece.op("Pad", tensor, np.array(pads, np.int64), np.asarray(filler, dtype)) if any(pads) else tensor


def _gathered(piece: Piece, op: str, tensor: str, window: Window, filler: float) -> str:
    """Sum or maximum over the window, axis by axis."""
    tensor = _padded(piece, tensor, window, filler)
    for axis in range(len(window.sizes)):
        size = window.sizes[axis] + window.begins[axis] + max(window.ends[axis], 0)
        tensor = _along(piece, op, tensor, window, axis, size)
    return tensor


def _along(piece: Piece, op: str, tensor: str, window: Window, axis: int, size: int) -> str:
    """Over the window of one axis, whose padded size is given, at its strides."""
    kernel, dilation = window.kernel[axis], window.dilations[axis]

    def part(source: str, start: int, stop: int, step: int = 1) -> str:
        return piece.op("Slice", source, piece.ints(start), piece.ints(stop), piece.ints(axis + 2), piece.ints(step))

    half, reach, done, total = tensor, 1, 0, ""
    while True:  # `half` holds windows of `reach` places, `total` one of the `done` places that the low bits of `kernel` make
        if kernel & reach:
            length = size - (done + reach - 1) * dilation
            shifted = part(half, done * dilation, done * dilation + length)
            total = piece.op(op, part(total, 0, length), shifted) if total else shifted
            done += reach
        if done == kernel:
            break
        length = size - (2 * reach - 1) * dilation
        half = piece.op(op, part(half, 0, length), part(half, reach * dilation, reach * dilation + length))
        reach *= 2
    return part(total, 0, (window.results[axis] - 1) * window.strides[axis] + 1, window.strides[axis])


def _taps(piece: Piece, tensor: str, window: Window, filler: float) -> list[str]:
    """The padded tensor at every place of the window, in row-major order."""
    if math.prod(window.kernel) > _MAX_TAPS:
        raise CannotLowerError(f"the indices of a window of {math.prod(window.kernel)} places; up to {_MAX_TAPS} are compared")
    rank = len(window.sizes)
    tensor = _padded(piece, tensor, window, filler)
    found = []
    for place in itertools.product(*(range(size) for size in window.kernel)):
        starts = [tap * dilation for tap, dilation in zip(place, window.dilations, strict=True)]
        ends = [start + (count - 1) * step + 1 for start, count, step in zip(starts, window.results, window.strides, strict=True)]
        axes = list(range(2, rank + 2))
        found.append(piece.op("Slice", tensor, piece.ints(*starts), piece.ints(*ends), piece.ints(*axes), piece.ints(*window.strides)))
    return found


@lowers("MaxPool")
def max_pool(piece: Piece) -> None:
    """The largest of the places; the index of the first one that has it, counted in the unpadded input."""
    window = _window(piece)
    dtype = np.dtype(piece.around.dtype(piece.node.inputs[0]))
    lowest = -math.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)
    single = len(piece.node.outputs) < 2 or not piece.node.outputs[1]
    if single and max(window.dilations) > 1 and not any(map(_remainder, window.strides, window.dilations)):
        _thinned(piece, window, lowest)
        return
    if single:
        piece.op("Identity", _gathered(piece, "Max", piece.node.inputs[0], window, lowest), into=piece.node.outputs[0])
        return
    taps = _taps(piece, piece.node.inputs[0], window, lowest)
    numbers = _numbers(piece, window)
    result, chosen = taps[0], piece.constant(numbers[0])
    for position, tap in enumerate(taps[1:], 1):
        chosen = piece.op("Where", piece.op("Greater", tap, result), numbers[position], chosen)
        result = piece.op("Max", result, tap)
    piece.op("Identity", result, into=piece.node.outputs[0])
    piece.op("Expand", chosen, np.array(piece.around.shape(piece.node.outputs[0]), np.int64), into=piece.node.outputs[1])


def _remainder(stride: int, dilation: int) -> int:
    return stride % dilation


def _thinned(piece: Piece, window: Window, filler: float) -> None:
    """Where every window begins at a multiple of the dilation, the places between are never looked at: a plain pool of what is left."""
    rank = len(window.sizes)
    ends = [
        (r - 1) * s + (k - 1) * d + 1 for r, s, k, d in zip(window.results, window.strides, window.kernel, window.dilations, strict=True)
    ]
    padded = _padded(piece, piece.node.inputs[0], window, filler)
    axes = piece.ints(*range(2, rank + 2))
    thin = piece.op("Slice", padded, piece.ints(*[0] * rank), piece.ints(*ends), axes, piece.ints(*window.dilations))
    strides = [stride // dilation for stride, dilation in zip(window.strides, window.dilations, strict=True)]
    piece.op("MaxPool", thin, into=piece.node.outputs[0], kernel_shape=list(window.kernel), strides=strides)


def _numbers(piece: Piece, window: Window) -> list[np.ndarray]:
    """Per place of the window, the flat index of what it sees for every result (onnx operator MaxPool, Indices)."""
    shape = piece.around.shape(piece.node.inputs[0])
    batch, channels = shape[:2]
    order = range(len(window.sizes))
    steps = [math.prod(window.sizes[axis + 1 :]) for axis in order]
    if piece.node.attrs.get("storage_order", 0):
        steps = [math.prod(window.sizes[:axis]) for axis in order]
    planes = (np.arange(batch)[:, None] * channels + np.arange(channels)) * math.prod(window.sizes)
    found = []
    for place in itertools.product(*(range(size) for size in window.kernel)):
        total = planes.reshape(batch, channels, *[1] * len(window.sizes))
        for axis in order:
            line = np.arange(window.results[axis]) * window.strides[axis] + place[axis] * window.dilations[axis] - window.begins[axis]
            total = total + line.reshape([-1 if each == axis + 2 else 1 for each in range(len(shape))]) * steps[axis]
        found.append(total.astype(np.int64))
    return found


@lowers("AveragePool")
def average_pool(piece: Piece) -> None:
    """The sum of the places over how many of them count."""
    window = _window(piece)
    dtype = piece.around.dtype(piece.node.inputs[0])
    total = _gathered(piece, "Add", piece.node.inputs[0], window, 0.0)
    piece.op(
        "Mul", total, (1.0 / _counts(window, bool(piece.node.attrs.get("count_include_pad", 0)))).astype(dtype), into=piece.node.outputs[0]
    )


def _counts(window: Window, padded: bool) -> np.ndarray:
    """How many places of each window lie in the input, or in its declared padding too."""
    counts = np.ones((1, 1), np.float64)
    for axis, size in enumerate(window.sizes):
        starts = np.arange(window.results[axis]) * window.strides[axis] - window.begins[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        low, high = (-window.begins[axis], size + window.declared_ends[axis]) if padded else (0, size)
        line = ((taps >= low) & (taps < high)).sum(1)
        counts = counts[..., None] * line
    return counts


@lowers("LpPool")
def lp_pool(piece: Piece) -> None:
    """The p-norm of the places."""
    window = _window(piece)
    dtype = piece.around.dtype(piece.node.inputs[0])
    power = float(piece.node.attrs.get("p", 2))
    powers = piece.op("Pow", piece.op("Abs", piece.node.inputs[0]), np.asarray(power, dtype))
    total = _gathered(piece, "Add", powers, window, 0.0)
    piece.op("Pow", total, np.asarray(1.0 / power, dtype), into=piece.node.outputs[0])
