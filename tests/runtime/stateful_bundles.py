"""Small models with states, and bundles of them: a recurrent cell whose answers depend on every value before."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import StatePair
from tests.runtime.serving_bundles import write_serving_bundle

WIDTH = 3
PAIRS = (StatePair("s", "s_next", (1, WIDTH)), StatePair("n", "n_next", (1, 1)))


def cell_model(*, rows="N", seed=0):
    """``x [rows,3]``, state ``s [rows,3]`` and how many requests there were, ``n`` int64 ``[rows,1]``, to ``y [rows,3]``, ``s_next`` and ``n_next``."""
    random = np.random.default_rng(seed)
    constants = {name: random.normal(0, 0.7, (WIDTH, WIDTH)).astype(np.float32) for name in ("w", "u")} | {"one": np.array([[1]], np.int64)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("MatMul", ["s", "u"], ["su"]),
        helper.make_node("Add", ["xw", "su"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["s_next"]),
        helper.make_node("Add", ["n", "one"], ["n_next"]),
        helper.make_node("Cast", ["n_next"], ["n_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["s_next", "n_float"], ["y"]),
    ]

    def tensor(name, kind, width):
        return helper.make_tensor_value_info(name, kind, [rows, width])

    graph = helper.make_graph(
        nodes,
        "cell",
        [tensor("x", TensorProto.FLOAT, WIDTH), tensor("s", TensorProto.FLOAT, WIDTH), tensor("n", TensorProto.INT64, 1)],
        [tensor("y", TensorProto.FLOAT, WIDTH), tensor("s_next", TensorProto.FLOAT, WIDTH), tensor("n_next", TensorProto.INT64, 1)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_cell(path, *, rows="N", version="1", seed=0, name="cell", pairs=PAIRS):
    """A bundle of `cell_model` that names its states."""
    sample = {"x": np.ones((1, WIDTH), np.float32), "s": np.zeros((1, WIDTH), np.float32), "n": np.zeros((1, 1), np.int64)}
    return write_serving_bundle(path, cell_model(rows=rows, seed=seed), name, version, sample, pairs)


def values(count, seed=1):
    """Inputs of a sequence, float32 ``[count,1,3]``."""
    return np.random.default_rng(seed).normal(0, 1, (count, 1, WIDTH)).astype(np.float32)


def told_apart(model, xs):
    """What the model answers to a sequence when its state is handed on by the caller, through ONNX Runtime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    s, n, answers = np.zeros((1, WIDTH), np.float32), np.zeros((1, 1), np.int64), []
    for x in xs:
        y, s, n = session.run(["y", "s_next", "n_next"], {"x": x, "s": s, "n": n})
        answers.append(y)
    return np.stack(answers)


def write_memory(path):
    """A bundle whose state grows: ``past [1,T,2]`` and ``x [1,1,2]`` to ``present [1,T+1,2]`` and ``total [1,1,2]``, the sum of all so far."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
            helper.make_node("ReduceSum", ["present", "axis"], ["total"], keepdims=1),
        ],
        "memory",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2]),
            helper.make_tensor_value_info("past", TensorProto.FLOAT, [1, "T", 2]),
        ],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [1, 1, 2]),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, [1, "U", 2]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sample = {"x": np.ones((1, 1, 2), np.float32), "past": np.zeros((1, 0, 2), np.float32)}
    return write_serving_bundle(path, model, "memory", "1", sample, [StatePair("past", "present", (1, 0, 2))])
