"""Resize: MIL's own operators where they sample the same points, else constant indices or weights, which are right for every mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._resampling import (
    COORDINATE_MODES,
    CROP,
    ResampledAxis,
    axis_matrix,
    coordinate_mode,
    inside,
    resampled_axes,
    weights,
)
from edgekit.converters.coreml._context import MilContext, mil_dtype, op

__all__: list[str] = []

_MODES = ("nearest", "linear", "cubic")
_GRIDS = ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT")
_CLOSE = 1e-6  # of a weight


def _sampling(node: Node, graph: Graph) -> str:
    """Resize is nearest, linear or cubic (integers and bool: nearest), in a coordinate mode of the specification"""
    mode, coordinates = node.attrs.get("mode", "nearest"), coordinate_mode(node)
    if mode not in _MODES:
        return f"mode {mode}"
    if coordinates not in COORDINATE_MODES:
        return f"coordinate_transformation_mode {coordinates}"
    kind = graph.types[node.inputs[0]].dtype
    return "" if mil_dtype(kind) == "fp32" or (mode == "nearest" and coordinates != CROP) else f"{mode} {coordinates} of {kind}"


@op("Resize", "Upsample", since=9, parameters=(1, 2, 3), constraints=(_sampling,))
def resize(node: Node, ctx: MilContext) -> None:
    """One operator where MIL has it; else one axis after the other: a gather for nearest, a matrix product for linear and cubic."""
    axes = resampled_axes(node, ctx.graph)
    if not axes:
        ctx.pass_on(node, ctx.read(node.inputs[0]))
    elif node.attrs.get("mode", "nearest") == "nearest":
        _nearest(node, ctx, {axis: axis_matrix(node, way) for axis, way in axes.items()})
    elif grid := _grid(node, ctx, axes):
        _bilinear(node, ctx, grid)
    else:
        _weighted(node, ctx, axes)


def _nearest(node: Node, ctx: MilContext, indices: dict[int, np.ndarray]) -> None:
    x, sizes, wanted = ctx.read(node.inputs[0]), ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0])
    kind = mil_dtype(ctx.dtype(node.inputs[0]))
    indices = {axis: index for axis, index in indices.items() if not np.array_equal(index, np.arange(sizes[axis]))}
    factors = {axis: wanted[axis] // sizes[axis] for axis in indices}
    repeats = all(np.array_equal(index, np.arange(wanted[axis]) // max(factors[axis], 1)) for axis, index in indices.items())
    if indices and repeats and len(sizes) >= 3 and min(indices) >= len(sizes) - 2 and kind == "fp32":
        height, width = (factors.get(len(sizes) + axis, 1) for axis in (-2, -1))
        ctx.put(node, "upsample_nearest_neighbor", x=x, scale_factor_height=height, scale_factor_width=width)
        return
    x = ctx.cast(node, x, "int32") if kind == "bool" else x
    for axis, index in indices.items():
        x = ctx.mid(node, "gather", x=x, indices=index, axis=axis)
    ctx.pass_on(node, ctx.cast(node, x, "bool") if kind == "bool" else x)


def _grid(node: Node, ctx: MilContext, axes: dict[int, ResampledAxis]) -> str:
    """MIL's sampling mode that reads the same points with the same weights, "" when none does."""
    rank = ctx.rank(node.inputs[0])
    if node.attrs["mode"] != "linear" or coordinate_mode(node) == CROP or rank not in (3, 4) or min(axes) < 2:
        return ""
    for grid in _GRIDS:
        if all(np.allclose(axis_matrix(node, way), _weights_of(grid, way), atol=_CLOSE) for way in axes.values()):
            return grid
    return ""


def _weights_of(grid: str, way: ResampledAxis) -> np.ndarray:
    """Weights of MIL's `resize_bilinear`, by the formulas in its documentation; none that fit where those divide by zero."""
    places = np.arange(way.result, dtype=np.float64)
    if grid == "UNALIGN_CORNERS":
        places = (places + 0.5) * way.size / way.result - 0.5
    elif way.result == 1:
        return np.full((way.size, 1), np.nan)
    elif grid == "STRICT_ALIGN_CORNERS":
        places = places * (way.size - 1) / (way.result - 1)
    else:
        places = places * way.size / way.result
    return weights(np.clip(places, 0, way.size - 1), way.size)


def _bilinear(node: Node, ctx: MilContext, grid: str) -> None:
    x, wanted = ctx.read(node.inputs[0]), ctx.shape(node.outputs[0])
    if len(wanted) == 4:
        ctx.put(node, "resize_bilinear", x=x, target_size_height=wanted[2], target_size_width=wanted[3], sampling_mode=grid)
        return
    # One row: (N, C, W) as (N, C, 1, W); every grid keeps the only row.
    row = ctx.mid(node, "expand_dims", x=x, axes=[2])
    wide = ctx.mid(node, "resize_bilinear", x=row, target_size_height=1, target_size_width=wanted[2], sampling_mode=grid)
    ctx.put(node, "squeeze", x=wide, axes=[2])


def _weighted(node: Node, ctx: MilContext, axes: dict[int, ResampledAxis]) -> None:
    x: Any = ctx.tensor(node.inputs[0])
    rank = ctx.rank(node.inputs[0])
    kind = ctx.scalar(node, 0).dtype
    for axis, way in axes.items():
        matrix = np.ascontiguousarray(axis_matrix(node, way), kind)
        last = [*(place for place in range(rank) if place != axis), axis]
        turned = x if axis == rank - 1 else ctx.mid(node, "transpose", x=x, perm=last)
        turned = ctx.mid(node, "matmul", x=turned if rank > 1 else ctx.mid(node, "expand_dims", x=turned, axes=[0]), y=matrix)
        turned = turned if rank > 1 else ctx.mid(node, "squeeze", x=turned, axes=[0])
        x = turned if axis == rank - 1 else ctx.mid(node, "transpose", x=turned, perm=[int(place) for place in np.argsort(last)])
    kept = inside(node, axes, rank) if coordinate_mode(node) == CROP else np.ones(1, bool)
    if not kept.all():
        shape = ctx.shape(node.outputs[0])
        outside = np.full(shape, node.attrs.get("extrapolation_value", 0.0), kind)
        x = ctx.mid(node, "select", cond=np.broadcast_to(kept, shape), a=x, b=outside)
    ctx.pass_on(node, x)
