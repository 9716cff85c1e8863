"""Tiny ONNX models, taken through the Core ML emitter and back through the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.bundle import GoldenSample, Signature, TensorSpec
from edgekit.converters._emitter import EmitJob, Emitted, NormalisedModel
from edgekit.converters._source import dtype_name
from edgekit.converters.coreml import EMITTERS
from edgekit.device_profiles import DeviceProfile, EngineClaim

PROFILE = DeviceProfile(
    "test", "Test", "apple", "aarch64", "ios", (EngineClaim("coreml"),), {"fp32": "fast", "fp16": "fast"}, 1, {"*": "test"}
)


def onnx_type(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model with inferred output types; ``inputs`` give dtypes and shapes."""
    known = {**inputs, **constants}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, onnx_type(array.dtype), array.shape) for name, array in inputs.items()],
        [
            # Shape inference types what nodes make; a constant or an input that is an output has its type already.
            helper.make_tensor_value_info(name, onnx_type(known[name].dtype), known[name].shape)
            if name in known
            else onnx.ValueInfoProto(name=name)
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model)
    return model


def onnx_outputs(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers, one thread, with its own rewrites off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@dataclass
class Emission:
    """One emitted model with the sample it is compared on."""

    job: EmitJob
    emitted: Emitted
    expected: dict[str, np.ndarray]

    @property
    def package(self) -> Path:
        return self.job.directory / self.emitted.artifact.path

    def run(self) -> dict[str, np.ndarray]:
        proof = EMITTERS["coreml"].prove(self.job, self.emitted)
        assert proof.verified == "reference"
        return dict(proof.outputs[0])


def model_signature(model: onnx.ModelProto) -> Signature:
    """What goes in and out of a model with static shapes."""

    def specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name, dtype_name(value.type.tensor_type.elem_type), tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            )
            for value in values
        )

    return Signature(specs(model.graph.input), specs(model.graph.output))


def emission(folder: Path, model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], precision: str = "fp32", target: str = "") -> Emission:
    """Emit a model for one sample."""

    signature = model_signature(model)
    source = NormalisedModel(model, signature, model.opset_import[0].version, {}, (), static=True)
    claim = EngineClaim("coreml", deployment_target=target)
    job = EmitJob("test", source, PROFILE, claim, precision, folder, [GoldenSample(dict(inputs), {})])
    emitted = EMITTERS["coreml"].emit(job)
    return Emission(job, emitted, onnx_outputs(model, inputs))


@pytest.fixture(scope="session")
def make() -> Callable[..., onnx.ModelProto]:
    """`make_model`."""
    return make_model


@pytest.fixture(scope="session")
def signature_of() -> Callable[[onnx.ModelProto], Signature]:
    """`model_signature`."""
    return model_signature


@pytest.fixture(scope="session")
def emit_into() -> Callable[..., Emission]:
    """`emission`."""
    return emission


@pytest.fixture
def emit(tmp_path: Path) -> Callable[..., Emission]:
    """``emit(model, inputs, precision="fp32", target="")`` into a folder of its own."""
    count = iter(range(1000))

    def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], **options: str) -> Emission:
        return emission(tmp_path / str(next(count)), model, inputs, **options)

    return run
