"""What the gRPC transport does beyond the codec: bytes that are no protobuf, deadlines, streams, limits."""

import sys

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import EnvironmentMissingError
from edgekit.protocol import Limits, serve
from edgekit.protocol._grpc_messages import message_classes, methods

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def channel(core):
    with serve(core, None, ("127.0.0.1", 0), limits=Limits(body_bytes=10_000)) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
            yield opened
        core.release.set()


def message(model="echo", **fields):
    built = message_classes()["ModelInferRequest"](model_name=model, **fields)
    built.inputs.add(name="x", datatype="FP32", shape=[1])
    built.raw_input_contents.append(b"\0\0\x80\x3f")
    return built


def call(channel, name, raw, **options):
    """The response's bytes, or the status and details of the error."""
    try:
        return channel.unary_unary(methods()[name].path(name))(raw, timeout=10, **options)
    except grpc.RpcError as exc:
        return exc.code(), exc.details()


def test_infer(channel):
    raw = call(channel, "ModelInfer", message(id="7").SerializeToString())
    response = message_classes()["ModelInferResponse"].FromString(raw)
    assert (response.id, response.raw_output_contents[0]) == ("7", b"\0\0\x80\x3f")


def test_statuses(channel):
    assert call(channel, "ModelInfer", b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert call(channel, "ModelInfer", message("nope").SerializeToString())[0] is grpc.StatusCode.NOT_FOUND
    status, details = call(channel, "ModelInfer", message("bug").SerializeToString())
    assert status is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    status, details = call(channel, "ModelInfer", message(id="x" * 2_000_000).SerializeToString())
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_huge_model_name_does_not_break_the_answer(channel):
    status, details = call(channel, "ModelInfer", message("n" * 100_000).SerializeToString())
    assert status is grpc.StatusCode.NOT_FOUND
    assert len(details) <= 2000


def test_the_clients_deadline_reaches_the_core(channel, core):
    call(channel, "ModelInfer", message().SerializeToString())
    assert core.requests[-1].deadline_s is not None


def test_a_stream_answers_each_request_and_survives_errors(channel):
    method = methods()["ModelStreamInfer"]
    stream = channel.stream_stream(method.path("ModelStreamInfer"), method.request.SerializeToString, method.response.FromString)
    asked = message(id="c")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    replies = list(stream(iter([message(id="a"), message("nope", id="b"), asked]), timeout=10))
    assert [reply.infer_response.id for reply in replies] == ["a", "b", "c"]
    assert [bool(reply.error_message) for reply in replies] == [False, True, False]
    assert "no such model" in replies[1].error_message
    assert replies[2].infer_response.parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in replies[0].infer_response.parameters


@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_message_makes_an_internal_error(channel, data):
    raw = bytearray(message().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw)))
        raw[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    answer = call(channel, "ModelInfer", bytes(raw))
    assert isinstance(answer, bytes) or answer[0] in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


@pytest.mark.parametrize("module", ["ngh2", "google.protobuf"])
def test_a_missing_package_is_named_with_its_extra(core, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentMissingError, match=r"gRPC server.*edgekit-ml\[server\]"):
        serve(core, None, ("127.0.0.1", 0))
