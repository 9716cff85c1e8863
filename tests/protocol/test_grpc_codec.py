"""gRPC messages to our types and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, Limits, ModelMetadata, RequestedOutput, Tensor, TensorMetadata
from edgekit.protocol._grpc_codec import (
    decode_metadata,
    decode_request,
    decode_response,
    encode_metadata,
    encode_request,
    encode_response,
)
from edgekit.protocol._grpc_messages import message_classes
from tests.protocol.strategies import same, tensors

QUICK = settings(derandomize=True, deadline=None, max_examples=100)
PARAMETERS = {"timeout": 5, "big": 2**63, "negative": -(2**63), "flag": True, "share": 0.5, "text": "é"}
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def wire(message):
    return type(message).FromString(message.SerializeToString())


@QUICK
@given(st.lists(tensors(), max_size=4))
def test_request_and_response_round_trip(cases):
    named = [Tensor(f"t{index}", array, {"k": index}) for index, (_, array) in enumerate(cases)]
    sent = InferRequest("m", named, "3", "id", [RequestedOutput("a", {"z": 1})], PARAMETERS)
    got = decode_request(wire(encode_request(sent)))
    assert (got.model_name, got.model_version, got.id, got.parameters, got.outputs) == ("m", "3", "id", PARAMETERS, sent.outputs)
    answer = decode_response(wire(encode_response(InferResponse("m", "3", named, "id", PARAMETERS))))
    assert (answer.model_name, answer.model_version, answer.id, answer.parameters) == ("m", "3", "id", PARAMETERS)
    for side in (got.inputs, answer.outputs):
        assert all(same(left.data, right.data) and left.parameters == right.parameters for left, right in zip(side, named, strict=True))


@QUICK
@given(tensors(datatypes=tuple(CONTENTS)))
def test_typed_contents(case):
    datatype, array = case
    message = message_classes()["ModelInferRequest"](model_name="m")
    entry = message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    getattr(entry.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    got = decode_request(wire(message)).inputs[0].data
    assert got.shape == array.shape
    assert same(got, array) or np.array_equal(got, array, equal_nan=True)  # a float NaN may change its payload in protobuf


def request(**changes):
    message = message_classes()["ModelInferRequest"](model_name="m")
    fields = {"name": "x", "datatype": "FP32", "shape": [1], **changes.pop("tensor", {})}
    contents = changes.pop("contents", None)
    entry = message.inputs.add(**fields)
    for key, values in (contents or {}).items():
        getattr(entry.contents, key).extend(values)
    message.raw_input_contents.extend(changes.pop("raw", []))
    for key, value in changes.pop("parameters", {}).items():
        setattr(message.parameters[key], *value) if value else message.parameters[key].SetInParent()
    return message


BAD = {
    "no data": (request(), "input 'x': 0 values in fp32_contents; expected 1"),
    "too many raws": (request(raw=[b"\0" * 4] * 2), "raw_input_contents: 2 entries; expected 1"),
    "raw and contents": (request(raw=[b"\0" * 4], contents={"fp32_contents": [1]}), "input 'x': both contents and raw_input_contents"),
    "raw of another size": (request(raw=[b"\0" * 5]), "input 'x': 5 bytes of data; expected 4 for FP32[1]"),
    "values in another field": (request(contents={"int_contents": [1]}), "input 'x': values in int_contents; expected fp32_contents"),
    "FP16 in contents": (request(tensor={"datatype": "FP16"}), "input 'x': FP16 without raw contents"),
    "out of range": (request(tensor={"datatype": "INT8"}, contents={"int_contents": [200]}), "input 'x': a value out of range"),
    "negative dimension": (request(tensor={"shape": [-1]}), "input 'x': dimension -1"),
    "product overflow": (request(tensor={"shape": [1 << 62, 1 << 62]}), "input 'x': shape [4611686018427387904,4611686018427387904]"),
    "datatype": (request(tensor={"datatype": "float"}), "input 'x': datatype 'float'"),
    "dimensions": (request(tensor={"shape": [1] * 17}), "input 'x': 17 dimensions"),
    "empty parameter": (request(contents={"fp32_contents": [1]}, parameters={"p": None}), "parameter 'p': no value"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name):
    message, expected = BAD[name]
    with pytest.raises(RequestError) as caught:
        decode_request(wire(message))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_and_double_names():
    message = request(raw=[b"\0" * 4])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(RequestError, match="input 'x': given twice"):
        decode_request(message)
    with pytest.raises(RequestError, match="inputs: 2 of them; expected at most 1"):
        decode_request(message, Limits(tensors=1))


def test_a_parameter_beyond_64_bits_is_refused():
    with pytest.raises(RequestError, match="parameter 'p': an integer of more than 64 bits"):
        encode_request(InferRequest("m", [], parameters={"p": 1 << 64}))


def test_metadata_round_trip():
    metadata = ModelMetadata("m", ["1", "2"], "p", [TensorMetadata("x", "FP32", [-1, 4])], [TensorMetadata("y", "BYTES", [])])
    assert decode_metadata(wire(encode_metadata(metadata))) == metadata


def test_empty_contents_beside_raw_ones_are_none():
    """As MLServer's client sends them."""
    message = request(raw=[np.float32(7).tobytes()])
    message.inputs[0].contents.SetInParent()
    assert message.inputs[0].HasField("contents")
    assert decode_request(message).inputs[0].data.tolist() == [7]
