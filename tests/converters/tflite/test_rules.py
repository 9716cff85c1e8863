"""What the front end refuses, with node name, operator, opset and reason; TensorFlow is not needed to say so."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgekit.bundle import TensorSpec
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.converters.tflite import tflite_from_graph
from edgekit.converters.tflite._context import ops
from edgekit.converters.tflite._emit import load_handlers
from edgekit.errors import EnvironmentMissingError, UnsupportedOperatorsError

IMAGE = TensorType("float32", (1, 3, 8, 8))


def graph(op, inputs=(IMAGE,), constants=(), outputs=(IMAGE,), attrs=None, opset=17) -> Graph:
    """One node; ``inputs`` are computed tensors, ``constants`` arrays after them."""
    types = {f"x{i}": kind for i, kind in enumerate(inputs)} | {f"y{i}": kind for i, kind in enumerate(outputs)}
    arrays = {f"c{i}": array for i, array in enumerate(constants)}
    types |= {name: TensorType(array.dtype.name, array.shape) for name, array in arrays.items()}
    node = Node(
        op, "the_node", (*(f"x{i}" for i in range(len(inputs))), *arrays), tuple(f"y{i}" for i in range(len(outputs))), attrs or {}, opset
    )

    def specs(prefix, kinds):
        return tuple(TensorSpec(f"{prefix}{i}", kind.dtype, kind.shape) for i, kind in enumerate(kinds))

    return Graph(specs("x", inputs), specs("y", outputs), (node,), arrays, types)


def state(steps):
    return (TensorType("float32", (steps, 1, 3)),)


W, R = np.zeros((1, 20, 3), np.float32), np.zeros((1, 20, 5), np.float32)

REFUSED = [
    ("no handler", graph("NonMaxSuppression"), "no handler"),
    ("double", graph("Relu", (TensorType("float64", (2,)),), (), (TensorType("float64", (2,)),)), "tensor 'x0' is float64"),
    ("half", graph("Relu", (TensorType("float16", (2,)),), (), (TensorType("float16", (2,)),)), "tensor 'x0' is float16"),
    ("integer root", graph("Sqrt", (TensorType("int32", (2,)),), (), (TensorType("int32", (2,)),)), "input 'x0' is int32"),
    ("computed weights", graph("Conv", (IMAGE, TensorType("float32", (4, 3, 3, 3)))), "input 1 ('x1') is computed"),
    (
        "volume",
        graph("Conv", (TensorType("float32", (1, 3, 8, 8, 8)),), (np.zeros((4, 3, 3, 3, 3), np.float32),)),
        "rank 5",
    ),
    ("pool indices", graph("MaxPool", outputs=(IMAGE, IMAGE), attrs={"kernel_shape": [1, 1]}), "output 'y1' is used"),
    ("training", graph("BatchNormalization", constants=[np.ones(3, np.float32)] * 4, attrs={"training_mode": 1}), "training_mode is 1"),
    ("pad mode", graph("Pad", constants=[np.zeros(8, np.int64)], attrs={"mode": "wrap"}, opset=19), "mode is wrap"),
    ("antialias", graph("Resize", attrs={"mode": "linear", "antialias": 1}, opset=18), "antialias is 1"),
    (
        "region of interest",
        graph("Resize", attrs={"coordinate_transformation_mode": "tf_crop_and_resize"}),
        "coordinate_transformation_mode is tf_crop_and_resize",
    ),
    ("aspect", graph("Resize", attrs={"keep_aspect_ratio_policy": "not_larger"}, opset=18), "keep_aspect_ratio_policy is not_larger"),
    ("last index", graph("ArgMax", attrs={"select_last_index": 1}), "select_last_index is 1"),
    ("long sequence", graph("LSTM", state(513), [W, R], attrs={"hidden_size": 5}), "513 steps"),
    ("odd gates", graph("LSTM", state(4), [W, R], attrs={"activations": ["Relu", "Tanh", "Tanh"]}), "activations are Relu, Tanh, Tanh"),
    ("clipped gates", graph("LSTM", state(4), [W, R], attrs={"clip": 3.0}), "clip is 3.0"),
    ("coupled gates", graph("LSTM", state(4), [W, R], attrs={"input_forget": 1}), "input_forget is 1"),
    (
        "ragged sequences",
        graph("LSTM", state(4), [W, R, np.zeros((1, 40), np.float32), np.asarray([3], np.int32)]),
        "sequences of different length",
    ),
    ("mixed remainder", graph("Mod", (TensorType("int32", (2,)), TensorType("int64", (2,)))), "operands are int32 and int64"),
]


@pytest.mark.parametrize(("refused", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_with_the_reason(refused, reason):
    with pytest.raises(UnsupportedOperatorsError) as caught:
        tflite_from_graph(refused)
    ((name, op, opset, found),) = caught.value.nodes
    assert (name, op, opset, found) == ("the_node", refused.nodes[0].op, refused.nodes[0].opset, reason)


def test_all_refused_nodes_come_together():
    one, two = graph("NonMaxSuppression").nodes[0], graph("Relu", opset=17).nodes[0]
    three = Node("Special", "third", ("x0",), ("y0",), {}, 1, "acme")
    base = graph("Relu")
    with pytest.raises(UnsupportedOperatorsError) as caught:
        tflite_from_graph(Graph(base.inputs, base.outputs, (one, two, three), {}, base.types))
    assert [(name, op) for name, op, _, _ in caught.value.nodes] == [("the_node", "NonMaxSuppression"), ("third", "acme.Special")]


def test_every_rule_says_what_it_is():
    """The docstrings make the support table."""
    load_handlers()
    for entry in ops.registrations():
        for rule in entry.constraints:
            assert rule.__doc__, (entry.op, rule)


def test_missing_tensorflow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(EnvironmentMissingError, match=r"edgekit-ml\[convert\]"):
        tflite_from_graph(graph("Relu"))
