"""Small models whose batch is open: image, attention, recurrence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.converters.open_size_models import floats, node, saved


def image_net(path: Path) -> Path:
    """Convolutions, a slice, a flatten, and a token that is repeated for every row."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["a", "t"], ["b"], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("Slice", ["b", "begin", "end", "axes"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("MatMul", ["e", "m"], ["f"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "six"], ["wanted"], axis=0),
        node("Expand", ["token", "wanted"], ["tokens"]),
        node("Concat", ["tokens", "f"], ["y"], axis=1),
    ]
    constants = {
        "w": floats(4, 3, 3, 3), "t": floats(4, 2, 3, 3), "m": floats(2 * 5 * 15, 8), "token": floats(1, 6),
        "begin": np.int64([2, 0]), "end": np.int64([7, 15]), "axes": np.int64([2, 3]), "zero": np.int64([0]), "six": np.int64([6]),
    }  # fmt: skip
    return saved(path, nodes, constants, ["N", 3, 8, 8])


def attention(path: Path) -> Path:
    """Heads apart and together again: the batch and the length are in shapes that are computed from the input."""
    nodes = [node("MatMul", ["x", name], [f"{name}_flat"]) for name in ("q", "k", "v")]
    for name in ("q", "k", "v"):
        nodes += [
            node("Reshape", [f"{name}_flat", "heads"], [f"{name}_apart"]),
            node("Transpose", [f"{name}_apart"], [f"{name}_heads"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Transpose", ["k_heads"], ["k_turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q_heads", "k_turned"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v_heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Shape", ["x"], ["shape"]),
        node("Reshape", ["back", "shape"], ["y"]),
    ]
    constants = {"q": floats(12, 12), "k": floats(12, 12), "v": floats(12, 12), "heads": np.int64([0, 0, 3, 4])}
    return saved(path, nodes, constants, ["N", 5, 12])


def attention_of_six(path: Path) -> Path:
    """As `attention`, with the length written into the shapes."""
    nodes = []
    for name in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            node("Reshape", [f"{name}0", "heads"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "joined"], ["y"]),
    ]
    constants = {**{f"w{name}": floats(8, 8) for name in "qkv"}, "heads": np.asarray([0, 6, 2, 4]), "joined": np.asarray([0, 6, 8])}
    return saved(path, nodes, constants, ["N", 6, 8])


def recurrent(path: Path) -> Path:
    """The initial state has the batch in its shape, and the classes are masked by a comparison."""
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("LSTM", ["steps", "w", "r"], ["", "h"], hidden_size=3),
        node("Squeeze", ["h", "first"], ["last"]),
        node("Softmax", ["last"], ["p"], axis=-1),
        node("Greater", ["p", "half"], ["sure"]),
        node("Where", ["sure", "p", "zero"], ["y"]),
    ]
    constants = {"w": floats(1, 12, 4), "r": floats(1, 12, 3), "first": np.int64([0]), "half": np.float32(0.3), "zero": np.float32(0)}
    return saved(path, nodes, constants, ["N", 5, 4])


CASES = {
    "image": (image_net, (3, 8, 8)),
    "attention": (attention, (5, 12)),
    "attention of six": (attention_of_six, (6, 8)),
    "recurrent": (recurrent, (5, 4)),
}
"""Name to the model and the shape of one row of its input."""
