"""Run a graph through the converter and LiteRT, and a model through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.bundle import Artifact, Signature, TensorSpec
from edgekit.converters._graph import Graph
from edgekit.converters._source import dtype_name, graph_from_onnx
from edgekit.converters.tflite import operator_counts, tflite_from_graph
from edgekit.runtime.engines import EngineOptions, open_engine

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="session")
def graph_of() -> Callable[[onnx.ModelProto], Graph]:
    """The plain graph of a model with static shapes, without normalisation, so that the handlers see its very nodes."""

    def make(model: onnx.ModelProto) -> Graph:
        def spec(value: onnx.ValueInfoProto) -> TensorSpec:
            tensor = value.type.tensor_type
            return TensorSpec(value.name, dtype_name(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim))

        return graph_from_onnx(model, Signature(tuple(map(spec, model.graph.input)), tuple(map(spec, model.graph.output))))

    return make


@pytest.fixture
def run_tflite(tmp_path: Path) -> Callable[..., tuple[dict[str, np.ndarray], dict[str, int]]]:
    """``run_tflite(graph, inputs)`` converts, runs once, and gives outputs and operator counts."""

    def run(graph: Graph, inputs: Arrays, precision: str = "fp32") -> tuple[dict[str, np.ndarray], dict[str, int]]:
        data, in_bindings, out_bindings = tflite_from_graph(graph, precision)
        path = tmp_path / "model.tflite"
        path.write_bytes(data)
        artifact = Artifact("tflite", path.name, precision, in_bindings, out_bindings)
        engine = open_engine(path, artifact, Signature(graph.inputs, graph.outputs), EngineOptions(threads=1))
        try:
            return engine.run(inputs), operator_counts(data)
        finally:
            engine.close()

    return run


@pytest.fixture(scope="session")
def run_onnx() -> Callable[[onnx.ModelProto, Arrays], list[np.ndarray]]:
    """Outputs of ONNX Runtime, the independent implementation."""

    def run(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(inputs))

    return run
