"""Cutting one request into chunks, and their events: pure."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, Limits, ModelMetadata, RequestedOutput, Tensor, TensorMetadata
from edgekit.protocol._generate import chunks_of, end_event, error_event, read_body, result_event

LISTENS = ModelMetadata("vad", ["1"], "x", [TensorMetadata("input", "FP32", [1, 8])], [TensorMetadata("output", "FP32", [1, 1])])
OPEN = ModelMetadata("cell", ["1"], "x", [TensorMetadata("x", "FP32", [-1, 3])], [TensorMetadata("y", "FP32", [-1, 3])])
TWO = ModelMetadata("two", ["1"], "x", [TensorMetadata("a", "FP32", [1, 4]), TensorMetadata("rate", "INT64", [1])], [])


def read(document, metadata=LISTENS):
    return read_body(json.dumps(document).encode(), None, metadata, "2", Limits())


def arrays(request):
    return {tensor.name: tensor.data for tensor in request.inputs}


@settings(max_examples=50)
@given(chunk=st.integers(1, 9), hop=st.integers(1, 9), length=st.integers(0, 40), axis=st.sampled_from([-1, 1]))
def test_chunks_are_windows(chunk, hop, length, axis):
    whole = np.arange(length, dtype=np.float32)[np.newaxis]
    request = InferRequest("vad", [Tensor("input", whole)], parameters={"chunk": chunk, "hop": hop, "axis": axis, "own": 3})
    if hop > chunk or length < chunk:
        with pytest.raises(RequestError):
            chunks_of(request, LISTENS)
        return
    chunks = chunks_of(request, LISTENS)
    found = [arrays(part)["input"][0].tolist() for part in chunks.requests()]
    wanted = [list(range(start, start + chunk)) for start in range(0, length - chunk + 1, hop)]
    assert found == wanted
    assert len(found) == chunks.count
    assert chunks.left_over == length - (wanted[-1][-1] + 1)
    assert all(part.parameters == {"own": 3} for part in chunks.requests())


def test_a_flat_object_is_a_request():
    request = read({"input": list(range(16)), "id": "a", "parameters": {"hop": 4}})
    assert (request.model_name, request.model_version, request.id, request.parameters) == ("vad", "2", "a", {"hop": 4})
    assert arrays(request)["input"].shape == (1, 16)
    assert chunks_of(request, LISTENS).count == 3
    assert arrays(read({"input": [list(range(16))]}))["input"].shape == (1, 16)
    assert arrays(read({"x": [1, 2, 3, 4, 5, 6], "parameters": {"axis": 0, "chunk": 1}}, OPEN))["x"].shape == (2, 3)
    assert arrays(read({"x": [[1, 2, 3], [4, 5, 6]]}, OPEN))["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_one_input_of_several_is_cut():
    request = read({"a": list(range(8)), "rate": 16000, "parameters": {"stream_input": "a"}}, TWO)
    chunks = chunks_of(request, TWO)
    parts = [arrays(part) for part in chunks.requests()]
    assert [part["a"].tolist() for part in parts] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert [part["rate"].tolist() for part in parts] == [[16000], [16000]]


def test_an_inference_request_is_taken_as_well():
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 10], "data": list(range(10))}
    request = read({"inputs": [tensor], "parameters": {"hop": 1}, "outputs": [{"name": "output"}]})
    assert chunks_of(request, LISTENS).count == 3
    head = json.dumps({"inputs": [tensor | {"data": None, "parameters": {"binary_data_size": 40}}]}).replace('"data": null, ', "").encode()
    binary = read_body(head + np.arange(10, dtype=np.float32).tobytes(), str(len(head)), LISTENS, "", Limits())
    assert arrays(binary)["input"].shape == (1, 10)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read"),
        (b"[1]", "cannot be read"),
        (b'{"input": [1, 2', "cannot be read"),
        (b'{"input": "\xff"}', "cannot be read|does not fit"),
        (b'{"inptu": [1]}', "key 'inptu': no such input; expected inputs input"),
        (b'{"input": "a"}', "does not fit FP32"),
        (b'{"input": {"a": 1}}', "does not fit FP32"),
        (b'{"input": [[1, 2], [3]]}', "a list of 1 along axis 1"),
        (b'{"input": [1, "a"]}', "does not fit FP32"),
        (b'{"input": [1], "parameters": 3}', "key 'parameters'"),
        (b'{"input": [1], "parameters": {"a": [1]}}', "key 'parameters'"),
        (b'{"input": [1], "id": 3}', "key 'id'"),
        (b'{"inputs": 3}', "not a valid inference request"),
    ],
)
def test_bodies_that_are_no_request(body, message):
    with pytest.raises(RequestError, match=message):
        read_body(body, None, LISTENS, "", Limits())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(["input", "x", "a", "rate", "inputs", "outputs", "id", "parameters", "other", ""])
PARAMETERS = st.dictionaries(st.sampled_from(["chunk", "hop", "axis", "stream_input", "sequence_id", "own"]), JSON, max_size=4)


@pytest.mark.slow
@settings(max_examples=200)
@given(document=st.dictionaries(KEYS, JSON, max_size=4), parameters=PARAMETERS, metadata=st.sampled_from([LISTENS, OPEN, TWO]))
def test_any_json_is_a_request_or_refused(document, parameters, metadata):
    """Whatever a stranger sends: chunks that the model's input takes, or one line."""
    for body in (document, {**document, "parameters": parameters}):
        try:
            request = read_body(json.dumps(body).encode(), None, metadata, "", Limits())
            chunks = chunks_of(request, metadata)
        except RequestError:
            continue
        assert all(arrays(part)[chunks.name].shape[chunks.axis] == chunks.chunk for part in chunks.requests())


@settings(max_examples=50)
@given(body=st.binary(max_size=40), header=st.none() | st.sampled_from(["0", "5", "40", "-1", "x"]))
def test_any_bytes_are_refused(body, header):
    with pytest.raises(RequestError):
        chunks_of(read_body(body, header, LISTENS, "", Limits()), LISTENS)


@pytest.mark.parametrize(
    ("metadata", "parameters", "message"),
    [
        (LISTENS, {"chunk": 0}, "a whole number from 1"),
        (LISTENS, {"chunk": True}, "a whole number"),
        (LISTENS, {"chunk": 4.0}, "a whole number"),
        (LISTENS, {"hop": 9}, "from 1 to 8"),
        (LISTENS, {"axis": 2}, "from -2 to 1"),
        (LISTENS, {"chunk": 17}, "at least one chunk of 17"),
        (LISTENS, {"stream_input": "other"}, "one of the inputs that were sent: input"),
        (OPEN, {"axis": 0}, "axis 0 of 'x' has no fixed size"),
        (TWO, {}, "the model has several inputs"),
    ],
)
def test_cuts_that_cannot_be(metadata, parameters, message):
    name = metadata.inputs[0].name
    with pytest.raises(RequestError, match=message):
        chunks_of(InferRequest(metadata.name, [Tensor(name, np.zeros((1, 16), np.float32))], parameters=parameters), metadata)


def test_events():
    response = InferResponse("vad", "1", [Tensor("p", np.array([[0.5]], np.float32)), Tensor("s", np.arange(2))], id="a")
    assert result_event(response, 3, []) == b'data: {"model_name":"vad","model_version":"1","chunk":3,"id":"a","p":0.5,"s":[0,1]}\n\n'
    assert b'"s"' not in result_event(response, 3, [RequestedOutput("p")])
    assert error_event(b'{"error":"no"}') == b'data: {"error":"no"}\n\n'
    chunks = chunks_of(InferRequest("vad", [Tensor("input", np.zeros((1, 20), np.float32))]), LISTENS)
    assert end_event(chunks) == b'event: end\ndata: {"chunks":2,"left_over":4}\n\n'
    with pytest.raises(RequestError, match="NaN"):
        result_event(InferResponse("vad", "1", [Tensor("p", np.array([np.nan]))]), 0, [])
