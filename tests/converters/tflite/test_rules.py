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


REFUSED = [
    ("no handler", graph("TfIdfVectorizer"), "no handler"),
    ("unknown count", graph("NonMaxSuppression"), "how many values it gives depends on data"),
    ("random numbers", graph("RandomNormalLike"), "it draws random numbers, so that nothing could be proven"),
    ("eight-bit float", graph("Relu", (TensorType("float8_e4m3fn", (2,)),), (), (IMAGE,)), "tensor 'x0' is float8_e4m3fn"),
    (
        "bits of a double",
        graph("BitCast", (TensorType("float64", (2,)),), (), (TensorType("int64", (2,)),)),
        "it reads the bits of float64",
    ),
    ("power of an integer", graph("Pow", (TensorType("int32", (2,)),) * 2), "the base is int32 and the exponent is computed"),
    (
        "root of an integer",
        graph("Pow", (TensorType("int32", (2,)),), [np.asarray([0.5], np.float32)]),
        "the exponent of an integer is negative or a fraction",
    ),
    ("integer root", graph("Sqrt", (TensorType("int32", (2,)),), (), (TensorType("int32", (2,)),)), "input 'x0' is int32"),
    ("pad mode", graph("Pad", constants=[np.zeros(8, np.int64)], attrs={"mode": "symmetric"}, opset=19), "mode is symmetric"),
    ("seven axes", graph("CumSum", (TensorType("float32", (1,) * 7),), [np.asarray(1, np.int64)]), "tensor 'x0' has 7 axes"),
    (
        "computed shape",
        graph("Reshape", (IMAGE, TensorType("int64", (4,)))),
        "input 1 ('x1') depends on data, and with it the shape of the output",
    ),
    (
        "largest of updates",
        graph("ScatterND", (TensorType("int64", (2,)), TensorType("int64", (1, 1)), TensorType("int64", (1,))), attrs={"reduction": "max"}),
        "reduction max of int64",
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
