"""Small bundles on ONNX Runtime, made by hand so that serving is tested apart from the converters."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgekit.bundle import (
    FORMAT,
    Artifact,
    GoldenSample,
    Manifest,
    Signature,
    Source,
    TensorBinding,
    TensorSpec,
    Verification,
    write_bundle,
)


def scale_model(scale):
    """``y = scale * x`` for float32 ``x [N,4]``, and ``total [N,1]``, its row sums."""
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["y"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
    ]
    constants = [helper.make_tensor("axis", TensorProto.INT64, [1], [1]), helper.make_tensor("k", TensorProto.FLOAT, [1], [scale])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["N", 1]),
    ]
    return _model(helper.make_graph(nodes, "scale", inputs, outputs, constants))


def text_model():
    """``copy = text`` for a string tensor ``[N]``."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["copy"])],
        "text",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("copy", TensorProto.STRING, ["N"])],
    )
    return _model(graph)


def gather_model():
    """``y = table[index]`` for int64 ``index [N]``: an index out of range fails in the engine, not in a check."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    return _model(graph)


def write_scale(path, *, version="1", scale=2.0, name="scale"):
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    return write_serving_bundle(path, scale_model(scale), name, version, {"x": x})


def write_serving_bundle(path, model, name, version, sample, states=()):
    """A bundle of ``model`` whose golden sample is ``sample``; an empty one writes none. ``states`` are of its signature."""
    staging = path.parent / f".{path.name}.files"
    staging.mkdir(parents=True)
    onnx.save(model, staging / "model.onnx")
    golden = []
    if sample:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        golden = [GoldenSample(sample, dict(zip(names, session.run(names, sample), strict=True)))]
    signature = Signature(_specs(model.graph.input), _specs(model.graph.output), states=tuple(states))
    bindings = [tuple(TensorBinding(spec.name, spec.name, spec.dtype) for spec in side) for side in (signature.inputs, signature.outputs)]
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        device="generic-x86",
        precision="fp32",
        signature=signature,
        artifact=Artifact("onnxruntime", "model.onnx", "fp32", *bindings),
        verification=Verification("deferred", "none", 0, "synthetic", {}, {}),
        source=Source("model.onnx", "onnx", "0" * 64, 17),
        tools={},
    )
    return write_bundle(path, manifest, staging, golden, {})


def _specs(values):
    return tuple(
        TensorSpec(
            value.name,
            "string" if value.type.tensor_type.elem_type == TensorProto.STRING else _dtype(value),
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _dtype(value):
    return np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name


def _model(graph):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
