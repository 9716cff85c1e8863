"""HTTP bodies, against themselves and against Triton's own client library."""

import json

import msgspec
import numpy as np
import pytest
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, Limits, RequestedOutput, Tensor
from edgekit.protocol._http_codec import HEADER_LENGTH, decode_request, decode_response, encode_request, encode_response
from tests.protocol.strategies import same, tensors

QUICK = settings(derandomize=True, deadline=None, max_examples=100)
X = np.arange(4, dtype=np.float32).reshape(1, 4)


def length(message):
    return None if message.header_length is None else str(message.header_length)


def named(cases):
    return [Tensor(f"t{index}", array) for index, (_, array) in enumerate(cases)]


@QUICK
@given(st.lists(tensors(), max_size=4), st.text(max_size=5), st.booleans())
def test_binary_request_round_trip(cases, request_id, wants_outputs):
    outputs = [RequestedOutput("a"), RequestedOutput("b")] if wants_outputs else []
    sent = InferRequest("m", named(cases), "3", request_id, outputs, {"timeout": 5, "flag": True, "text": "é", "share": 0.5})
    message = encode_request(sent)
    got = decode_request(message.body, length(message), "m", "3")
    assert (got.id, got.model_name, got.model_version) == (sent.id, "m", "3")
    assert got.parameters == {**sent.parameters, "binary_data_output": True}
    assert [output.name for output in got.outputs] == [output.name for output in outputs]
    assert [tensor.name for tensor in got.inputs] == [tensor.name for tensor in sent.inputs]
    assert all(same(left.data, right.data) for left, right in zip(got.inputs, sent.inputs, strict=True))


@QUICK
@given(st.lists(tensors(finite=True, text=True), max_size=4), st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
def test_response_round_trip_in_the_forms_asked_for(cases, binary, default):
    sent = InferResponse("m", "1", named(cases), "id", {"edgekit_tier": "edge"})
    asked = [RequestedOutput(f"t{index}", {"binary_data": flag}) for index, flag in enumerate(binary[:2])]
    message = encode_response(sent, InferRequest("m", [], outputs=asked, parameters={"binary_data_output": default}))
    got = decode_response(message.body, length(message))
    assert (got.model_name, got.model_version, got.id, got.parameters) == ("m", "1", "id", {"edgekit_tier": "edge"})
    assert all(same(left.data, right.data) for left, right in zip(got.outputs, sent.outputs, strict=True))
    document = json.loads(message.body[: message.header_length])
    for index, entry in enumerate(document["outputs"]):
        assert ("data" in entry) != (binary[index] if index < 2 else default)


@QUICK
@given(tensors(finite=True, text=True), st.booleans())
def test_tritons_client_writes_what_we_read(case, binary):
    datatype, array = case
    if datatype == "FP16" and not binary:
        binary = True  # its library has no JSON form for it
    tensor = tritonclient.http.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    output = tritonclient.http.InferRequestedOutput("y", binary_data=binary)
    body, header = tritonclient.http.InferenceServerClient.generate_request_body([tensor], [output], request_id="7")
    got = decode_request(body, None if header is None else str(header), "m")
    assert got.id == "7"
    assert got.outputs[0].parameters["binary_data"] is binary
    assert same(got.inputs[0].data, array)


@QUICK
@given(tensors(finite=True, text=True), st.booleans())
def test_tritons_client_reads_what_we_write(case, binary):
    datatype, array = case
    response = InferResponse("m", "1", [Tensor("y", array)])
    message = encode_response(response, InferRequest("m", [], parameters={"binary_data_output": binary}))
    result = tritonclient.http.InferenceServerClient.parse_response_body(message.body, header_length=message.header_length)
    read = result.as_numpy("y")
    if datatype == "BYTES":
        read = np.vectorize(lambda item: item if isinstance(item, bytes) else item.encode(), otypes=[object])(read)
    assert same(np.asarray(read, dtype=array.dtype), array)


def test_our_binary_tensors_start_aligned():
    message = encode_request(InferRequest("m", [Tensor("x", X)]))
    assert message.header_length % 64 == 0
    body = message.body
    decoded = decode_request(body, length(message), "m").inputs[0].data
    assert np.shares_memory(decoded, np.frombuffer(body, np.uint8))


def body(raw=b"", **changes):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}
    tensor.update(changes.pop("tensor", {}))
    document = {"inputs": [{key: value for key, value in tensor.items() if value is not None}], **changes}
    return json.dumps(document).encode(), raw


BINARY = {"data": None, "parameters": {"binary_data_size": 4}}
BAD = {
    "no JSON": ((b"\x00\x01", b""), None, "request body: not a valid inference request"),
    "empty": ((b"", b""), None, "request body: not a valid"),
    "no inputs": ((b"{}", b""), None, "missing required field `inputs`"),
    "inputs of a wrong kind": ((b'{"inputs": 3}', b""), None, "Expected `array`"),
    "deep nesting": ((b'{"inputs": ' + b"[" * 100_000, b""), None, "request body: not a valid"),
    "deep parameters": ((b'{"a": ' + b"[" * 100_000, b""), None, "request body: not a valid"),
    "no name": (body(tensor={"name": None}), None, "missing required field `name`"),
    "no shape": (body(tensor={"shape": None}), None, "missing required field `shape`"),
    "float in shape": (body(tensor={"shape": [1.5]}), None, "Expected `int`"),
    "huge number in shape": (body(tensor={"shape": [10**30]}), None, "input 'x'"),
    "no data": (body(tensor={"data": None}), None, "input 'x': no data"),
    "name twice": ((b'{"inputs": [%s,%s]}' % ((b'{"name":"x","datatype":"FP32","shape":[1],"data":[1]}',) * 2), b""), None, "given twice"),
    "output twice": (body(outputs=[{"name": "y"}, {"name": "y"}]), None, "output 'y': given twice"),
    "nested parameter": (body(parameters={"a": {"b": 1}}), None, "at `$.parameters[...]`"),
    "shared memory": (body(tensor={"parameters": {"shared_memory_region": "r"}}), None, "input 'x': parameter 'shared_memory_region'"),
    "output in shared memory": (body(outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]), None, "output 'y': parameter"),
    "classes": (body(outputs=[{"name": "y", "parameters": {"classification": -3}}]), None, "output 'y': classification '-3'"),
    "data and raw": (body(b"\0" * 4, tensor={"parameters": {"binary_data_size": 4}}), True, "both 'data' and 'binary_data_size'"),
    "short raw": (body(b"\0" * 3, tensor=BINARY), True, "input 'x': binary_data_size 4, and 3 bytes are left"),
    "long raw": (body(b"\0" * 5, tensor=BINARY), True, "1 bytes after the last tensor"),
    "raw of another size": (body(b"\0" * 4, tensor={**BINARY, "shape": [2]}), True, "input 'x': 4 bytes of data; expected 8"),
    "negative size": (body(tensor={"data": None, "parameters": {"binary_data_size": -1}}), True, "binary_data_size '-1'"),
    "size is a flag": (body(tensor={"data": None, "parameters": {"binary_data_size": True}}), True, "binary_data_size 'True'"),
    "size is text": (body(tensor={"data": None, "parameters": {"binary_data_size": "4"}}), True, "binary_data_size '4'"),
    "raw without header": (body(b"\0" * 4, tensor=BINARY), None, "request body: not a valid"),
    "header too long": (body(), "9999", "header Inference-Header-Content-Length: 9999; expected 1 to"),
    "header of zero": (body(), "0", "header Inference-Header-Content-Length: 0"),
    "header is text": (body(), "ten", "header Inference-Header-Content-Length: 'ten'"),
    "header is negative": (body(), "-1", "header Inference-Header-Content-Length: '-1'"),
    "header is huge": (body(), "9" * 5000, "header Inference-Header-Content-Length"),
    "header is not ASCII": (body(), "²", "header Inference-Header-Content-Length"),
    "lone surrogate": ((b'{"inputs": [], "id": "\\ud800"}', b""), None, "request body: not a valid"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name):
    (head, raw), header, message = BAD[name]
    with pytest.raises(RequestError) as caught:
        decode_request(head + raw, str(len(head)) if header is True else header, "m")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_limits():
    limits = Limits(body_bytes=1000, tensors=2)
    with pytest.raises(RequestError, match="request body: 1001 bytes; expected at most 1000"):
        decode_request(b" " * 1001, None, "m", limits=limits)
    many = encode_request(InferRequest("m", [Tensor(f"t{i}", X) for i in range(3)]))
    with pytest.raises(RequestError, match="inputs: 3 of them; expected at most 2"):
        decode_request(many.body, length(many), "m", limits=limits)


def test_an_error_does_not_repeat_a_huge_name():
    head, _ = body(tensor={"name": "n" * 100_000, "data": None})
    with pytest.raises(RequestError) as caught:
        decode_request(head, None, "m")
    assert len(str(caught.value)) < 400


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_mutated_bodies_decode_or_are_refused(data):
    message = encode_request(InferRequest("m", [Tensor("x", X), Tensor("s", np.array([b"ab", b"c"], dtype=object))]))
    mutated = bytearray(message.body)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        piece = data.draw(st.binary(max_size=3))
        mutated[position : position + data.draw(st.integers(0, 3))] = piece
    header = data.draw(st.one_of(st.just(str(message.header_length)), st.none(), st.integers(-5, 5000).map(str)))
    refusal = None
    try:
        decode_request(bytes(mutated), header, "m")
    except RequestError as exc:  # any other exception fails the test
        refusal = str(exc)
    assert refusal is None or "\n" not in refusal


def test_header_name_is_tritons():
    assert HEADER_LENGTH == "Inference-Header-Content-Length"
    assert msgspec.json.decode(encode_request(InferRequest("m", [Tensor("x", X)]), binary=False).body)["inputs"][0]["data"] == [0, 1, 2, 3]
