"""The short path and the full one give the same requests and answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgeKitError, RequestError
from edgekit.protocol import InferRequest, InferResponse, Limits, RequestedOutput, Tensor
from edgekit.protocol._grpc_codec import decode_request, decode_response, encode_request, encode_response
from edgekit.protocol._grpc_fast import RequestScanner, ResponseWriter, stream_parts
from edgekit.protocol._grpc_fast_client import RequestWriter, read_response
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._shared_memory import SharedMemoryRegions
from tests.protocol.strategies import same, tensors

QUICK = settings(derandomize=True, deadline=None, max_examples=100)
LIMITS = Limits(tensors=4, dims=6)
PARAMETERS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=8)),
    max_size=2,
)
NAMES = st.text(max_size=4)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@st.composite
def requests(draw):
    cases = draw(st.lists(tensors(), max_size=3))
    named = [Tensor(draw(NAMES), array, draw(PARAMETERS)) for _, array in cases]
    outputs = [RequestedOutput(draw(NAMES), draw(PARAMETERS)) for _ in range(draw(st.integers(0, 2)))]
    return InferRequest(draw(NAMES), named, draw(NAMES), draw(NAMES), outputs, draw(PARAMETERS))


def full(raw):
    """The request by the full path, or its error."""
    try:
        return decode_request(message_classes()["ModelInferRequest"].FromString(bytes(raw)), LIMITS, SharedMemoryRegions())
    except EdgeKitError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - protobuf's own
        return exc


def equal(left, right):
    facts = ("model_name", "model_version", "id", "parameters", "outputs")
    return all(getattr(left, fact) == getattr(right, fact) for fact in facts) and all(
        one.name == other.name and one.parameters == other.parameters and same(one.data, other.data)
        for one, other in zip(left.inputs, right.inputs, strict=True)
    )


@QUICK
@given(st.lists(requests(), min_size=1, max_size=4))
def test_both_paths_give_the_same_request(sent):
    scanner = RequestScanner(LIMITS)
    for request in [*sent, *sent]:  # the second time from what it keeps
        raw = encode_request(request).SerializeToString()
        got, expected = scanner.scan(memoryview(raw)), full(raw)
        if isinstance(expected, Exception):
            assert got is None
        else:
            assert got is not None
            assert equal(got, expected)


@QUICK
@given(requests(), st.data())
def test_what_the_scanner_reads_from_damaged_bytes_is_what_the_full_path_reads(request, data):
    scanner = RequestScanner(LIMITS)
    whole = encode_request(request).SerializeToString()
    scanner.scan(memoryview(whole))
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw)))
        raw[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    got, expected = scanner.scan(memoryview(bytes(raw))), full(raw)
    assert got is None or (not isinstance(expected, Exception) and equal(got, expected))


def test_common_requests_take_the_short_path():
    scanner = RequestScanner(LIMITS)
    for fields in ({}, {"id": "7"}, {"parameters": {"timeout": 5}}, {"outputs": [RequestedOutput("y")]}):
        for _ in range(2):
            raw = memoryview(encode_request(InferRequest("model", [Tensor("x", X)], **fields)).SerializeToString())
            got = scanner.scan(raw)
            assert got is not None
            assert not got.inputs[0].data.flags.writeable


def test_cached_requests_do_not_share_what_can_change():
    scanner = RequestScanner(LIMITS)
    raw = memoryview(
        encode_request(InferRequest("m", [Tensor("x", X, {"k": 1})], outputs=[RequestedOutput("y", {"z": 1})])).SerializeToString()
    )
    scanner.scan(raw)
    first = scanner.scan(raw)
    first.inputs[0].parameters["k"] = 2
    first.outputs[0].parameters["z"] = 2
    first.parameters["new"] = 1
    first.outputs.append(RequestedOutput("more"))
    second = scanner.scan(raw)
    assert (second.inputs[0].parameters, second.outputs, second.parameters) == ({"k": 1}, [RequestedOutput("y", {"z": 1})], {})


def test_what_is_left_to_the_full_path():
    scanner = RequestScanner(LIMITS)
    message = encode_request(InferRequest("m", [Tensor("x", X)]))
    raw = message.SerializeToString()
    for damaged in (
        b"\x7a\x00" + raw,
        raw + b"\x7a\x00",
        raw + b"\x0a\x01n",
        raw[:-1],
        raw + b"\x3a",
        raw + b"\x3a\x00",
        raw + b"\x3a\xff\xff\xff\xff\xff\xff",
    ):
        assert scanner.scan(memoryview(damaged)) is None
    typed = message_classes()["ModelInferRequest"](model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    assert scanner.scan(memoryview(typed.SerializeToString())) is None


def test_the_caches_are_bounded():
    scanner = RequestScanner(Limits())
    for index in range(1000):
        scanner.scan(memoryview(encode_request(InferRequest(f"m{index}", [Tensor(f"x{index}", X)])).SerializeToString()))
    scanner.scan(memoryview(encode_request(InferRequest("m" * 10_000, [Tensor("x" * 10_000, X)])).SerializeToString()))
    kept = [*scanner._plans, *scanner._prefixes]
    assert 0 < len(kept) <= 512
    assert max(map(len, kept)) <= 4096
    assert len(scanner._lengths) <= 4


@QUICK
@given(st.lists(tensors(), max_size=3), NAMES, PARAMETERS, st.booleans())
def test_both_writers_give_the_same_answer(cases, identity, parameters, with_parameters):
    named = [Tensor(f"t{index}", array, {"k": index} if with_parameters else {}) for index, (_, array) in enumerate(cases)]
    response = InferResponse("m", "3", named, identity, parameters)
    writer = ResponseWriter()
    expected = encode_response(response)
    for _ in range(2):
        raw = b"".join(writer.parts(response))
        assert type(expected).FromString(raw) == expected
        streamed = message_classes()["ModelStreamInferResponse"].FromString(b"".join(stream_parts([raw])))
        assert streamed.infer_response == expected


def test_classes_and_shared_memory_in_answers(tmp_path):
    (tmp_path / "region").write_bytes(bytes(64))
    regions = SharedMemoryRegions(folder=str(tmp_path))
    regions.register("r", "/region", 0, 64, local=True)
    asked = [
        RequestedOutput("y", {"classification": 2}),
        RequestedOutput("x", {"shared_memory_region": "r", "shared_memory_byte_size": 24}),
    ]
    request = InferRequest("m", [], outputs=asked)
    response = InferResponse("m", "1", [Tensor("y", np.array([0.1, 0.7, 0.2], np.float32)), Tensor("x", X)])
    message = message_classes()["ModelInferResponse"].FromString(b"".join(ResponseWriter().parts(response, request, regions)))
    assert [output.datatype for output in message.outputs] == ["BYTES", "FP32"]
    assert b"0.700000:1" in message.raw_output_contents[0]
    assert message.raw_output_contents[1] == b""  # clients count one for each output
    assert message.outputs[1].parameters["shared_memory_byte_size"].int64_param == 24
    assert (tmp_path / "region").read_bytes()[:24] == X.tobytes()
    with pytest.raises(RequestError, match="output 'x'"):
        asked[1].parameters["shared_memory_byte_size"] = 8
        ResponseWriter().parts(response, request, regions)
    regions.close()


@QUICK
@given(st.lists(requests(), min_size=1, max_size=4))
def test_the_clients_short_path_writes_the_same_requests(sent):
    writer = RequestWriter()
    for request in [*sent, *sent]:
        try:
            expected = encode_request(request)
        except RequestError:
            with pytest.raises(RequestError):
                writer.parts(request)
            continue
        assert message_classes()["ModelInferRequest"].FromString(b"".join(writer.parts(request))) == expected


def read_in_full(raw):
    """The answer by the full path, or `RequestError`."""
    try:
        return decode_response(message_classes()["ModelInferResponse"].FromString(raw), LIMITS)
    except Exception:  # noqa: BLE001 - protobuf's own, or ours
        return RequestError


@QUICK
@given(st.data())
def test_the_clients_short_path_reads_the_same_answers(data):
    request = data.draw(requests())
    try:
        raw = encode_response(InferResponse("m", "1", request.inputs, request.id, request.parameters)).SerializeToString()
    except RequestError:
        return
    cut = data.draw(st.integers(0, len(raw)))
    # As it is; its two halves the other way round, damaged at one place, cut off.
    for each in (raw, raw[cut:] + raw[:cut], raw[:cut] + data.draw(st.binary(min_size=1, max_size=2)) + raw[cut + 1 :], raw[:cut]):
        expected = read_in_full(each)
        if expected is RequestError:
            with pytest.raises(RequestError):
                read_response(memoryview(each), LIMITS)
            continue
        got = read_response(memoryview(each), LIMITS)
        assert (got.model_name, got.id, got.parameters) == (expected.model_name, expected.id, expected.parameters)
        assert [(tensor.name, tensor.parameters) for tensor in got.outputs] == [
            (tensor.name, tensor.parameters) for tensor in expected.outputs
        ]
        assert all(same(one.data, other.data) for one, other in zip(got.outputs, expected.outputs, strict=True))
        assert not any(tensor.data.flags.writeable for tensor in got.outputs if tensor.datatype != "BYTES")
