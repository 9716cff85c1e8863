"""``If``, ``Loop`` and ``Scan`` without control flow."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._lowering import lower_model
from edgekit.converters._lowering._control import MAX_ITERATIONS
from tests.converters.lowering.models import make, operators, refusing, run

RNG = np.random.default_rng(2)
X = RNG.standard_normal((3, 4)).astype(np.float32)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, kind=FLOAT, shape=()):
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name, node, shape=(3, 4)):
    return helper.make_graph([node], name, [], [value(node.output[0], shape=shape)])


def condition(computed):
    """A condition on ``x`` or a constant one, and an If that takes ``x`` from outside."""
    branches = {
        "then_branch": branch("t", helper.make_node("Exp", ["x"], ["t_out"])),
        "else_branch": branch("e", helper.make_node("Neg", ["x"], ["e_out"])),
    }
    nodes = [helper.make_node("If", ["c"], ["y"], "choice", **branches)]
    if computed:
        nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Greater", ["m", "limit"], ["c"]), *nodes]
    return nodes


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_condition_leaves_one_branch(same, taken):
    model = make(condition(False), {"x": X}, {"c": np.asarray(taken)})
    made = same(model, {"x": X}, "If")
    assert ("Exp" in operators(made)) == taken
    assert ("Neg" in operators(made)) != taken


@pytest.mark.parametrize("limit", [-10.0, 10.0])
def test_a_computed_condition_chooses_between_both(same, limit):
    model = make(condition(True), {"x": X}, {"limit": np.float32(limit)})
    assert "Where" in operators(same(model, {"x": X}, "If"))


def test_branches_that_could_stop_the_run_are_not_both_computed():
    """An index that is only valid where its branch is taken must not be used elsewhere."""
    nodes = condition(True)
    inner = helper.make_graph([helper.make_node("Gather", ["x", "i"], ["t_out"])], "t", [], [value("t_out", shape=(3, 4))])
    nodes[-1] = helper.make_node("If", ["c"], ["y"], "choice", then_branch=inner, else_branch=nodes[-1].attribute[1].g)
    model = make(nodes, {"x": X}, {"limit": np.float32(0), "i": np.array([0, 1, 2])})
    (refused,) = lower_model(model, refusing("If"), static=True).refused
    assert "holds Gather, which may only run when it is taken" in refused[3]


def loop_body():
    """A running sum that is also stacked; the step that reaches ``last`` is the last one."""
    nodes = [
        helper.make_node("Add", ["sum_in", "x"], ["sum_out"]),
        helper.make_node("Mul", ["sum_out", "half"], ["scaled"]),
        helper.make_node("Less", ["step", "last"], ["go_on"]),
    ]
    half = numpy_helper.from_array(np.float32(0.5), "half")
    inputs = [value("step", INT64), value("go", BOOL), value("sum_in", shape=(3, 4))]
    outputs = [value("go_on", BOOL), value("sum_out", shape=(3, 4)), value("scaled", shape=(3, 4))]
    return helper.make_graph(nodes, "body", inputs, outputs, [half])


def loop(trips, last):
    node = helper.make_node("Loop", ["trips" if trips is not None else "", "go", "zero"], ["total", "all"], "loop", body=loop_body())
    constants = {"go": np.asarray(True), "zero": np.zeros((3, 4), np.float32), "last": np.asarray(last)}
    constants |= {"trips": np.asarray(trips)} if trips is not None else {}
    return make([node], {"x": X}, constants, ("total", "all"))


@pytest.mark.parametrize(("trips", "last", "runs"), [(4, 100, 4), (10, 2, 3), (None, 5, 6), (1, 0, 1), (0, 3, 0)])
def test_a_loop_becomes_its_iterations(same, trips, last, runs):
    model = loop(trips, last)
    made = same(model, {"x": X}, "Loop")
    assert run(model, {"x": X})[1].shape[0] == runs
    assert not {"Loop", "Less"} & set(operators(made))
    assert sum(tensor.name.endswith("half") for tensor in made.graph.initializer) == bool(runs)  # one copy for all iterations


def test_a_loop_without_end_is_refused():
    (refused,) = lower_model(loop(MAX_ITERATIONS + 1, 10**6), refusing("Loop"), static=True).refused
    assert refused[:2] == ("loop", "Loop")
    assert f"more than {MAX_ITERATIONS} iterations" in refused[3]


def test_a_computed_trip_count_is_refused():
    node = helper.make_node("Loop", ["trips", "go", "zero"], ["total", "all"], "loop", body=loop_body())
    live = {"trips": np.asarray(3), "x": X}
    model = make([node], live, {"go": np.asarray(True), "zero": np.zeros((3, 4), np.float32), "last": np.asarray(9)}, ("total", "all"))
    (refused,) = lower_model(model, refusing("Loop"), static=True).refused
    assert "its trip count is computed" in refused[3]


def scan(**attrs):
    nodes = [helper.make_node("Mul", ["state", "part"], ["next"]), helper.make_node("Add", ["next", "part"], ["seen"])]
    shapes = [value(name, shape=(4,)) for name in ("state", "part", "next", "seen")]
    body = helper.make_graph(nodes, "body", shapes[:2], shapes[2:])
    node = helper.make_node("Scan", ["start", "x"], ["final", "y"], body=body, num_scan_inputs=1, **attrs)
    return node


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("prepend", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_in_both_directions_over_any_axis(same, backward, prepend, axis):
    x = RNG.standard_normal((5, 4) if axis == 0 else (4, 5)).astype(np.float32)
    node = scan(scan_input_directions=[backward], scan_output_directions=[prepend], scan_input_axes=[axis], scan_output_axes=[1 - axis])
    model = make([node], {"x": x}, {"start": np.ones(4, np.float32)}, ("final", "y"))
    same(model, {"x": x}, "Scan")


def test_a_loop_in_a_loop(same):
    inner_body = helper.make_graph(
        [helper.make_node("Add", ["a_in", "outer"], ["a_out"]), helper.make_node("Identity", ["c_in"], ["c_out"])],
        "inner",
        [value("i", INT64), value("c_in", BOOL), value("a_in", shape=(3, 4))],
        [value("c_out", BOOL), value("a_out", shape=(3, 4))],
    )
    inner = helper.make_node("Loop", ["two", "go", "b_in"], ["b_sum"], body=inner_body)
    body = helper.make_graph(
        [helper.make_node("Mul", ["b_in", "x"], ["outer"]), inner, helper.make_node("Identity", ["d_in"], ["d_out"])],
        "outer",
        [value("j", INT64), value("d_in", BOOL), value("b_in", shape=(3, 4))],
        [value("d_out", BOOL), value("b_sum", shape=(3, 4))],
    )
    node = helper.make_node("Loop", ["three", "go", "x"], ["y"], body=body)
    model = make([node], {"x": X}, {"two": np.asarray(2), "three": np.asarray(3), "go": np.asarray(True)})
    assert operators(same(model, {"x": X}, "Loop")).count("Mul") == 3


def test_sequences_go_with_their_readers(same):
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["s"], axis=0),
        helper.make_node("SequenceInsert", ["s", "extra", "first"], ["more"]),
        helper.make_node("SequenceErase", ["more", "last"], ["fewer"]),
        helper.make_node("SequenceAt", ["fewer", "last"], ["y"]),
        helper.make_node("ConcatFromSequence", ["fewer"], ["z"], axis=0),
        helper.make_node("SequenceLength", ["fewer"], ["n"]),
    ]
    constants = {"sizes": np.array([1, 2]), "extra": np.ones((2, 4), np.float32), "first": np.asarray(0), "last": np.asarray(-1)}
    model = make(nodes, {"x": X}, constants, ("y", "z", "n"))
    refused = [f"Sequence{name}" for name in ("Insert", "Erase", "At", "Length")]
    made = same(model, {"x": X}, "SplitToSequence", "ConcatFromSequence", *refused)
    assert not any("Sequence" in operator for operator in operators(made))
