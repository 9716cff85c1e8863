"""Small models whose height, width or length is open, for the targets that keep it so and those that make it so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle
from edgekit.converters import build

node = helper.make_node
_random = np.random.default_rng(101)


def floats(*shape: int) -> np.ndarray:
    return (_random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def saved(path: Path, nodes: list[onnx.NodeProto], constants: Mapping[str, object], shape: list[object]) -> Path:
    """``x`` of a shape with symbols to ``y``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString())
    return path


def attention(path: Path) -> Path:
    """Pixels attend to each other: height times width is in one reshape, each of them in the next."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[4, 4]),
        node("Shape", ["a"], ["shape"]),
        node("Reshape", ["a", "flat"], ["f"]),
        node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["t", "f"], ["q"]),
        node("Softmax", ["q"], ["p"], axis=-1),
        node("MatMul", ["p", "t"], ["m"]),
        node("Transpose", ["m"], ["back"], perm=[0, 2, 1]),
        node("Reshape", ["back", "shape"], ["y"]),
    ]
    return saved(path, nodes, {"w": floats(6, 3, 4, 4), "flat": np.int64([0, 6, -1])}, ["N", 3, "H", "W"])


def pyramid(path: Path) -> Path:
    """Half the size and back by interpolation, slices with ends counted from both sides, padding, pooling, a channel attention."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Resize", ["a", "", "scales"], ["b"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Slice", ["b", "begin", "end", "axes"], ["c"]),
        node("Pad", ["c", "pads"], ["d"]),
        node("AveragePool", ["d"], ["e"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["e"], ["g"]),
        node("HardSigmoid", ["g"], ["s"]),
        node("Mul", ["e", "s"], ["y"]),
    ]
    constants = {
        "w": floats(4, 3, 3, 3),
        "scales": np.float32([1, 1, 2, 2]),
        "begin": np.int64([1, 2]),
        "end": np.int64([-1, 2**40]),
        "axes": np.int64([2, 3]),
        "pads": np.int64([0, 0, 1, 2, 0, 0, 0, 1]),
    }
    return saved(path, nodes, constants, ["N", 3, "H", "W"])


def halves(path: Path) -> Path:
    """Halved with padding that is SAME at odd sizes only, and brought back to a size that is read off a tensor."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["a"], ["sa"], start=2),
        node("Shape", ["b"], ["sb"], end=2),
        node("Concat", ["sb", "sa"], ["sizes"], axis=0),
        node("Resize", ["b", "", "", "sizes"], ["c"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Concat", ["a", "c"], ["y"], axis=1),
    ]
    return saved(path, nodes, {"w": floats(4, 3, 3, 3)}, ["N", 3, "H", "W"])


def network_of_four(path: Path) -> Path:
    """Takes multiples of 4 only, as detectors take multiples of 32: what was halved twice and doubled twice is added to what was not."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "v"], ["b"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Resize", ["b", "", "scales"], ["c"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Add", ["a", "c"], ["d"]),
        node("ConvTranspose", ["d", "t"], ["e"], strides=[2, 2]),
        node("Sigmoid", ["e"], ["f"]),
        node("Add", ["f", "x"], ["y"]),
    ]
    constants = {"w": floats(4, 3, 3, 3), "v": floats(4, 4, 3, 3), "scales": np.float32([1, 1, 2, 2]), "t": floats(4, 3, 2, 2)}
    return saved(path, nodes, constants, ["N", 3, "H", "W"])


def sequence(path: Path) -> Path:
    """Over an open number of steps: a softmax and a mean."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Softmax", ["a"], ["b"], axis=1),
        node("ReduceMax", ["b"], ["y"], axes=[1], keepdims=0),
    ]
    return saved(path, nodes, {"w": floats(6, 8)}, ["N", "T", 6])


def same_padding(path: Path) -> Path:
    """SAME padding: how much depends on whether a size is odd."""
    return saved(
        path, [node("Conv", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER")], {"w": floats(4, 3, 3, 3)}, ["N", 3, "H", "W"]
    )


def positions(path: Path) -> Path:
    """Every column plus its number: values, not only shapes, that depend on the size."""
    nodes = [
        node("Shape", ["x"], ["n"], start=3),
        node("Squeeze", ["n"], ["count"]),
        node("Range", ["zero", "count", "one"], ["places"]),
        node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
        node("Add", ["x", "numbers"], ["y"]),
    ]
    return saved(path, nodes, {"zero": np.int64(0), "one": np.int64(1)}, [1, 3, 8, "W"])


def built(device: str, path: Path, shape: tuple[int, ...], precision: str = "fp32") -> Bundle:
    """The model at ``path`` for a device, with the open sizes of ``shape``, beside it."""
    return build(
        path,
        device=device,
        shapes={"x": shape},
        precision=precision,
        output=path.parent / "bundle",
        isolate=False,
        cache=False,
        reproducer=False,
    )
