"""Small seeded models and samples that the tests of this folder share."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._emitter import NormalisedModel


def cnn(outlier: float = 1.0, classes: int = 10, seed: int = 0):
    """Conv-Relu, depthwise Conv, residual Add, pool, Gemm; ``outlier`` widens one channel of the depthwise convolution's input."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    first = weights(16, 3, 3, 3)
    first[0] *= outlier
    depthwise = weights(16, 1, 3, 3) * 2
    depthwise[0] /= outlier
    dense = weights(classes, 16)
    dense[:, 0] /= outlier
    tensors = {
        "w0": first,
        "b0": (rng.standard_normal(16) * 0.1).astype(np.float32),
        "w1": depthwise,
        "w2": weights(16, 16, 1, 1),
        "b2": (rng.standard_normal(16) * 0.1).astype(np.float32),
        "w3": dense,
        "b3": np.zeros(classes, np.float32),
        "shape": np.array([1, 16], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1], group=16),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2"),
        helper.make_node("Add", ["c2", "r0"], ["s"], "sum"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
        helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "dense", transB=1),
    ]
    return model(nodes, {"x": (1, 3, 8, 8)}, {"y": (1, classes)}, tensors)


def model(nodes, inputs, outputs, tensors, opset=17):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def signature(proto):
    def specs(values):
        return tuple(TensorSpec(v.name, "float32", tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim)) for v in values)

    return Signature(specs(proto.graph.input), specs(proto.graph.output))


def normalised(proto):
    return NormalisedModel(proto, signature(proto), proto.opset_import[0].version, {}, (), True)


def samples(proto, count, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {
            spec.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in spec.shape]).astype(np.float32)
            for spec in signature(proto).inputs
        }
        for _ in range(count)
    ]


def run(proto, inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, each), strict=True)) for each in inputs]
