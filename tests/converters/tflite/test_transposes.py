"""How many TRANSPOSE operators small graphs of known structure end with: exact numbers, and the numbers of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

_random = np.random.default_rng(12)


class Net:
    """Nodes with weights made on the way; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}", **attrs))
        return names[0]

    def const(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weights(self, *shape: int) -> str:
        return self.const((_random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def conv(self, x: str, outputs: int, inputs: int, size: int = 3, **attrs: object) -> str:
        return self.op("Conv", x, self.weights(outputs, inputs // int(attrs.get("group", 1)), size, size), pads=[size // 2] * 4, **attrs)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.const(np.asarray(shape, np.int64)))

    def gemm(self, x: str, outputs: int, inputs: int) -> str:
        return self.op("Gemm", x, self.weights(outputs, inputs), self.weights(outputs), transB=1)

    def model(self, result: str, shape: tuple[int, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.UNDEFINED, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def residual(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 4))
    return net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 8, 8)), 8, 8))


def concat(net: Net) -> str:
    x = net.conv("x", 8, 4)
    joined = net.op("Concat", x, net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), net.conv("x", 4, 4, 1), axis=1)
    return net.conv(joined, 4, 20, 1)


def split_pad_slice(net: Net) -> str:
    x = net.op("Split", net.conv("x", 8, 4), outputs=2, axis=1)
    y = net.op("Pad", x, net.const(np.asarray([0, 0, 1, 0, 0, 0, 0, 2], np.int64)))
    y = net.op("Slice", y, *(net.const(np.asarray(each, np.int64)) for each in ([1, 0], [3, 6], [1, 2])))
    return net.conv(y, 4, 2)


def flatten(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 4))
    return net.gemm(net.op("Relu", net.gemm(net.op("Flatten", x), 10, 8 * 8 * 6)), 3, 10)


def flatten_matmul(net: Net) -> str:
    x = net.reshape(net.conv("x", 8, 4), 1, -1)
    return net.op("MatMul", x, net.weights(8 * 8 * 6, 5))


def squeeze_excite(net: Net) -> str:
    x = net.conv("x", 8, 4)
    gate = net.op("Flatten", net.op("GlobalAveragePool", x))
    gate = net.op("Sigmoid", net.gemm(net.op("Relu", net.gemm(gate, 2, 8)), 8, 2))
    return net.conv(net.op("Mul", x, net.reshape(gate, 1, 8, 1, 1)), 4, 8)


def pixel_shuffle(net: Net) -> str:
    return net.op("DepthToSpace", net.conv("x", 12, 4), blocksize=2, mode="CRD")


def pixel_shuffle_then_conv(net: Net) -> str:
    return net.conv(net.op("Relu", net.op("DepthToSpace", net.conv("x", 16, 4), blocksize=2, mode="CRD")), 3, 4)


def written_out_shuffle(net: Net) -> str:
    """What older exporters write for a pixel shuffle."""
    x = net.reshape(net.conv("x", 16, 4), 1, 4, 2, 2, 8, 6)
    return net.conv(net.reshape(net.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), 1, 4, 16, 12), 3, 4)


def channel_shuffle(net: Net) -> str:
    """ShuffleNet's: swap groups and channels."""
    x = net.reshape(net.conv("x", 8, 4), 1, 2, 4, 8, 6)
    return net.conv(net.reshape(net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), 1, 8, 8, 6), 4, 8, group=2)


def tokens(net: Net) -> str:
    """An image to tokens, layer normalisation and a linear layer, and back to an image."""
    x = net.reshape(net.conv("x", 8, 4), 1, 8, 48)
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("LayerNormalization", x, net.weights(8), net.weights(8))
    x = net.op("Add", x, net.op("MatMul", x, net.weights(8, 8)))
    return net.conv(net.reshape(net.op("Transpose", x, perm=[0, 2, 1]), 1, 8, 8, 6), 4, 8)


def attention(net: Net) -> str:
    """Two heads on an image's tokens: one transpose each for queries, keys, values and the result."""
    x = net.op("Transpose", net.reshape(net.conv("x", 8, 4), 1, 8, 48), perm=[0, 2, 1])
    q, k, v = (net.op("MatMul", x, net.weights(8, 8)) for _ in range(3))
    q, v = (net.op("Transpose", net.reshape(each, 1, 48, 2, 4), perm=[0, 2, 1, 3]) for each in (q, v))
    k = net.op("Transpose", net.reshape(k, 1, 48, 2, 4), perm=[0, 2, 3, 1])
    y = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 1, 48, 8)
    y = net.op("MatMul", y, net.weights(8, 8))
    return net.conv(net.reshape(net.op("Transpose", y, perm=[0, 2, 1]), 1, 8, 8, 6), 4, 8)


def channel_softmax(net: Net) -> str:
    return net.op("Softmax", net.conv("x", 5, 4), axis=1)


def reduced(net: Net) -> str:
    x = net.op("ReduceMean", net.conv("x", 8, 4), axes=[2], keepdims=0)
    return net.op(
        "Relu", net.op("Squeeze", net.op("Unsqueeze", x, net.const(np.asarray([2], np.int64))), net.const(np.asarray([2], np.int64)))
    )


def to_logical(net: Net) -> str:
    """The output is flattened, so its elements must lie as the source's."""
    return net.op("Flatten", net.conv("x", 8, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "transposes"),
    [
        (residual, 0),
        (concat, 0),
        (split_pad_slice, 0),
        (flatten, 0),
        (flatten_matmul, 0),
        (squeeze_excite, 0),
        (pixel_shuffle, 0),
        (pixel_shuffle_then_conv, 0),
        (written_out_shuffle, 1),
        (channel_shuffle, 1),
        (tokens, 0),
        (attention, 4),
        (channel_softmax, 0),
        (reduced, 0),
        (to_logical, 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_transposes(build: Callable[[Net], str], transposes: int, graph_of, run_tflite, run_onnx):
    net = Net()
    shape = (1, 4, 8, 6)
    result = build(net)
    model = net.model(result, shape)
    x = _random.standard_normal(shape).astype(np.float32)
    outputs, counts = run_tflite(graph_of(model), {"x": x})
    (want,) = run_onnx(model, {"x": x})
    assert outputs[result].shape == want.shape
    assert np.allclose(outputs[result], want, atol=1e-5)
    assert counts.get("TRANSPOSE", 0) == transposes, counts


@pytest.mark.slow
def test_a_network_that_tf2onnx_wrote_has_none(graph_of, run_tflite, run_onnx):
    """Channels last outside, channels first inside: inverted residuals as in EfficientNet-Lite0 (benchmarks/tflite_layout.py has all of it)."""
    net = Net()
    x = net.op("Transpose", "x", perm=[0, 3, 1, 2])
    wide = net.op("Relu", net.conv(x, 24, 4, 1))
    wide = net.op("Relu", net.conv(wide, 24, 24, group=24))
    x = net.op("Add", x, net.conv(wide, 4, 24, 1))
    x = net.op("Relu", net.conv(x, 8, 4, strides=[2, 2]))
    kept = net.op("Transpose", x, perm=[0, 2, 3, 1])
    pooled = net.op("ReduceMean", kept, axes=[1, 2], keepdims=0)
    result = net.op("Softmax", net.gemm(pooled, 5, 8), axis=-1)
    shape = (1, 8, 6, 4)
    model = net.model(result, shape)
    x = _random.standard_normal(shape).astype(np.float32)
    outputs, counts = run_tflite(graph_of(model), {"x": x})
    assert np.allclose(outputs[result], run_onnx(model, {"x": x})[0], atol=1e-5)
    assert "TRANSPOSE" not in counts, counts
