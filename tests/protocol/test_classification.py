"""Outputs as classes: against a plain sort, and what cannot be classified."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, RequestedOutput, Tensor
from edgekit.protocol._classification import class_count, classify, classify_response


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.int64, np.uint64]),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    ),
    st.integers(1, 7),
)
def test_classes_are_the_best_first(scores, count):
    found = classify("output 'y'", scores, count)
    rows = [scores.tolist()] if scores.ndim == 1 else [np.ravel(row).tolist() for row in scores]
    width = len(scores) if scores.ndim == 1 else int(np.prod(scores.shape[1:]))
    assert found.shape == (() if scores.ndim == 1 else (len(rows),)) + (min(count, width),)
    for row, texts in zip(rows, [found.tolist()] if scores.ndim == 1 else found.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: (-row[i] if row[i] == row[i] else np.inf, i))[:count]
        assert [int(text.split(b":")[1]) for text in texts] == ranked
        for text, index in zip(texts, ranked, strict=True):
            value = text.split(b":")[0].decode()
            assert value == (str(row[index]) if isinstance(row[index], int) else f"{row[index]:.6f}")


def test_only_what_was_asked_for_is_classified():
    scores = np.array([[0.25, 0.5], [1, 0]], np.float32)
    response = InferResponse("m", "1", [Tensor("y", scores), Tensor("z", scores)])
    assert classify_response(response, InferRequest("m", [])) is response
    assert classify_response(response, InferRequest("m", [], outputs=[RequestedOutput("y", {"classification": 0})])) is response
    got = classify_response(response, InferRequest("m", [], outputs=[RequestedOutput("y", {"classification": 1})]))
    assert got.outputs[0].data.tolist() == [[b"0.500000:1"], [b"1.000000:0"]]
    assert got.outputs[1].data is scores


@pytest.mark.parametrize("count", [-1, True, 1.5, "2"])
def test_bad_counts(count):
    with pytest.raises(RequestError, match="output 'y': classification"):
        class_count("output 'y'", {"classification": count})


@pytest.mark.parametrize("scores", [np.array([b"a"], dtype=object), np.array([True]), np.float32(1).reshape(())])
def test_what_has_no_classes(scores):
    with pytest.raises(RequestError, match="classification of"):
        classify("output 'y'", scores, 1)
