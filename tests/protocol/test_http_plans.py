"""The short path for repeated binary requests: it gives what the full path gives, or leaves it alone."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, Limits, RequestedOutput, Tensor
from edgekit.protocol._http_codec import decode_request, encode_request, encode_response
from edgekit.protocol._http_plans import SightedCache, fixed_part, plan_of, raw_parts, response_key
from tests.protocol.strategies import NUMERIC, same, tensors

QUICK = settings(derandomize=True, deadline=None, max_examples=200)
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "binary_data_output", "priority", "sequence_id"]),
    st.booleans() | st.integers(-1, 9) | st.text(max_size=3),
    max_size=3,
)


def plan_for(message):
    return plan_of(message.body[: message.header_length], len(message.body) - message.header_length, Limits())


@QUICK
@given(
    st.lists(tensors(), min_size=1, max_size=3),
    st.text(max_size=4),
    st.lists(st.sampled_from([{}, {"binary_data": True}, {"binary_data": False}, {"classification": 1}]), max_size=2),
    PARAMETERS,
    st.integers(0, 9),
)
def test_a_plan_reads_what_the_full_path_reads(cases, request_id, outputs, parameters, start):
    sent = InferRequest(
        "m",
        [Tensor(f"t{index}", array, {"p": 1} if index else {}) for index, (_, array) in enumerate(cases)],
        "3",
        request_id,
        [RequestedOutput(f"o{index}", kind) for index, kind in enumerate(outputs)],
        parameters,
    )
    message = encode_request(sent)
    full = decode_request(message.body, str(message.header_length), "m", "3")
    plan = plan_for(message)
    if plan is None:  # BYTES, empty tensors, or a timeout that is refused later
        assert any(array.size == 0 or array.dtype == object for _, array in cases) or "timeout" in parameters
        return
    assert plan.total == len(message.body)
    body = b"x" * start + message.body
    for data in (body, memoryview(bytearray(body)).toreadonly()):
        got = plan.request(data, start, "m", "3")
        assert [same(left.data, right.data) for left, right in zip(got.inputs, full.inputs, strict=True)] == [True] * len(cases)
        assert all(tensor.data.flags.aligned and not tensor.data.flags.writeable for tensor in got.inputs)
        stripped = [
            msgspec.structs.replace(request, inputs=[Tensor(t.name, np.empty(0), t.parameters) for t in request.inputs])
            for request in (got, full)
        ]
        assert repr(stripped[0]) == repr(stripped[1])


@QUICK
@given(st.lists(tensors(tuple(name for name in NUMERIC)), min_size=1, max_size=3), st.text(max_size=3), st.booleans(), st.data())
def test_the_fixed_part_and_the_numbers_make_the_full_answer(cases, request_id, by_output, data):
    outputs = [RequestedOutput(f"o{index}", {"binary_data": True}) for index in range(len(cases))] if by_output else []
    request = InferRequest(
        "m",
        [Tensor("x", np.zeros(1, np.float32))],
        id=request_id,
        outputs=outputs,
        parameters={} if by_output else {"binary_data_output": True},
    )
    message = encode_request(request)
    plan = plan_for(message)
    assert plan is not None
    assert plan.all_binary

    def answer(arrays):
        return InferResponse("m", "1", [Tensor(f"o{index}", array) for index, array in enumerate(arrays)], request_id)

    first = answer([array for _, array in cases])
    decoded = decode_request(message.body, str(message.header_length), "m")
    part = fixed_part(encode_response(first, decoded), first)
    if part is None:
        return
    key = response_key(plan, first)
    assert key is not None
    # Other numbers of the same kinds and shapes: the same key, and the fixed part still fits.
    arrays = [data.draw(st.sampled_from([array, array[::-1] if array.ndim else array, np.zeros_like(array)])) for _, array in cases]
    other = answer(arrays)
    assert response_key(plan, other) == key
    full = encode_response(other, decoded)
    head, _, rest = (part + b"".join(bytes(raw) for raw in raw_parts(other))).partition(b"\r\n\r\n")
    assert rest == full.body
    assert f"Content-Length: {len(full.body)}" in head.decode()
    assert f"Inference-Header-Content-Length: {full.header_length}" in head.decode()


def test_what_depends_on_more_has_no_key():
    message = encode_request(InferRequest("m", [Tensor("x", np.zeros(1, np.float32))]))
    plan = plan_for(message)
    y = Tensor("y", np.zeros(2, np.float32))
    assert response_key(plan, InferResponse("m", "1", [y])) is not None
    assert response_key(plan, InferResponse("m", "1", [y], "7")) is None
    assert response_key(plan, InferResponse("m", "1", [y], parameters={"edgekit_tier": "edge"})) is None
    assert response_key(plan, InferResponse("m", "1", [Tensor("y", y.data, {"a": 1})])) is None
    keys = {
        response_key(plan, InferResponse(name, version, [Tensor(tensor, np.zeros(shape, dtype))]))
        for name in "mn"
        for version in "12"
        for tensor in "yz"
        for shape in ((2,), (1, 2), (3,))
        for dtype in (np.float32, np.int32, ">f4", np.float64)
    }
    assert len(keys) == 2 * 2 * 2 * 3 * 4


def test_big_endian_and_bytes_are_never_fixed():
    request = decode_request(*_binary())
    for array in (np.zeros(2, ">f4"), np.array([b"a"], dtype=object)):
        response = InferResponse("m", "1", [Tensor("y", array)])
        assert fixed_part(encode_response(response, request), response) is None


def _binary():
    message = encode_request(InferRequest("m", [Tensor("x", np.zeros(1, np.float32))]))
    return message.body, str(message.header_length), "m"


def test_what_the_full_path_refuses_has_no_plan():
    message = encode_request(InferRequest("m", [Tensor("x", np.zeros(1, np.float32)), Tensor("y", np.zeros(1, np.float32))]))
    head, size = message.body[: message.header_length], len(message.body) - message.header_length
    assert plan_of(head, size, Limits()) is not None
    assert plan_of(head, size - 1, Limits()) is None
    assert plan_of(head, size, Limits(tensors=1)) is None
    for old, new in (
        (b'"y"', b'"x"'),
        (b"FP32", b"FP64"),
        (b"[1]", b"[2]"),
        (b"[1]", b"[-1]"),
        (b'"name"', b'"nome"'),
        (b"4}", b"true}"),
        (b"{", b"["),
    ):
        assert plan_of(head.replace(old, new), size, Limits()) is None


def test_bool_bytes_are_still_checked():
    message = encode_request(InferRequest("m", [Tensor("x", np.array([True, False]))]))
    plan = plan_for(message)
    body = message.body[:-1] + b"\2"
    with pytest.raises(RequestError, match="byte 2 at element 1"):
        plan.request(body, 0, "m", "")


def test_a_cache_keeps_what_comes_twice_and_stays_small():
    cache = SightedCache(3)
    cache.offer("a", 1)
    assert cache.entries == {}
    cache.offer("a", 1)
    assert cache.entries == {"a": 1}
    for index in range(1000):
        cache.offer(index, index)
    assert cache.entries == {"a": 1}
    for index in range(5):
        cache.offer(f"k{index}", index)
        cache.offer(f"k{index}", index)
    assert list(cache.entries) == ["k2", "k3", "k4"]


def test_requests_of_a_plan_share_nothing_that_changes():
    sent = InferRequest("m", [Tensor("x", np.zeros(1, np.float32), {"p": 1})], outputs=[RequestedOutput("y")], parameters={"a": 1})
    message = encode_request(sent)
    plan = plan_for(message)
    first = plan.request(message.body, 0, "m", "")
    first.parameters["a"] = 2
    first.outputs[0].parameters["binary_data"] = False
    first.inputs[0].parameters["p"] = 2
    first.outputs.clear()
    second = plan.request(message.body, 0, "m", "")
    assert (second.parameters["a"], second.inputs[0].parameters["p"], second.outputs[0].parameters["binary_data"]) == (1, 1, True)
