"""Bundles made by hand, so that the cloud tier is tested apart from the converters."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import (
    FORMAT,
    Artifact,
    Bundle,
    GoldenSample,
    Manifest,
    Signature,
    Source,
    TensorBinding,
    TensorSpec,
    Verification,
    write_bundle,
)


def affine(batch, scale):
    """y = scale * x + row sum of x, so that rows must not be mixed up."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["s"], keepdims=1),
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Add", ["m", "s"], ["y"]),
    ]
    constants = [helper.make_tensor("axis", TensorProto.INT64, [1], [1]), helper.make_tensor("k", TensorProto.FLOAT, [1], [scale])]
    shape = [batch, 4]
    graph = helper.make_graph(
        nodes,
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_affine_bundle(path, *, batch="N", scale=2.0, name="affine", version="1", engine="onnxruntime", file="model.onnx"):
    staging = path.parent / f"{path.name}.files"
    staging.mkdir(parents=True)
    model = affine(batch, scale)
    onnx.save(model, staging / file)
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    y = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    binding = (TensorBinding("x", "x", "float32"),), (TensorBinding("y", "y", "float32"),)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        device="generic-x86",
        precision="fp32",
        signature=Signature((TensorSpec("x", "float32", (batch, 4)),), (TensorSpec("y", "float32", (batch, 4)),)),
        artifact=Artifact(engine, file, "fp32", *binding),
        verification=Verification("deferred", "none", 0, "synthetic", {}, {}),
        source=Source("affine.onnx", "onnx", "0" * 64, 17),
        tools={},
    )
    return write_bundle(path, manifest, staging, [GoldenSample({"x": x}, {"y": y})], {})


@pytest.fixture
def affine_bundle(tmp_path) -> Bundle:
    return write_affine_bundle(tmp_path / "affine")
