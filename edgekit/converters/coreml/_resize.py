"""Resize: nearest by index, linear by MIL's bilinear operator where its sampling grid is ONNX's."""

from __future__ import annotations

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, op

__all__ = ["nearest_indices"]

# ONNX coordinate_transformation_mode -> MIL sampling_mode with the same grid (MIL operator resize_bilinear; ONNX operator Resize).
_LINEAR_GRIDS = {
    "half_pixel": "UNALIGN_CORNERS",
    "pytorch_half_pixel": "UNALIGN_CORNERS",
    "align_corners": "STRICT_ALIGN_CORNERS",
    "asymmetric": "DEFAULT",
}
_COORDINATES = (*_LINEAR_GRIDS, "half_pixel_symmetric")
_ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _mode(node: Node) -> tuple[str, str]:
    """(mode, coordinate_transformation_mode); opset 10 knew only the asymmetric one."""
    default = "half_pixel" if node.opset >= 11 else "asymmetric"
    return node.attrs.get("mode", "nearest"), node.attrs.get("coordinate_transformation_mode", default)


def _changed_axes(node: Node, graph: Graph) -> list[int]:
    sizes, wanted = graph.types[node.inputs[0]].shape, graph.types[node.outputs[0]].shape
    return [axis for axis, (before, after) in enumerate(zip(sizes, wanted, strict=True)) if before != after]


def _scales(node: Node, graph: Graph) -> list[float]:
    """Scale of every axis as ONNX uses it: the one given, else the quotient of the sizes."""
    sizes, wanted = graph.types[node.inputs[0]].shape, graph.types[node.outputs[0]].shape
    given = node.input(2) if node.opset >= 11 else node.input(1)
    axes = [axis % len(sizes) for axis in node.attrs.get("axes") or range(len(sizes))]
    scales = [after / before for before, after in zip(sizes, wanted, strict=True)]
    if given and given in graph.constants and graph.constants[given].size:
        for axis, value in zip(axes, graph.constants[given].reshape(-1), strict=True):
            scales[axis] = float(value)
    return scales


def nearest_indices(size: int, wanted: int, scale: float, coordinates: str, rounding: str) -> np.ndarray:
    """Source index of each output position of one axis, by the formulas of ONNX's Resize.

    Args:
        size: input length.
        wanted: output length.
        scale: output length over input length, as the model gives it.
        coordinates: ``coordinate_transformation_mode``.
        rounding: ``nearest_mode``.
    """
    position = np.arange(wanted, dtype=np.float64)
    if coordinates == "align_corners":
        original = position * (size - 1) / (wanted - 1) if wanted > 1 else position * 0.0
    elif coordinates == "asymmetric":
        original = position / scale
    elif coordinates == "pytorch_half_pixel" and wanted == 1:
        original = position * 0.0
    else:
        original = (position + 0.5) / scale - 0.5
        if coordinates == "half_pixel_symmetric":
            original += size / 2 * (1 - wanted / (scale * size))
    rounded = {
        "round_prefer_floor": np.ceil(original - 0.5),
        "round_prefer_ceil": np.floor(original + 0.5),
        "floor": np.floor(original),
        "ceil": np.ceil(original),
    }[rounding]
    return np.clip(rounded, 0, size - 1).astype(np.int32)


def _known_mode(node: Node, graph: Graph) -> str:
    """Resize is nearest, or linear over the last two of rank 3 or 4, with a coordinate mode that Core ML has"""
    mode, coordinates = _mode(node)
    if mode not in ("nearest", "linear"):
        return f"mode {mode}"
    if node.attrs.get("antialias", 0):
        return "antialias"
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"keep_aspect_ratio_policy {node.attrs['keep_aspect_ratio_policy']}"
    if mode == "nearest":
        return "" if coordinates in _COORDINATES else f"coordinate_transformation_mode {coordinates}"
    return _linear_grid(node, graph, coordinates)


def _linear_grid(node: Node, graph: Graph, coordinates: str) -> str:
    if coordinates not in _LINEAR_GRIDS:
        return f"linear with coordinate_transformation_mode {coordinates}"
    kind, wanted = graph.types[node.inputs[0]], graph.types[node.outputs[0]].shape
    changed = _changed_axes(node, graph)
    if kind.rank not in (3, 4) or any(axis < 2 for axis in changed):
        return f"linear from {list(kind.shape)} to {list(wanted)}"
    if coordinates != "align_corners" and any(abs(_scales(node, graph)[axis] * kind.shape[axis] - wanted[axis]) > 1e-3 for axis in changed):
        return "a scale that does not give a whole size"
    if coordinates in ("asymmetric", "pytorch_half_pixel") and any(wanted[axis] == 1 for axis in changed):
        return f"linear to size 1 with {coordinates}"
    return ""


@op("Resize", "Upsample", since=9, parameters=(1, 2, 3), constraints=(floats, _known_mode))
def resize(node: Node, ctx: MilContext) -> None:
    """Nearest: whole factors of the last two axes in one operator, anything else one gather an axis. Linear: one bilinear operator."""
    if not _changed_axes(node, ctx.graph):
        ctx.pass_on(node, ctx.read(node.inputs[0]))
    elif _mode(node)[0] == "linear":
        _linear(node, ctx)
    else:
        _nearest(node, ctx)


def _nearest(node: Node, ctx: MilContext) -> None:
    x, sizes, wanted = ctx.read(node.inputs[0]), ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0])
    rounding = node.attrs.get("nearest_mode", "round_prefer_floor") if node.opset >= 11 else "floor"
    scales, changed = _scales(node, ctx.graph), _changed_axes(node, ctx.graph)
    indices = {axis: nearest_indices(sizes[axis], wanted[axis], scales[axis], _mode(node)[1], rounding) for axis in changed}
    factors = {axis: wanted[axis] // sizes[axis] for axis in changed}
    repeats = all(np.array_equal(indices[axis], np.arange(wanted[axis]) // max(factors[axis], 1)) for axis in changed)
    if repeats and len(sizes) >= 3 and min(changed) >= len(sizes) - 2:
        height, width = (factors.get(len(sizes) + axis, 1) for axis in (-2, -1))
        ctx.put(node, "upsample_nearest_neighbor", x=x, scale_factor_height=height, scale_factor_width=width)
        return
    for axis in changed[:-1]:
        x = ctx.mid(node, "gather", x=x, indices=indices[axis], axis=axis)
    ctx.put(node, "gather", x=x, indices=indices[changed[-1]], axis=changed[-1])


def _linear(node: Node, ctx: MilContext) -> None:
    x, wanted = ctx.read(node.inputs[0]), ctx.shape(node.outputs[0])
    grid = _LINEAR_GRIDS[_mode(node)[1]]
    if len(wanted) == 4:
        ctx.put(node, "resize_bilinear", x=x, target_size_height=wanted[2], target_size_width=wanted[3], sampling_mode=grid)
        return
    # One row: (N, C, W) as (N, C, 1, W); every grid keeps the only row.
    row = ctx.mid(node, "expand_dims", x=x, axes=[2])
    wide = ctx.mid(node, "resize_bilinear", x=row, target_size_height=1, target_size_width=wanted[2], sampling_mode=grid)
    ctx.put(node, "squeeze", x=wide, axes=[2])
