"""Every handler against ONNX Runtime. Cases of one family share a file, since TensorFlow's converter costs more than the operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import ops
from edgekit.converters.tflite._emit import load_handlers
from tests.converters.tflite import element_cases, index_cases, nn_cases, operator_cases
from tests.converters.tflite.operator_cases import Case

CASES = [*operator_cases.CASES, *element_cases.CASES, *index_cases.CASES, *nn_cases.CASES]
_BATCHES = [CASES[start : start + 16] for start in range(0, len(CASES), 16)]


def prefixed(graph: Graph, prefix: str) -> Graph:
    """The same graph with other tensor and node names."""

    def name(tensor: str) -> str:
        return f"{prefix}{tensor}" if tensor else ""

    def rename(node: Node) -> Node:
        return replace(node, name=name(node.name), inputs=tuple(map(name, node.inputs)), outputs=tuple(map(name, node.outputs)))

    return Graph(
        tuple(type(spec)(name(spec.name), spec.dtype, spec.shape) for spec in graph.inputs),
        tuple(type(spec)(name(spec.name), spec.dtype, spec.shape) for spec in graph.outputs),
        tuple(map(rename, graph.nodes)),
        {name(key): value for key, value in graph.constants.items()},
        {name(key): value for key, value in graph.types.items()},
    )


def merged(graphs: list[Graph]) -> Graph:
    """Graphs side by side; each node keeps its opset."""
    parts = [prefixed(graph, f"g{index}_") for index, graph in enumerate(graphs)]
    return Graph(
        tuple(spec for part in parts for spec in part.inputs),
        tuple(spec for part in parts for spec in part.outputs),
        tuple(node for part in parts for node in part.nodes),
        {key: value for part in parts for key, value in part.constants.items()},
        {key: value for part in parts for key, value in part.types.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch", _BATCHES, ids=lambda batch: f"{batch[0].name}..{batch[-1].name}")
def test_same_numbers_as_onnx_runtime(batch, graph_of, run_tflite, run_onnx):
    models = [case.model() for case in batch]
    inputs = {f"g{index}_in{i}": array for index, case in enumerate(batch) for i, array in enumerate(case.inputs)}
    outputs, _ = run_tflite(merged([graph_of(model) for model in models]), inputs)
    wrong = []
    for index, (case, model) in enumerate(zip(batch, models, strict=True)):
        reference = run_onnx(model, {f"in{i}": array for i, array in enumerate(case.inputs)})
        for number, want in enumerate(reference):
            got = outputs[f"g{index}_out{number}"]
            assert (got.shape, got.dtype) == (want.shape, want.dtype), case.name
            error = float(np.max(np.abs(got.astype(np.float64) - want), initial=0.0)) / max(1.0, float(np.max(np.abs(want), initial=0.0)))
            if not error <= 1e-5:
                wrong.append(f"{case.name} output {number}: {error:.3g}")
    assert wrong == []


def test_every_handler_has_a_case():
    """A new operator comes with its test."""
    load_handlers()
    tested = {(case.op, ops.find(case.op, case.opset).since) for case in CASES}
    assert {(entry.op, entry.since) for entry in ops.registrations()} - tested == set()


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "gates", "direction"), [("LSTM", 4, "bidirectional"), ("GRU", 3, "forward")])
def test_batch_first_recurrence_is_the_transposed_one(op, gates, direction, graph_of, run_tflite, run_onnx):
    """ONNX Runtime refuses ``layout=1``, so its answer to ``layout=0`` is transposed for the comparison."""
    random = np.random.default_rng(11)
    ways, steps, batch, features, hidden = (2 if direction == "bidirectional" else 1), 3, 2, 4, 5
    count = 3 if op == "LSTM" else 2
    weights = [random.standard_normal((ways, gates * hidden, size)).astype(np.float32) for size in (features, hidden)]
    x = random.standard_normal((steps, batch, features)).astype(np.float32)
    attrs = {"hidden_size": hidden, "direction": direction}
    plain = Case("plain", op, (x,), tuple(weights), attrs, outputs=count)
    reference = run_onnx(plain.model(), {"in0": x})
    first = np.ascontiguousarray(x.transpose(1, 0, 2))
    outputs, _ = run_tflite(
        graph_of(Case("first", op, (first,), tuple(weights), {**attrs, "layout": 1}, outputs=count).model()), {"in0": first}
    )
    assert np.allclose(outputs["out0"], reference[0].transpose(2, 0, 1, 3), atol=1e-5)
    for index in range(1, count):
        assert np.allclose(outputs[f"out{index}"], reference[index].transpose(1, 0, 2), atol=1e-5)
