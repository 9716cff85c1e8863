"""Every rewrite of our own against ONNX Runtime, with the odd forms of its operator."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit.converters._lowering import lower_model
from tests.converters.lowering.models import make, refusing, run, single

RNG = np.random.default_rng(3)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(low, high, *shape, dtype=np.int64):
    return RNG.integers(low, high, shape).astype(dtype)


X = floats(2, 3, 4)
IMAGE = floats(2, 3, 7, 6)
BYTES = ints(0, 256, 2, 3, 4, dtype=np.uint8)

CASES = {
    "gather elements, negative": ("GatherElements", {"x": X}, {"i": ints(-4, 4, 2, 2, 3)}, {"axis": -1}),
    "gather nd": ("GatherND", {"x": X}, {"i": ints(-3, 3, 2, 2, 1)}, {"batch_dims": 1}),
    "gather nd, full tuples": ("GatherND", {"x": X}, {"i": ints(0, 2, 5, 3)}, {}),
    "scatter elements, repeated": ("ScatterElements", {"x": X}, {"i": np.array([[[0, 0, -1]]]), "u": floats(1, 1, 3)}, {"axis": 2}),
    "scatter nd, rows": ("ScatterND", {"x": X}, {"i": np.array([[1, 2], [0, -3]]), "u": floats(2, 4)}, {}),
    "trilu": ("Trilu", {"x": X}, {"k": np.asarray(-1)}, {"upper": 0}),
    "eye like": ("EyeLike", {"x": floats(3, 5)}, {}, {"k": 1, "dtype": TensorProto.INT64}),
    "hardmax, ties": ("Hardmax", {"x": np.round(X)}, {}, {"axis": 1}),
    "compress": ("Compress", {"x": X}, {"c": np.array([True, False, True])}, {"axis": 1}),
    "compress, flat": ("Compress", {"x": X}, {"c": np.array([False, True, True])}, {}),
    "reverse sequence": ("ReverseSequence", {"x": X}, {"n": np.array([1, 3])}, {"batch_axis": 0, "time_axis": 1}),
    "is inf": ("IsInf", {"x": np.array([1, np.inf, -np.inf, np.nan], np.float32)}, {}, {"detect_negative": 0}),
    "is nan": ("IsNaN", {"x": np.array([1, np.inf, np.nan], np.float32)}, {}, {}),
    "sinh": ("Sinh", {"x": np.linspace(-4, 4, 41, dtype=np.float32)}, {}, {}),
    "asinh": ("Asinh", {"x": np.linspace(-4, 4, 41, dtype=np.float32)}, {}, {}),
    "acosh": ("Acosh", {"x": np.linspace(1, 4, 41, dtype=np.float32)}, {}, {}),
    "atanh": ("Atanh", {"x": np.linspace(-0.9, 0.9, 41, dtype=np.float32)}, {}, {}),
    "tan": ("Tan", {"x": np.linspace(-1.4, 1.4, 41, dtype=np.float32)}, {}, {}),
    "celu": ("Celu", {"x": X}, {}, {"alpha": 0.7}),
    "cumsum": ("CumSum", {"x": X}, {"axis": np.asarray(-1)}, {"exclusive": 1, "reverse": 1}),
    "determinant": ("Det", {"x": floats(2, 4, 4)}, {}, {}),
    "mean": ("Mean", {"x": X}, {"a": floats(4), "b": floats(3, 1)}, {}),
    "max of integers": ("Max", {"x": ints(-9, 9, 5)}, {"b": ints(-9, 9, 5)}, {}),
    "matmul integer": (
        "MatMulInteger",
        {"x": BYTES},
        {"b": ints(-128, 128, 4, 5, dtype=np.int8), "xz": np.uint8(7), "bz": np.int8(-3)},
        {},
    ),
    "matmul integer, deep": (
        "MatMulInteger",
        {"x": ints(0, 256, 2, 1000, dtype=np.uint8)},
        {"b": ints(0, 256, 1000, 3, dtype=np.uint8)},
        {},
    ),
    "quantize, per channel": (
        "QuantizeLinear",
        {"x": 9 * X},
        {"s": np.array([0.1, 0.2, 0.3], np.float32), "z": ints(0, 9, 3, dtype=np.uint8)},
        {},
    ),
    "dequantize": ("DequantizeLinear", {"x": BYTES}, {"s": np.float32(0.1), "z": np.uint8(100)}, {}),
    "bitwise and": ("BitwiseAnd", {"x": ints(-128, 128, 9, dtype=np.int8)}, {"b": ints(-128, 128, 9, dtype=np.int8)}, {}),
    "bitwise xor, 64 bits": ("BitwiseXor", {"x": ints(-(2**62), 2**62, 9)}, {"b": ints(-(2**62), 2**62, 9)}, {}),
    "bitwise not": ("BitwiseNot", {"x": ints(0, 2**16, 9, dtype=np.uint16)}, {}, {}),
    "pad, wrapped": ("Pad", {"x": X}, {"p": np.array([0, 2, 1, 0, 1, 5])}, {"mode": "wrap"}),
    "pad, cut and reflected": ("Pad", {"x": X}, {"p": np.array([0, -1, 1, 0, 0, 2])}, {"mode": "reflect"}),
    "pad, axes": ("Pad", {"x": X}, {"p": np.array([1, 2]), "v": np.float32(5), "a": np.array([-1])}, {}),
    "instance norm": ("InstanceNormalization", {"x": X}, {"s": floats(3), "b": floats(3)}, {}),
    "lrn": ("LRN", {"x": floats(1, 6, 3, 3)}, {}, {"size": 5, "alpha": 0.5}),
    "lp norm, zeros": ("LpNormalization", {"x": X * np.array([[[1], [0], [1]]], np.float32)}, {}, {"axis": 2, "p": 1}),
    "dropout": ("Dropout", {"x": X}, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_the_same_numbers(same, name):
    op, live, constants, attrs = CASES[name]
    same(single(op, live, constants, **attrs), live, op)


def test_training_statistics_of_a_batch(same):
    constants = {name: floats(3) for name in "sbm"} | {"v": np.abs(floats(3))}
    model = single("BatchNormalization", {"x": X}, constants, ("y", "mean", "var"), training_mode=1, momentum=0.7)
    same(model, {"x": X}, "BatchNormalization")


def test_computed_indices(same):
    """The same places, taken from a tensor that is not known before."""
    index = ints(-3, 3, 2, 2, 4)
    for op, live, attrs in (
        ("GatherElements", {"x": X, "i": index}, {"axis": 1}),
        ("GatherND", {"x": X, "i": ints(-2, 2, 4, 2)}, {}),
    ):
        same(single(op, live, **attrs), live, op)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_scatters_that_combine(same, op, reduction):
    """Several updates of one place, in the order of the updates."""
    index = np.array([[0, 1, 1, 0], [2, 2, 2, -1]]) if op == "ScatterElements" else np.array([[[0], [1]], [[1], [-1]]])
    update = floats(2, 4) if op == "ScatterElements" else floats(2, 2, 4)
    x = floats(3, 4)
    same(single(op, {"x": x}, {"i": index, "u": update}, reduction=reduction), {"x": x}, op)


@pytest.mark.parametrize(("left", "right"), [((3,), (2, 3, 4)), ((2, 4, 3), (3,)), ((3,), (3,))])
def test_products_with_a_vector(left, right):
    x, constants = {"x": floats(*left)}, {"b": floats(*right)}
    model = single("MatMul", x, constants)

    def vectors(node, graph):
        return "a vector" if node.op == "MatMul" and min(graph.types[name].rank for name in node.inputs) < 2 else ""

    lowered = lower_model(model, vectors, static=True)
    assert not lowered.refused
    np.testing.assert_allclose(run(lowered.model, x)[0], run(model, x)[0], rtol=1e-5)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes_of_truth_values(op):
    x = {"x": X > 0.5}
    model = single(op, x, {"a": np.array([1])}, keepdims=0)
    lowered = lower_model(
        model, lambda node, graph: "bool" if graph.types[node.inputs[0]].dtype == "bool" and node.op == op else "", static=True
    )
    assert not lowered.refused
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(model, x)[0])


def test_updates_may_be_what_is_live(same):
    live = {"u": floats(2, 4)}
    nodes = [helper.make_node("ScatterND", ["x", "i", "u"], ["y"])]
    same(make(nodes, live, {"x": floats(3, 4), "i": np.array([[2], [0]])}), live, "ScatterND")


def test_integers_of_a_convolution(same):
    x = ints(0, 256, 1, 2, 5, 5, dtype=np.uint8)
    constants = {"w": ints(0, 256, 4, 1, 3, 3, dtype=np.uint8), "xz": np.uint8(100), "wz": np.uint8(9)}
    same(single("ConvInteger", {"x": x}, constants, group=2, pads=[1, 0, 0, 1]), {"x": x}, "ConvInteger")
    with_scales = {
        "xs": np.float32(0.02),
        "xz": np.uint8(100),
        "w": ints(-128, 128, 4, 2, 3, 3, dtype=np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": np.float32(0.3),
        "yz": np.uint8(120),
        "b": ints(-500, 500, 4, dtype=np.int32),
    }
    same(single("QLinearConv", {"x": x}, with_scales), {"x": x}, "QLinearConv")


def test_n_grams_are_counted(same):
    tokens = ints(0, 8, 2, 12, dtype=np.int32)
    attrs = {"min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 2, "ngram_counts": [0, 3], "ngram_indexes": [4, 0, 1, 2, 3]}
    pool = {"pool_int64s": [1, 2, 3, 1, 2, 3, 4], "weights": [0.5, 1.0, 2.0, 3.0, 4.0]}
    for mode in ("TF", "IDF", "TFIDF"):
        same(single("TfIdfVectorizer", {"x": tokens}, mode=mode, **attrs, **pool), {"x": tokens}, "TfIdfVectorizer")


def test_a_form_that_a_rule_does_not_take_is_told():
    x = floats(2, 6, 6)
    (refused,) = lower_model(single("Det", {"x": x}), refusing("Det"), static=True).refused
    assert refused[3] == "no Det here; matrices of 6 rows; up to 4 are written out"
    live = {"x": floats(3, 4), "i": ints(0, 3, 3, 4)}
    model = single("ScatterElements", live, {"u": floats(3, 4)})
    (refused,) = lower_model(model, refusing("ScatterElements"), static=True).refused
    assert "its index ('i') is computed" in refused[3]
