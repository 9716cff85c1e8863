"""Triton's own gRPC clients, synchronous, asyncio and streaming, unmodified, against our server."""

import asyncio
import functools
import logging
import queue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from edgekit.protocol import serve
from tests.protocol import triton_clients
from tests.protocol.triton_clients import DATATYPES, X, array_of, kept_log_level, region

__all__ = ["region"]

pytestmark = pytest.mark.slow
an_input = functools.partial(triton_clients.an_input, tritonclient.grpc)


@pytest.fixture(params=["submitting", "blocking"])
def url(request, submitting_core, echo_core):
    core = submitting_core if request.param == "submitting" else echo_core
    with serve(core, None, ("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.grpc_port}"


@pytest.fixture
def client(url):
    with tritonclient.grpc.InferenceServerClient(url) as made:
        yield made


def test_health_metadata_and_repository(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert not client.is_model_ready("nothing")
    assert {"classification", "system_shared_memory", "logging", "binary_tensor_data"} <= set(client.get_server_metadata().extensions)
    assert list(client.get_model_metadata("echo", "1").inputs[0].shape) == [-1, 4]
    assert client.get_model_config("echo").config.max_batch_size == 0
    assert client.get_inference_statistics("echo").model_stats[0].inference_count == 3
    assert [row.name for row in client.get_model_repository_index().models] == ["echo", "other"]
    client.load_model("echo")
    client.unload_model("echo")
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("nothing")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(client, compression):
    output = tritonclient.grpc.InferRequestedOutput("x")
    for _ in range(3):
        result = client.infer(
            "echo", [an_input(X)], outputs=[output], request_id="7", priority=1, timeout=10_000_000, compression_algorithm=compression
        )
        assert result.get_response().id == "7"
        np.testing.assert_array_equal(result.as_numpy("x"), X)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_datatypes(client, datatype):
    array = array_of(datatype)
    for _ in range(3):
        result = client.infer("echo", [an_input(array, datatype=datatype)])
        assert result.get_output("x").datatype == datatype
        assert result.as_numpy("x").tolist() == array.tolist()


def test_sequences_and_parameters_are_passed_on(client, url, submitting_core, echo_core):
    client.infer("echo", [an_input(X)], sequence_id=7, sequence_start=True, sequence_end=False, parameters={"k": "v"})
    arrived = (submitting_core.requests or echo_core.requests)[-1].parameters
    assert (arrived["sequence_id"], arrived["sequence_start"], arrived["sequence_end"], arrived["k"]) == (7, True, False, "v")


def test_classes(client):
    scores = np.array([0.1, 0.5, 0.4], np.float32)
    result = client.infer("echo", [an_input(scores)], outputs=[tritonclient.grpc.InferRequestedOutput("x", class_count=2)])
    assert [item.decode().split(":")[1:] for item in result.as_numpy("x")] == [["1", "bee"], ["2", "cat"]]


def test_shared_memory(client, region):
    key, handle = region
    shm.set_shared_memory_region(handle, [X])
    client.register_system_shared_memory("data", key, 4096)
    status = client.get_system_shared_memory_status("data").regions["data"]
    assert (status.key, status.offset, status.byte_size) == (key, 0, 4096)
    tensor = tritonclient.grpc.InferInput("x", [2, 4], "FP32")
    tensor.set_shared_memory("data", X.nbytes)
    other = an_input(np.array([5], np.int32), "z", "INT32")
    output = tritonclient.grpc.InferRequestedOutput("x")
    output.set_shared_memory("data", X.nbytes, offset=1024)
    result = client.infer("echo", [tensor, other], outputs=[output, tritonclient.grpc.InferRequestedOutput("z")])
    np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=1024), X)
    assert result.as_numpy("z").tolist() == [5]
    tensor.set_shared_memory("data", 8192)
    with pytest.raises(InferenceServerException, match="a range within the 4096"):
        client.infer("echo", [tensor])
    with pytest.raises(InferenceServerException, match="registered already"):
        client.register_system_shared_memory("data", key, 4096)
    client.unregister_system_shared_memory("data")
    with pytest.raises(InferenceServerException, match="not registered"):
        client.infer("echo", [tensor])
    with pytest.raises(InferenceServerException, match="no such method"):
        client.get_cuda_shared_memory_status()


def test_log_and_trace_settings(client):
    with kept_log_level() as logger:
        assert client.update_log_settings({"log_verbose_level": 1}).settings["log_verbose_level"].uint32_param == 1
        assert logger.level == logging.DEBUG
        assert client.get_log_settings().settings["log_error"].bool_param
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    client.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": None})
    with pytest.raises(InferenceServerException, match="--trace-dir"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})


def test_many_at_once(client):
    found = queue.Queue()
    for index in range(50):
        client.async_infer("echo", [an_input(X + index)], lambda result, error: found.put((result, error)), request_id=str(index))
    for _ in range(50):
        result, error = found.get(timeout=20)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("x"), X + int(result.get_response().id))


def test_a_stream(client):
    found = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    for index in range(100):
        client.async_stream_infer("echo", [an_input(X + index)], request_id=str(index), enable_empty_final_response=index == 99)
    client.async_stream_infer("nothing", [an_input(X)], request_id="bad")
    seen, refused = set(), []
    for _ in range(101):
        result, error = found.get(timeout=20)
        if error is not None:
            refused.append(str(error))
            continue
        answer = result.get_response()
        np.testing.assert_array_equal(result.as_numpy("x"), X + int(answer.id))
        assert ("triton_final_response" in answer.parameters) == (answer.id == "99")
        seen.add(answer.id)
    client.stop_stream()
    assert len(seen) == 100
    assert len(refused) == 1
    assert "no such model" in refused[0]


def test_asyncio(url):
    async def use():
        async with tritonclient.grpc.aio.InferenceServerClient(url) as client:
            assert await client.is_server_live()
            results = await asyncio.gather(*(client.infer("echo", [an_input(X + index)]) for index in range(30)))
            for index, result in enumerate(results):
                np.testing.assert_array_equal(result.as_numpy("x"), X + index)

            async def requests():
                for index in range(10):
                    yield {"model_name": "echo", "inputs": [an_input(X + index)], "request_id": str(index)}

            seen = [result.get_response().id async for result, error in client.stream_infer(requests()) if error is None]
            assert sorted(map(int, seen)) == list(range(10))

    asyncio.run(use())
