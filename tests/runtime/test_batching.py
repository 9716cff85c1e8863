"""Checking requests, putting them together, taking answers apart, and the proof that this changes nothing."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import EngineError, RequestError
from edgekit.protocol import InferRequest, InferResponse, RequestedOutput, Tensor
from edgekit.runtime._admission import DEFAULT_LEVEL, Waiting
from edgekit.runtime._execute import execute
from edgekit.runtime._job import Job
from edgekit.runtime._request_plan import RequestPlan

ROWS = Signature(
    (TensorSpec("x", "float32", ("N", 3)), TensorSpec("k", "int64", ("N",))),
    (TensorSpec("y", "float32", ("M", 3)), TensorSpec("total", "float32", ("N",))),
)
SIMPLE = Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 3)),))
OPEN = Signature((TensorSpec("x", "float32", ("N", "T")),), (TensorSpec("y", "float32", ("N", "T")),))


class Model:
    """A model whose engine is a function of arrays."""

    name, version, engine = "m", "1", "numpy"

    def __init__(self, signature, function, max_batch=8, golden=()):
        self.plan = RequestPlan("m", signature, max_batch, "fp32", golden)
        self.function = function
        self.ran = []

    def run(self, inputs):
        self.ran.append(len(next(iter(inputs.values()))))
        return self.function(inputs)

    def answer(self, *requests):
        jobs = [Job(request, lambda _: None) for request in requests]
        for job in jobs:
            self.plan.prepare(job)
        results, self.too_many = execute(self, self, jobs)
        assert [job for result in results for job in result.jobs] == jobs
        return [answer for result in results for answer in result.answers]


def both(inputs):
    y = inputs["x"] * 2 + inputs["k"][:, None].astype(np.float32)
    return {"y": y, "total": y.sum(1)}


def double(inputs):
    return {"y": inputs["x"] * 2}


def request(seed, rows=1, outputs=()):
    random = np.random.default_rng(seed)
    x, k = random.normal(0, 1, (rows, 3)).astype(np.float32), random.integers(0, 9, rows)
    return InferRequest("m", [Tensor("x", x), Tensor("k", k)], id=str(seed), outputs=[RequestedOutput(name) for name in outputs])


def simple(array, **others):
    return InferRequest("m", [Tensor("x", np.asarray(array, np.float32))], **others)


def prepared(plan, made):
    job = Job(made, lambda _: None)
    plan.prepare(job)
    return job


def prove(model, *requests):
    while model.plan.proof.state is None:
        model.answer(*requests)
    assert model.plan.proof.state is True
    model.ran.clear()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([(), ("y",), ("total",), ("total", "y")])), min_size=2, max_size=6))
def test_together_is_as_alone(cases):
    model = Model(ROWS, both)
    prove(model, request(1000), request(1001))
    requests = [request(seed, rows, outputs) for seed, (rows, outputs) in enumerate(cases)]
    answers = model.answer(*requests)
    assert model.ran == [sum(rows for rows, _ in cases)]
    for made, answer in zip(requests, answers, strict=True):
        expected = both({tensor.name: tensor.data for tensor in made.inputs})
        assert isinstance(answer, InferResponse)
        assert answer.id == made.id
        assert [tensor.name for tensor in answer.outputs] == [output.name for output in made.outputs] or ["y", "total"]
        for tensor in answer.outputs:
            np.testing.assert_array_equal(tensor.data, expected[tensor.name])


def test_what_is_to_run_apart_does():
    """A row of requests that may not run together, of a model whose others may: equal counts of rows by chance must not stack them."""
    model = Model(ROWS, both)
    prove(model, request(1000), request(1001))
    jobs = [prepared(model.plan, request(seed, rows)) for seed, rows in enumerate([2, 2])]
    results, too_many = execute(model, model, jobs, apart=True)
    assert model.ran == [2, 2]
    ((row,), made) = (results, [job.request.id for job in jobs])
    assert row.runs == 2
    assert [answer.id for answer in row.answers] == made
    assert row.starts_s == sorted(row.starts_s)
    assert not too_many


def test_one_of_a_row_that_fails_fails_alone():
    def breaks(inputs):
        if len(inputs["x"]) == 3:
            raise ValueError("three")
        return both(inputs)

    model = Model(ROWS, breaks)
    jobs = [prepared(model.plan, request(seed, rows)) for seed, rows in enumerate([1, 3, 2])]
    results, _ = execute(model, model, jobs, apart=True)
    assert [result.jobs for result in results] == [[job] for job in jobs]
    assert [type(result.answers[0]).__name__ for result in results] == ["InferResponse", "EngineError", "InferResponse"]
    assert [before.end_s <= after.starts_s[0] for before, after in pairwise(results)] == [True, True]


# name: a model that may not run requests together although its signature allows it
DEPENDENT = {
    "mean over the batch": lambda inputs: {"y": inputs["x"] - inputs["x"].mean(0)},
    "a sequence, not a batch": lambda inputs: {"y": np.cumsum(inputs["x"], 0)},
    "scaled by the largest of all": lambda inputs: {"y": np.round(inputs["x"] / np.abs(inputs["x"]).max() * 127) / 127},
    "one answer for all": lambda inputs: {"y": inputs["x"][:1]},
    "takes one row only": lambda inputs: double({"x": inputs["x"].reshape(1, 3)}),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_what_depends_on_its_neighbours_is_kept_apart(name, caplog):
    model = Model(SIMPLE, DEPENDENT[name])
    requests = [simple([[1.0, 2.0, 3.0]]), simple([[7.0, 5.0, -9.0]])]
    model.answer(*requests)
    assert model.plan.proof.state is False
    assert "requests are not run together" in caplog.text
    model.ran.clear()
    for made, answer in zip(requests, model.answer(*requests), strict=True):
        np.testing.assert_array_equal(answer.outputs[0].data, DEPENDENT[name]({"x": made.inputs[0].data})["y"])
    assert model.ran == [1, 1]
    assert prepared(model.plan, requests[0]).key is Waiting.ALONE


def test_requests_that_tell_nothing_prove_nothing():
    alike = simple([[0.0, 0.0, 0.0]])
    model = Model(SIMPLE, double)
    for _ in range(20):
        model.answer(alike, alike)
    assert model.plan.proof.state is None
    assert set(model.ran) == {1}
    prove(Model(SIMPLE, double, golden=[{"x": np.array([[1, 2, 3]], np.float32)}]), alike, alike)
    prove(Model(SIMPLE, double), simple([[1.0, 1.0, 1.0]]), simple([[1.0, 1.0, 1.0]]))  # half of it says something


def test_one_bad_request_does_not_spoil_the_batch():
    def picky(inputs):
        if (inputs["x"] < 0).any():
            raise ValueError("a negative number")
        return double(inputs)

    model = Model(SIMPLE, picky)
    prove(model, simple([[1, 2, 3]]), simple([[3, 2, 2]]))
    well, bad, too = model.answer(simple([[1, 2, 3]]), simple([[-1, 0, 0]]), simple([[4, 5, 6]]))
    np.testing.assert_array_equal(well.outputs[0].data, [[2, 4, 6]])
    assert isinstance(bad, EngineError)
    assert not model.too_many
    assert "model m: numpy failed: a negative number" in str(bad)
    np.testing.assert_array_equal(too.outputs[0].data, [[8, 10, 12]])


def test_too_many_rows_are_told_from_bad_ones():
    def small(inputs):
        if len(inputs["x"]) > 3:
            raise MemoryError("no room")
        return double(inputs)

    model = Model(SIMPLE, small)
    prove(model, simple([[1, 2, 3]]), simple([[3, 2, 2]]))
    answers = model.answer(*(simple([[1, 2, 3]]) for _ in range(4)))
    assert all(isinstance(answer, InferResponse) for answer in answers)
    assert model.too_many
    assert model.ran == [4, 1, 1, 1, 1]


SIGNATURES = {
    "fixed batch": Signature((TensorSpec("x", "float32", (1, 3)),), (TensorSpec("y", "float32", (1, 3)),)),
    "an output without batch axis": Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", (3,)),)),
    "a scalar output": Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ()),)),
    "text": Signature((TensorSpec("x", "string", ("N",)),), (TensorSpec("y", "string", ("N",)),)),
    "the batch axis twice": Signature((TensorSpec("x", "float32", ("N", "N")),), (TensorSpec("y", "float32", ("N", 1)),)),
    "two batch axes": Signature(
        (TensorSpec("x", "float32", ("N", 3)), TensorSpec("k", "float32", ("K", 3))), (TensorSpec("y", "float32", ("N", 3)),)
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_without_a_batch_axis(name):
    assert not RequestPlan("m", SIGNATURES[name], 8).together


def test_one_row_at_most_keeps_requests_apart():
    assert not RequestPlan("m", SIMPLE, 1).together
    assert prepared(RequestPlan("m", SIMPLE, 1), simple([[1, 2, 3], [4, 5, 6]])).key is Waiting.ALONE


def test_batches_are_bounded_in_bytes():
    picture = Signature((TensorSpec("x", "float32", ("N", 3, 1024, 1024)),), (TensorSpec("y", "float32", ("N", 10)),))
    assert RequestPlan("m", picture, 32).max_rows == 2  # 12 MiB each
    assert RequestPlan("m", SIMPLE, 32).max_rows == 32
    plan = RequestPlan("m", OPEN, 32)
    assert prepared(plan, simple(np.zeros((1, 5 << 20)))).key is Waiting.ALONE
    assert prepared(plan, simple(np.zeros((1, 4)))).key is not Waiting.ALONE


def test_keys_and_rows():
    plan = RequestPlan("m", SIMPLE, 8)
    assert (prepared(plan, simple(np.zeros((5, 3)))).rows, prepared(plan, simple(np.zeros((5, 3)))).key) == (5, None)
    assert prepared(plan, simple(np.zeros((0, 3)))).key is Waiting.ALONE
    plan = RequestPlan("m", OPEN, 8)
    one, other = prepared(plan, simple(np.zeros((2, 4)))), prepared(plan, simple(np.zeros((1, 7))))
    assert (one.rows, other.rows) == (2, 1)
    assert one.key == prepared(plan, simple(np.zeros((1, 4)))).key != other.key


BAD = {
    "missing": ([("x", np.zeros((1, 3), np.float32))], "input 'k': missing"),
    "unknown": ([("x", np.zeros((1, 3), np.float32)), ("z", np.zeros(1, np.int64))], "input 'z': no such input"),
    "dtype": ([("x", np.zeros((1, 3), np.float64)), ("k", np.zeros(1, np.int64))], "input 'x': dtype float64"),
    "shape": ([("x", np.zeros((1, 4), np.float32)), ("k", np.zeros(1, np.int64))], r"input 'x': shape \[1,4\]"),
    "rank": ([("x", np.zeros(3, np.float32)), ("k", np.zeros(1, np.int64))], r"input 'x': shape \[3\]"),
    "rows differ": ([("x", np.zeros((2, 3), np.float32)), ("k", np.zeros(1, np.int64))], "dimension N is 1; expected 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs_get_the_full_checks_line(name):
    tensors, message = BAD[name]
    with pytest.raises(RequestError, match=message):
        prepared(RequestPlan("m", ROWS, 8), InferRequest("m", [Tensor(*tensor) for tensor in tensors]))
    if name in ("dtype", "shape", "rank"):  # the path of its own that one input has says the same
        with pytest.raises(RequestError, match=message):
            prepared(RequestPlan("m", SIMPLE, 8), InferRequest("m", [Tensor(*tensors[0])]))


def test_priority():
    plan = RequestPlan("m", SIMPLE, 8)
    levels = [prepared(plan, simple([[1, 2, 3]], parameters=parameters)).level for parameters in ({}, {"priority": 0}, {"priority": 7})]
    assert levels == [DEFAULT_LEVEL, DEFAULT_LEVEL, 7]
    for bad in (-1, "high", True, 1.5):
        with pytest.raises(RequestError, match="parameter 'priority'"):
            prepared(plan, simple([[1, 2, 3]], parameters={"priority": bad}))
    with pytest.raises(RequestError, match="output 'z': no such output; expected outputs y"):
        prepared(plan, simple([[1, 2, 3]], outputs=[RequestedOutput("z")]))
