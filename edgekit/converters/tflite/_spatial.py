"""Images between logical order and channels-last, for convolutions and pools."""

from __future__ import annotations

from typing import Any

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import channels_last
from edgekit.converters.tflite._window import Window

__all__ = ["at_least_two", "put_spatial", "spatial"]


def spatial(node: Node, ctx: Context) -> Any:
    """The first input channels-last, a one-dimensional one with a spatial axis of size 1 in front."""
    rank = ctx.rank(node.inputs[0])
    x = ctx.get(node.inputs[0], channels_last(rank))
    if rank == 3:
        batch, length, channels = x.shape
        x = ctx.tf.reshape(x, (batch, 1, length, channels))
    return x


def put_spatial(node: Node, ctx: Context, y: Any, index: int = 0) -> None:
    """Record a channels-last result of `spatial`'s rank."""
    rank = ctx.rank(node.outputs[index])
    if rank == 3:
        y = ctx.tf.reshape(y, (y.shape[0], y.shape[2], y.shape[3]))
    ctx.put(node.outputs[index], y, channels_last(rank))


def at_least_two(window: Window) -> Window:
    """A window with the axis of size 1 that `spatial` adds."""
    return window.with_leading_axis() if len(window.kernel) == 1 else window
