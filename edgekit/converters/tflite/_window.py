"""Sliding windows of convolutions and pools: where ONNX puts padding, and when TensorFlow's SAME means the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.converters._graph import Graph, Node

__all__ = ["Window", "window_of"]


@dataclass(frozen=True)
class Window:
    """One entry per spatial axis.

    Attributes:
        sizes: input sizes.
        results: output sizes.
        kernel: window sizes without dilation.
        strides: steps.
        dilations: distance of taps.
        begins: padding before.
        ends: padding after that the last window really reaches (more than declared with ``ceil_mode``, less where a stride skips it).
        declared_ends: padding after as the model declares it.
        any_size: must hold for other input sizes as well.
    """

    sizes: tuple[int, ...]
    results: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    declared_ends: tuple[int, ...]
    any_size: bool = False

    @property
    def spans(self) -> tuple[int, ...]:
        """Window sizes with dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def padding(self) -> str:
        """``VALID`` or ``SAME`` where that says it all, else ``EXPLICIT``."""
        if not any(self.begins) and not any(self.ends):
            return "VALID"
        for size, result, step, span, begin in zip(self.sizes, self.results, self.strides, self.spans, self.begins, strict=True):
            total = max(0, (result - 1) * step + span - size)
            if (step > 1 and self.any_size) or result != -(-size // step) or begin != total // 2:
                return "EXPLICIT"
        return "SAME"

    @property
    def pads(self) -> list[tuple[int, int]]:
        """Padding (before, after) per axis for an explicit pad in front of a VALID operator."""
        return list(zip(self.begins, self.ends, strict=True))

    def with_leading_axis(self) -> Window:
        """The same window with an axis of size 1 in front, for one-dimensional operators."""
        return Window(
            (1, *self.sizes),
            (1, *self.results),
            (1, *self.kernel),
            (1, *self.strides),
            (1, *self.dilations),
            (0, *self.begins),
            (0, *self.ends),
            (0, *self.declared_ends),
            self.any_size,
        )


def window_of(node: Node, graph: Graph, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool.

    Padding follows the ONNX operator specification of Conv and the pools: ``SAME_UPPER`` puts the odd element after, ``SAME_LOWER``
    before.
    """
    sizes = graph.types[node.inputs[0]].shape[2:]
    results = graph.types[node.outputs[0]].shape[2:]
    count = len(sizes)
    strides = tuple(node.attrs.get("strides") or (1,) * count)
    dilations = tuple(node.attrs.get("dilations") or (1,) * count)
    reach = [
        (result - 1) * step + (k - 1) * d + 1 - size
        for size, result, step, k, d in zip(sizes, results, strides, kernel, dilations, strict=True)
    ]
    auto = node.attrs.get("auto_pad", "NOTSET")
    declared = tuple(node.attrs.get("pads") or (0,) * (2 * count))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, each) for each in reach]
        begins = tuple(total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals)
        declared_ends = tuple(total - begin for total, begin in zip(totals, begins, strict=True))
    elif auto == "VALID":
        begins = declared_ends = (0,) * count
    else:
        begins, declared_ends = declared[:count], declared[count:]
    ends = tuple(max(0, each - begin) for each, begin in zip(reach, begins, strict=True))
    if graph.sample_of_open and auto == "NOTSET" and all(end <= declared for end, declared in zip(ends, declared_ends, strict=True)):
        ends = declared_ends  # what a stride skips at this size it reads at another
    any_size = graph.sample_of_open and auto != "SAME_UPPER"  # which is TensorFlow's SAME at every size
    return Window(sizes, results, tuple(kernel), strides, dilations, begins, ends, declared_ends, any_size)
