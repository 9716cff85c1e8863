"""Neural-network operators with odd attributes; each row is converted and compared with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.converters.tflite.operator_cases import Case, conv, floats, ints, positive, resize

_IMAGE = floats(1, 3, 9, 8)
_VOLUME = floats(1, 4, 6, 7, 5)
_GRID = np.random.default_rng(3).uniform(-1.4, 1.4, (2, 4, 5, 2)).astype(np.float32)
_GRID_3D = np.random.default_rng(4).uniform(-1.4, 1.4, (1, 3, 4, 5, 3)).astype(np.float32)
_BOXES = np.asarray([[0, 0, 7, 8], [1.5, 2.5, 6.0, 4.0], [-3, 5, 9, 12], [4, 4, 4.2, 4.1]], np.float32)
_ACTIVATIONS = {"activations": ["HardSigmoid", "Elu", "LeakyRelu"], "activation_alpha": [0.3, 0.7, 0.2], "activation_beta": [0.4]}


def three(op: str, name: str, *weights: np.ndarray, **attrs: Any) -> Case:
    return Case(f"{op}-three-{name}", op, (_VOLUME,), weights, attrs)


def sampled(mode: str, padding: str, align: int) -> Case:
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    return Case(f"GridSample-{mode}-{padding}-{align}", "GridSample", (floats(2, 3, 5, 6),), (_GRID,), attrs, opset=20)


def steps(op: str, name: str, gates: int, *, length: int = 9, ways: int = 1, lengths: Any = None, **attrs: Any) -> Case:
    """A recurrent operator with three features, five hidden units and a batch of two."""
    weights = [floats(ways, gates * 5, 3) * 0.7, floats(ways, gates * 5, 5) * 0.7, floats(ways, 2 * gates * 5) * 0.7]
    more = [np.asarray(lengths, np.int32)] if lengths else []
    count = 3 if op == "LSTM" else 2
    return Case(f"{op}-{name}", op, (floats(length, 2, 3),), (*weights, *more), {"hidden_size": 5, **attrs}, 22, count)


def unpooled() -> Case:
    indices = np.asarray([5, 7, 13, 12, 20, 22], np.int64).reshape(1, 1, 2, 3)
    return Case("MaxUnpool", "MaxUnpool", (floats(1, 1, 2, 3),), (indices,), {"kernel_shape": [2, 2], "strides": [2, 2]})


def blocks(name: str, channels: int, taps: list[int], image: list[int], **attrs: Any) -> Case:
    """Col2Im; the number of blocks follows from the attributes."""
    count = len(taps)
    pads, steps_, wide = (
        attrs.get(key, [value] * n) for key, value, n in (("pads", 0, 2 * count), ("strides", 1, count), ("dilations", 1, count))
    )
    sizes = [(image[i] + pads[i] + pads[i + count] - (taps[i] - 1) * wide[i] - 1) // steps_[i] + 1 for i in range(count)]
    x = floats(2, channels * int(np.prod(taps)), int(np.prod(sizes)))
    return Case(f"Col2Im-{name}", "Col2Im", (x,), (ints(*image), ints(*taps)), attrs, opset=18)


def moved(name: str, shape: tuple[int, ...], group: int, offset_group: int, *, mask: bool, **attrs: Any) -> Case:
    """DeformConv with computed offsets."""
    batch, channels, height, width = shape
    pads, steps_ = attrs.get("pads", [0] * 4), attrs.get("strides", [1, 1])
    area = tuple((size + pads[i] + pads[i + 2] - 3) // steps_[i] + 1 for i, size in enumerate((height, width)))
    weights = floats(4, channels // group, 3, 3)
    offsets = floats(batch, offset_group * 18, *area) * 1.5
    extra = (floats(4), positive(batch, offset_group * 9, *area)) if mask else ()
    attrs = {"kernel_shape": [3, 3], "group": group, "offset_group": offset_group, **attrs}
    return Case(f"DeformConv-{name}", "DeformConv", (floats(*shape),), (weights, offsets, *extra), attrs, opset=19)


def random_window(op: str, index: int) -> Case:
    """Seeded attributes of a pool or a transposed convolution that leave something to compute."""
    random = np.random.default_rng([41, index])
    count = int(random.integers(1, 4))
    sizes, kernel = [int(size) for size in random.integers(5, 9, count)], [int(size) for size in random.integers(1, 4, count)]
    attrs: dict[str, Any] = {"strides": [int(step) for step in random.integers(1, 4, count)]}
    mode = random.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if op == "ConvTranspose" or mode in ("NOTSET", "VALID"):
        attrs["dilations"] = [int(step) for step in random.integers(1, 3, count)]
    if mode == "NOTSET":
        attrs["pads"] = [int(random.integers(0, size)) for size in (*kernel, *kernel)]
    else:
        attrs["auto_pad"] = str(mode)
        attrs["strides"] = [min(pair) for pair in zip(attrs["strides"], kernel, strict=True)]  # else ONNX Runtime finds negative padding
    name, x = f"{op}-random-{index}", floats(2, 4, *sizes)
    if op == "ConvTranspose":
        group = int(random.choice([1, 1, 2]))
        if mode == "NOTSET":
            attrs["output_padding"] = [int(random.integers(0, step)) for step in attrs["strides"]]
        return conv(name.removeprefix(f"{op}-"), x, floats(4, 3, *kernel), floats(3 * group), op=op, group=group, **attrs)
    attrs |= {"kernel_shape": kernel, "ceil_mode": int(random.integers(0, 2)) if not any(attrs.get("pads", [1])) else 0}
    if op == "AveragePool":
        attrs["count_include_pad"] = int(random.integers(0, 2))
    return Case(name, op, (x,), attrs=attrs, opset=19 if op == "AveragePool" else 17)


CASES: list[Case] = [
    # convolutions
    Case("Conv-computed", "Conv", (_IMAGE, floats(4, 3, 3, 3), floats(4)), attrs={"pads": [1, 1, 1, 1]}),
    Case("Conv-computed-depthwise", "Conv", (_IMAGE, floats(6, 1, 3, 3)), attrs={"group": 3}),
    Case("Conv-computed-grouped", "Conv", (floats(1, 4, 6, 6), floats(6, 2, 3, 3)), attrs={"group": 2}),
    Case("Conv-computed-one-axis", "Conv", (floats(2, 3, 10), floats(5, 3, 3), floats(5)), attrs={"strides": [2]}),
    conv("grouped-uneven", floats(2, 6, 7, 6), floats(9, 2, 3, 2), floats(9), group=3, pads=[0, 1, 2, 0], strides=[2, 1]),
    conv("grouped-dilated", floats(1, 4, 9, 8), floats(4, 2, 3, 3), group=2, dilations=[2, 2], pads=[2, 2, 2, 2]),
    conv("grouped-one-axis", floats(2, 6, 9), floats(4, 3, 3), group=2, pads=[1, 1]),
    conv("stride-over-kernel", _IMAGE, floats(4, 3, 2, 2), strides=[3, 3]),
    three("Conv", "plain", floats(3, 4, 2, 3, 3), floats(3), pads=[1, 0, 1, 0, 1, 1]),
    three("Conv", "same", floats(3, 4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2, 2]),
    three("Conv", "lower", floats(3, 4, 2, 2, 2), auto_pad="SAME_LOWER"),
    three("Conv", "dilated", floats(3, 4, 2, 2, 2), dilations=[2, 2, 1], strides=[2, 1, 1]),
    three("Conv", "grouped", floats(6, 2, 2, 3, 3), group=2, pads=[1, 1, 1, 1, 1, 1]),
    three("Conv", "depthwise", floats(8, 1, 3, 3, 3), floats(8), group=4, pads=[1, 1, 1, 1, 1, 1], strides=[1, 2, 2]),
    Case("Conv-three-computed", "Conv", (_VOLUME, floats(3, 4, 2, 3, 3))),
    conv("same-cut", floats(1, 3, 4, 5), floats(3, 2, 4, 4), floats(2), op="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1]),
    conv("lower", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("valid", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", auto_pad="VALID", strides=[2, 2]),
    conv("shape", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", output_shape=[10, 12], strides=[2, 2]),
    conv("apart", floats(1, 3, 4, 5), floats(3, 2, 2, 2), op="ConvTranspose", strides=[3, 3], output_padding=[2, 1]),
    conv("grouped-dilated", floats(1, 4, 4, 5), floats(4, 1, 3, 3), op="ConvTranspose", group=4, strides=[2, 1], dilations=[1, 2]),
    Case("ConvTranspose-computed", "ConvTranspose", (floats(1, 3, 4, 5), floats(3, 2, 3, 3), floats(2)), attrs={"strides": [2, 2]}),
    three("ConvTranspose", "plain", floats(4, 2, 2, 3, 3), floats(2), strides=[2, 2, 2], pads=[0, 1, 0, 0, 1, 1]),
    three("ConvTranspose", "grouped", floats(4, 1, 2, 2, 2), group=2, strides=[2, 1, 2]),
    three("ConvTranspose", "dilated", floats(4, 2, 2, 2, 2), dilations=[2, 1, 2]),
    blocks("plain", 2, [2, 3], [5, 6]),
    blocks("strides-pads", 1, [3, 3], [7, 8], strides=[2, 2], pads=[1, 0, 2, 1]),
    blocks("dilated", 2, [2, 2], [6, 6], dilations=[2, 3]),
    blocks("one-axis", 2, [3], [9], strides=[2]),
    blocks("three-axes", 1, [1, 2, 2], [3, 4, 5]),
    # pools
    *(three(op, "stride", kernel_shape=[2, 3, 2], strides=[2, 2, 1]) for op in ("MaxPool", "AveragePool")),
    *(three(op, "pads", kernel_shape=[2, 3, 3], pads=[1, 1, 0, 0, 1, 1], strides=[1, 2, 2]) for op in ("MaxPool", "AveragePool", "LpPool")),
    three("MaxPool", "dilated", kernel_shape=[2, 2, 2], dilations=[2, 3, 1]),
    three("AveragePool", "count", kernel_shape=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1], count_include_pad=1, strides=[2, 2, 2]),
    three("MaxPool", "same", kernel_shape=[3, 2, 3], strides=[2, 2, 2], auto_pad="SAME_UPPER"),
    Case(
        "MaxPool-uint8",
        "MaxPool",
        ((np.abs(_IMAGE) * 80).astype(np.uint8),),
        attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        opset=12,
    ),
    Case("MaxPool-int8", "MaxPool", ((_IMAGE * 30).astype(np.int8),), attrs={"kernel_shape": [2, 2], "strides": [2, 2]}, opset=12),
    Case(
        "MaxPool-where",
        "MaxPool",
        (floats(2, 3, 9, 8),),
        attrs={"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]},
        outputs=2,
    ),
    Case("MaxPool-where-columns", "MaxPool", (_IMAGE,), attrs={"kernel_shape": [2, 2], "strides": [2, 2], "storage_order": 1}, outputs=2),
    Case("MaxPool-where-one-axis", "MaxPool", (floats(2, 3, 11),), attrs={"kernel_shape": [3], "dilations": [2]}, outputs=2),
    Case("MaxPool-where-three", "MaxPool", (_VOLUME,), attrs={"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}, outputs=2),
    Case(
        "AveragePool-dilated-pads",
        "AveragePool",
        (_IMAGE,),
        attrs={"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
        opset=19,
    ),
    Case("AveragePool-ceil-wide", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, opset=19),
    Case("GlobalLpPool", "GlobalLpPool", (_IMAGE,), attrs={"p": 3}, after_conv=True),
    *(Case(f"LpPool-{p}", "LpPool", (_IMAGE,), attrs={"kernel_shape": [3, 2], "p": p, "pads": [1, 0, 1, 0]}) for p in (1, 2, 3)),
    Case("LpPool-one-axis", "LpPool", (floats(1, 3, 10),), attrs={"kernel_shape": [3], "strides": [2]}),
    unpooled(),
    # normalisation
    Case("BatchNormalization-computed", "BatchNormalization", (_IMAGE, floats(3), floats(3), floats(3), positive(3)), after_conv=True),
    Case(
        "BatchNormalization-training",
        "BatchNormalization",
        (floats(2, 3, 4, 5),),
        (floats(3), floats(3), floats(3), positive(3)),
        {"training_mode": 1, "momentum": 0.7},
        outputs=3,
    ),
    Case("InstanceNormalization-computed", "InstanceNormalization", (floats(2, 3, 9), floats(3), floats(3))),
    Case("LayerNormalization-statistics", "LayerNormalization", (floats(2, 3, 8),), (floats(3, 8), floats(3, 8)), {"axis": 1}, outputs=3),
    Case("RMSNormalization", "RMSNormalization", (floats(2, 3, 8),), (floats(8),), {"axis": -1}, 23),
    *(Case(f"LpNormalization-{p}", "LpNormalization", (_IMAGE,), attrs={"p": p, "axis": 1}, after_conv=True) for p in (1, 2)),
    *(Case(f"LRN-{size}", "LRN", (floats(1, 7, 3, 4),), attrs={"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.5}) for size in (3, 5)),
    # sampling
    *(sampled("linear", padding, align) for padding in ("zeros", "border", "reflection") for align in (0, 1)),
    *(sampled("nearest", padding, 0) for padding in ("zeros", "border", "reflection")),
    sampled("cubic", "zeros", 1),
    sampled("cubic", "reflection", 0),
    Case("GridSample-computed", "GridSample", (floats(2, 3, 5, 6), _GRID), attrs={"padding_mode": "reflection"}, opset=16),
    Case("GridSample-three", "GridSample", (floats(1, 2, 4, 5, 6),), (_GRID_3D,), {"padding_mode": "border"}, 20),
    *(
        Case(
            f"RoiAlign-{mode}-{coordinates}-{ratio}",
            "RoiAlign",
            (floats(2, 3, 10, 9),),
            (_BOXES, ints(0, 1, 1, 0)),
            {
                "mode": mode,
                "coordinate_transformation_mode": coordinates,
                "sampling_ratio": ratio,
                "output_height": 3,
                "output_width": 2,
                "spatial_scale": 0.8,
            },
        )
        for mode, ratio in (("avg", 0), ("avg", 2), ("max", 2))
        for coordinates in ("half_pixel", "output_half_pixel")
    ),
    Case(
        "RoiAlign-computed",
        "RoiAlign",
        (floats(2, 3, 10, 9), _BOXES, ints(0, 1, 1, 0)),
        attrs={"sampling_ratio": 2, "output_height": 2, "output_width": 3},
    ),
    moved("plain", (1, 2, 6, 7), 1, 1, mask=False),
    moved("groups", (2, 4, 6, 7), 2, 2, mask=True, pads=[1, 1, 1, 1], strides=[2, 1]),
    # resize
    resize("linear-antialias", _IMAGE, sizes=[1, 3, 4, 5], opset=18, mode="linear", antialias=1),
    resize("cubic-antialias", _IMAGE, scales=[1, 1, 0.6, 0.5], opset=18, mode="cubic", antialias=1),
    resize("not-larger", _IMAGE, sizes=[20, 20], opset=18, axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    resize("not-smaller", _IMAGE, sizes=[6, 4], opset=18, axes=[2, 3], keep_aspect_ratio_policy="not_smaller", mode="linear"),
    Case(
        "Resize-region",
        "Resize",
        (_IMAGE,),
        (np.asarray([0, 0, -0.1, 0.2, 1, 1, 0.7, 1.3], np.float32), None, ints(1, 3, 6, 7)),
        {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "extrapolation_value": 2.5},
        13,
    ),
    Case("Resize-nearest-int", "Resize", ((_IMAGE * 50).astype(np.int32),), (None, np.asarray([1, 1, 2, 1.5], np.float32)), {}, 13),
    # recurrent
    steps("RNN", "plain", 1),
    steps("RNN", "both-ways", 1, ways=2, direction="bidirectional", activations=["Relu", "Tanh"], clip=0.5),
    steps("RNN", "ragged", 1, lengths=[9, 4], direction="reverse", activations=["Affine"], activation_alpha=[0.5], activation_beta=[0.1]),
    steps("GRU", "loop", 3),
    steps("GRU", "ragged", 3, lengths=[5, 9], ways=2, direction="bidirectional", linear_before_reset=1),
    steps("GRU", "clip", 3, length=3, clip=0.4, activations=["Sigmoid", "Softsign"]),
    steps(
        "GRU",
        "reverse",
        3,
        direction="reverse",
        activations=["HardSigmoid", "ScaledTanh"],
        activation_alpha=[0.3, 1.2],
        activation_beta=[0.4, 0.8],
    ),
    steps("LSTM", "loop", 4),
    steps("LSTM", "ragged", 4, lengths=[3, 8], ways=2, direction="bidirectional"),
    steps("LSTM", "ragged-short", 4, length=3, lengths=[3, 1], direction="reverse"),
    steps("LSTM", "activations", 4, **_ACTIVATIONS),
    steps("LSTM", "clip", 4, length=2, clip=0.3),
    steps("LSTM", "coupled", 4, length=2, input_forget=1),
    # attributes drawn at random
    *(random_window(op, index) for op in ("ConvTranspose", "MaxPool", "AveragePool") for index in range(10)),
]
