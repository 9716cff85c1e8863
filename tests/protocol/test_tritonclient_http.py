"""Triton's own HTTP clients, synchronous and asyncio, unmodified, against our server."""

import asyncio
import functools
import http.client
import logging

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from edgekit.protocol import InferRequest, Tensor, serve
from edgekit.protocol._http_codec import encode_request
from tests.protocol import triton_clients
from tests.protocol.triton_clients import DATATYPES, X, array_of, kept_log_level, region

__all__ = ["region"]

pytestmark = pytest.mark.slow
an_input = functools.partial(triton_clients.an_input, tritonclient.http)


@pytest.fixture(params=["submitting", "blocking"])
def url(request, submitting_core, echo_core):
    core = submitting_core if request.param == "submitting" else echo_core
    with serve(core, ("127.0.0.1", 0), None) as server:
        yield f"127.0.0.1:{server.http_port}"


@pytest.fixture
def client(url):
    with tritonclient.http.InferenceServerClient(url, concurrency=4) as made:
        yield made


def test_health_metadata_and_repository(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert {"classification", "system_shared_memory", "logging", "binary_tensor_data"} <= set(client.get_server_metadata()["extensions"])
    assert client.get_model_metadata("echo", "1")["inputs"][0]["shape"] == [-1, 4]
    assert client.get_model_config("echo")["max_batch_size"] == 0
    assert client.get_inference_statistics("echo")["model_stats"][0]["inference_count"] == 3
    assert [row["name"] for row in client.get_model_repository_index()] == ["echo", "other"]
    client.load_model("echo")
    client.unload_model("echo")
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("nothing")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client, binary_in, binary_out):
    output = tritonclient.http.InferRequestedOutput("x", binary_data=binary_out)
    for _ in range(3):
        result = client.infer(
            "echo", [an_input(X, binary_data=binary_in)], outputs=[output], request_id="7", priority=1, timeout=10_000_000
        )
        assert result.get_response()["id"] == "7"
        np.testing.assert_array_equal(result.as_numpy("x"), X)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_datatypes(client, datatype):
    array = array_of(datatype)
    for _ in range(3):
        result = client.infer("echo", [an_input(array, datatype=datatype)], outputs=[tritonclient.http.InferRequestedOutput("x")])
        assert result.get_output("x")["datatype"] == datatype
        assert result.as_numpy("x").tolist() == array.tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [8, 2_000, 200_000])  # as it is, compressed in the loop, compressed in a thread
def test_compressed_bodies(client, url, algorithm, size):
    array = np.arange(size, dtype=np.float32) % 7
    for binary in (True, False):
        output = tritonclient.http.InferRequestedOutput("x", binary_data=binary)
        codings = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        for _ in range(3):
            result = client.infer("echo", [an_input(array)], outputs=[output], **codings)
            np.testing.assert_array_equal(result.as_numpy("x"), array)
    connection = http.client.HTTPConnection(url, timeout=20)
    message = encode_request(InferRequest("echo", [Tensor("x", array)]))
    connection.request("POST", "/v2/models/echo/infer", message.body, {**message.headers(), "Accept-Encoding": algorithm})
    answer = connection.getresponse()
    assert answer.headers.get("Content-Encoding") == (algorithm if size > 8 else None)
    assert (len(answer.read()) < array.nbytes) == (size > 8)
    connection.close()


def test_many_at_once(client):
    flights = [client.async_infer("echo", [an_input(X + index)]) for index in range(32)]
    for index, flight in enumerate(flights):
        np.testing.assert_array_equal(flight.get_result().as_numpy("x"), X + index)


def test_classification(client):
    scores = np.array([[0.1, 0.7, 0.2], [3, 1, 2]], np.float32)
    for binary in (True, False):
        output = tritonclient.http.InferRequestedOutput("x", binary_data=binary, class_count=2)
        result = client.infer("echo", [an_input(scores)], outputs=[output])
        found = [[item if isinstance(item, bytes) else item.encode() for item in row] for row in result.as_numpy("x").tolist()]
        assert found == [[b"0.700000:1:bee", b"0.200000:2:cat"], [b"3.000000:0:ant", b"2.000000:2:cat"]]


def test_system_shared_memory(client, region):
    key, handle = region
    client.register_system_shared_memory("data", key, 4096)
    assert client.get_system_shared_memory_status() == [{"name": "data", "key": key, "offset": 0, "byte_size": 4096}]
    for turn in range(3):
        shm.set_shared_memory_region(handle, [X + turn])
        given = tritonclient.http.InferInput("x", [2, 4], "FP32")
        given.set_shared_memory("data", X.nbytes)
        wanted = tritonclient.http.InferRequestedOutput("x")
        wanted.set_shared_memory("data", X.nbytes, offset=1024)
        result = client.infer("echo", [given], outputs=[wanted])
        assert result.get_output("x")["parameters"] == {
            "shared_memory_region": "data",
            "shared_memory_offset": 1024,
            "shared_memory_byte_size": X.nbytes,
        }
        np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=1024), X + turn)
    with pytest.raises(InferenceServerException, match="registered already"):
        client.register_system_shared_memory("data", key, 4096)
    client.unregister_system_shared_memory("data")
    with pytest.raises(InferenceServerException, match="not registered"):
        client.infer("echo", [given])
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="CUDA shared memory: not supported"):
        client.register_cuda_shared_memory("gpu", b"handle", 0, 64)


def test_log_and_trace_settings(client):
    with kept_log_level() as logger:
        assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        assert logger.level == logging.DEBUG
        assert client.get_log_settings()["log_info"] is True
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("echo")["trace_level"] == ["OFF"]
    with pytest.raises(InferenceServerException, match="--trace-dir"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})


async def asynchronous(url):
    async with tritonclient.http.aio.InferenceServerClient(url) as client:
        assert await client.is_server_ready()
        for _ in range(3):
            result = await client.infer("echo", [an_input(X)], outputs=[tritonclient.http.aio.InferRequestedOutput("x")])
            np.testing.assert_array_equal(result.as_numpy("x"), X)
        large = np.arange(50_000, dtype=np.float32)
        result = await client.infer("echo", [an_input(large)], response_compression_algorithm="gzip")
        np.testing.assert_array_equal(result.as_numpy("x"), large)
        with pytest.raises(InferenceServerException, match="no such model"):
            await client.infer("nothing", [an_input(X)])


def test_asyncio_client(url):
    asyncio.run(asynchronous(url))
