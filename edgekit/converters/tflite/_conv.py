"""Convolutions and transposed convolutions over one, two or three axes; weights are constants or computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import constant_inputs, float_only, operator, rank_between
from edgekit.converters.tflite._spatial import at_least_two, put_spatial, spatial
from edgekit.converters.tflite._window import Window, window_of

__all__ = ["transposed_convolution"]


def _filter(ctx: Context, name: str) -> Any:
    """Weights with the spatial axes first, then ONNX's second axis, then its first; an array where they are constant, else a tensor.

    A one-dimensional kernel gets an axis of size 1 in front.
    """
    rank = ctx.rank(name)
    order = (*range(2, rank), 1, 0)
    constant = ctx.constant(name)
    kernel = ctx.get(name, order) if constant is None else constant.transpose(order)
    return _reshaped(ctx, kernel, (1, *kernel.shape)) if rank == 3 else kernel


def _reshaped(ctx: Context, kernel: Any, shape: tuple[int, ...]) -> Any:
    return kernel.reshape(shape) if isinstance(kernel, np.ndarray) else ctx.tf.reshape(kernel, shape)


def _tensor(ctx: Context, kernel: Any) -> Any:
    return ctx.literal(kernel) if isinstance(kernel, np.ndarray) else kernel


def _add_bias(node: Node, ctx: Context, y: Any) -> Any:
    return ctx.tf.nn.bias_add(y, ctx.get(node.inputs[2])) if node.input(2) else y


# --- convolution -----------------------------------------------------------------------------------------------------------------------------


@operator("Conv", rules=(float_only, rank_between(3, 5)))
def conv(node: Node, ctx: Context) -> None:
    """Plain, grouped or depthwise."""
    window = at_least_two(window_of(node, ctx.graph, ctx.shape(node.inputs[1])[2:]))
    x, kernel, padding = spatial(node, ctx), _filter(ctx, node.inputs[1]), window.padding
    if padding == "EXPLICIT":
        x, padding = _padded(ctx, x, window), "VALID"
    group = node.attrs.get("group", 1)
    convolve = _conv3d if len(window.kernel) == 3 else _conv2d
    y = convolve(ctx, x, kernel, window, padding, group)
    put_spatial(node, ctx, _add_bias(node, ctx, y))


def _padded(ctx: Context, x: Any, window: Window) -> Any:
    """Zeros around the image; where they must fit other sizes too, by the operator that the converter does not melt into SAME padding."""
    amounts = [(0, 0), *window.pads, (0, 0)]
    if window.any_size:  # becomes PAD again, see `_open_sizes`
        return ctx.tf.raw_ops.PadV2(input=x, paddings=amounts, constant_values=ctx.tf.zeros((), x.dtype))
    return ctx.tf.pad(x, amounts)


def _conv2d(ctx: Context, x: Any, kernel: Any, window: Window, padding: str, group: int) -> Any:
    """The kernels compute groups themselves: they read their number from the filter's channels."""
    settings = {"strides": [1, *window.strides[-2:], 1], "padding": padding, "dilations": [1, *window.dilations[-2:], 1]}
    channels = x.shape[3]
    if group == channels and group > 1:
        # (kh, kw, 1, C * M) to (kh, kw, C, M)
        depthwise = _reshaped(ctx, kernel, (*kernel.shape[:2], channels, kernel.shape[3] // channels))
        return ctx.tf.raw_ops.DepthwiseConv2dNative(input=x, filter=_tensor(ctx, depthwise), **settings)
    if group > 1 and not isinstance(kernel, np.ndarray):
        # Only constant filters may have fewer channels than the image: XNNPACK, which knows groups, takes no other filters.
        parts = zip(ctx.tf.split(x, group, axis=3), ctx.tf.split(kernel, group, axis=3), strict=True)
        return ctx.tf.concat([ctx.tf.raw_ops.Conv2D(input=part, filter=own, **settings) for part, own in parts], axis=3)
    return ctx.tf.raw_ops.Conv2D(input=x, filter=_tensor(ctx, kernel), **settings)


def _conv3d(ctx: Context, x: Any, kernel: Any, window: Window, padding: str, group: int) -> Any:
    """CONV_3D where it can, else the sum of two-dimensional convolutions, one for each tap along the first axis."""
    tf = ctx.tf
    if group == 1 and set(window.dilations) == {1}:
        return tf.raw_ops.Conv3D(input=x, filter=_tensor(ctx, kernel), strides=[1, *window.strides, 1], padding=padding)
    if padding == "SAME":
        x = tf.pad(x, [(0, 0), *window.pads, (0, 0)])
    batch, _, height, width, channels = x.shape
    depth, step = window.results[0], window.strides[0]
    total = None
    for tap in range(window.kernel[0]):
        begin = tap * window.dilations[0]
        slab = x[:, begin : begin + (depth - 1) * step + 1 : step]
        flat = tf.reshape(slab, (batch * depth, height, width, channels))
        y = _conv2d(ctx, flat, kernel[tap], window, "VALID", group)
        total = y if total is None else total + y
    assert total is not None  # a kernel has at least one tap
    return tf.reshape(total, (batch, depth, *total.shape[1:]))


# --- transposed convolution ------------------------------------------------------------------------------------------------------------------


def _spreadable(node: Node, graph: Graph) -> str:
    """Weights are constants where the kernel is dilated."""
    dilated = any(step != 1 for step in node.attrs.get("dilations") or ())
    return f"input 1 ({node.inputs[1]!r}) is computed" if dilated and node.inputs[1] not in graph.constants else ""


@operator("ConvTranspose", rules=(float_only, rank_between(3, 5), _spreadable))
def conv_transpose(node: Node, ctx: Context) -> None:
    """Computed without padding, then cut; a dilated kernel is spread with zeros."""
    sizes, results = ctx.shape(node.inputs[0])[2:], ctx.shape(node.outputs[0])[2:]
    count, group = len(sizes), node.attrs.get("group", 1)
    strides = tuple(node.attrs.get("strides") or (1,) * count)
    dilations = tuple(node.attrs.get("dilations") or (1,) * count)
    spans = tuple((size - 1) * step + 1 for size, step in zip(ctx.shape(node.inputs[1])[2:], dilations, strict=True))
    begins = _transpose_begins(node, sizes, results, strides, spans)
    if count == 1:
        results, strides, begins, dilations = (1, *results), (1, *strides), (0, *begins), (1, *dilations)
    kernel = _spread(_filter(ctx, node.inputs[1]), dilations)
    x = spatial(node, ctx)
    if group == 1 and _is_apart(ctx, node, x, kernel, strides, begins, results):
        put_spatial(node, ctx, _blocks(node, ctx, x, kernel))
        return
    if group == 1:
        y = transposed_convolution(ctx, x, kernel, strides, begins, results)
    else:
        parts = ctx.tf.split(x, group, axis=-1)
        kernels = np.split(kernel, group, axis=-1) if isinstance(kernel, np.ndarray) else ctx.tf.split(kernel, group, axis=-1)
        y = ctx.tf.concat(
            [transposed_convolution(ctx, part, own, strides, begins, results) for part, own in zip(parts, kernels, strict=True)], axis=-1
        )
    put_spatial(node, ctx, _add_bias(node, ctx, y))


def _is_apart(
    ctx: Context, node: Node, x: Any, kernel: Any, strides: tuple[int, ...], begins: tuple[int, ...], results: tuple[int, ...]
) -> bool:
    """True where every input position writes a square block of its own."""
    known = isinstance(kernel, np.ndarray) and (not node.input(2) or ctx.constant(node.inputs[2]) is not None)
    square = len(strides) == 2 and strides[0] == strides[1] > 1 and tuple(kernel.shape[:2]) == strides
    return known and square and not any(begins) and tuple(results) == tuple(size * strides[0] for size in x.shape[1:-1])


def _blocks(node: Node, ctx: Context, x: Any, kernel: np.ndarray) -> Any:
    """A 1x1 convolution to all elements of a block, which then take their places.

    For 24 channels and blocks of 2x2 on 120x160 that took 1.6 ms where TRANSPOSE_CONV took 2.8 ms (LiteRT 2.3.0, one thread).
    """
    size, _, outputs, inputs = kernel.shape
    flat = kernel.transpose(3, 0, 1, 2).reshape(1, 1, inputs, size * size * outputs)
    y = ctx.tf.raw_ops.Conv2D(input=x, filter=ctx.literal(flat), strides=[1, 1, 1, 1], padding="VALID")
    bias = ctx.constant(node.input(2))
    y = y if bias is None else ctx.tf.nn.bias_add(y, ctx.literal(np.tile(bias, size * size)))
    return ctx.tf.nn.depth_to_space(y, size)


def transposed_convolution(
    ctx: Context, x: Any, kernel: Any, strides: tuple[int, ...], begins: tuple[int, ...], results: tuple[int, ...]
) -> Any:
    """The transposed convolution over two or three axes whose result is cut at ``begins`` and then has the sizes ``results``.

    Args:
        ctx: the model under construction.
        x: ``(batch, *sizes, inputs)``.
        kernel: ``(*window, outputs, inputs)``, array or tensor, not dilated.
        strides: per axis.
        begins: leading positions to leave out.
        results: sizes to keep.
    """
    sizes, spans = x.shape[1:-1], kernel.shape[:-2]
    function = ctx.tf.raw_ops.Conv2DBackpropInput if len(spans) == 2 else ctx.tf.raw_ops.Conv3DBackpropInputV2
    # SAME cuts half of what the window overlaps, which is what decoders ask for: then nothing is left to slice.
    same = all(
        result == size * step and begin == max(span - step, 0) // 2
        for size, result, step, span, begin in zip(sizes, results, strides, spans, begins, strict=True)
    )
    # Else the size that reaches every wanted position; VALID allows up to stride - 1 rows that no tap touches.
    full = [
        result if same else max((size - 1) * step + span, begin + result)
        for size, step, span, begin, result in zip(sizes, strides, spans, begins, results, strict=True)
    ]
    limits = [size * step + span - 1 for size, step, span in zip(sizes, strides, spans, strict=True)]
    reached = full if same else [min(size, limit) for size, limit in zip(full, limits, strict=True)]
    y = function(
        input_sizes=[x.shape[0], *reached, kernel.shape[-2]],
        filter=_tensor(ctx, kernel),
        out_backprop=x,
        strides=[1, *strides, 1],
        padding="SAME" if same else "VALID",
    )
    if reached != full:  # output_padding beyond the stride: positions that nothing reaches are zero
        y = ctx.tf.pad(y, [(0, 0), *((0, size - got) for size, got in zip(full, reached, strict=True)), (0, 0)])
    if list(results) != full:
        y = ctx.tf.slice(y, [0, *begins, 0], [y.shape[0], *results, y.shape[-1]])
    return y


def _spread(kernel: Any, dilations: tuple[int, ...]) -> Any:
    """A kernel ``(*window, outputs, inputs)`` with ``dilation - 1`` zeros between its taps."""
    if set(dilations) == {1}:
        return kernel
    spans = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:-2], dilations, strict=True)]
    spread = np.zeros((*spans, *kernel.shape[-2:]), kernel.dtype)
    spread[tuple(slice(None, None, step) for step in dilations)] = kernel
    return spread


def _transpose_begins(
    node: Node, sizes: tuple[int, ...], results: tuple[int, ...], strides: tuple[int, ...], spans: tuple[int, ...]
) -> tuple[int, ...]:
    """How many leading positions to cut, as the ONNX specification of ConvTranspose distributes padding."""
    count = len(sizes)
    auto = node.attrs.get("auto_pad", "NOTSET")
    extra = tuple(node.attrs.get("output_padding") or (0,) * count)
    if auto in ("NOTSET", "VALID") and not node.attrs.get("output_shape"):
        return tuple((node.attrs.get("pads") or (0,) * (2 * count))[:count]) if auto == "NOTSET" else (0,) * count
    totals = [
        max(0, step * (size - 1) + more + span - result)
        for size, result, step, span, more in zip(sizes, results, strides, spans, extra, strict=True)
    ]
    # "if auto_pad == SAME_UPPER: pads[start] = total / 2, else pads[end] = total / 2"
    return tuple(total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals)


# --- columns back to images ------------------------------------------------------------------------------------------------------------------


def _block_axes(node: Node, graph: Graph) -> str:
    """Blocks have one to three axes."""
    count = graph.types[node.outputs[0]].rank - 2
    return "" if 1 <= count <= 3 else f"blocks have {count} axes"


@operator("Col2Im", rules=(float_only, constant_inputs(1, 2), _block_axes))
def col2im(node: Node, ctx: Context) -> None:
    """Add overlapping blocks: a transposed convolution whose kernel moves each of a block's elements to its place."""
    blocks, after = tuple(int(size) for size in np.asarray(ctx.constant(node.inputs[2]))), ctx.shape(node.outputs[0])
    count, (batch, channels), images = len(blocks), after[:2], after[2:]
    strides, dilations = (tuple(node.attrs.get(key) or (1,) * count) for key in ("strides", "dilations"))
    pads = tuple(node.attrs.get("pads") or (0,) * (2 * count))
    spans = tuple((size - 1) * step + 1 for size, step in zip(blocks, dilations, strict=True))
    sizes = tuple(
        (image + before + behind - span) // step + 1
        for image, before, behind, span, step in zip(images, pads[:count], pads[count:], spans, strides, strict=True)
    )
    taps = int(np.prod(blocks))
    columns = ctx.tf.reshape(ctx.get(node.inputs[0]), (batch * channels, taps, int(np.prod(sizes))))
    lead = (1,) if count == 1 else ()
    x = ctx.tf.reshape(ctx.tf.transpose(columns, (0, 2, 1)), (batch * channels, *lead, *sizes, taps))
    kernel = np.eye(taps, dtype=np.float32).reshape(*lead, *blocks, 1, taps)
    kernel = _spread(kernel, (*lead, *dilations))
    y = transposed_convolution(ctx, x, kernel, (*lead, *strides), (*(0 for _ in lead), *pads[:count]), (*lead, *images))
    ctx.put(node.outputs[0], ctx.tf.reshape(y, after))
