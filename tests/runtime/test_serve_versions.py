"""A server that follows a repository: swaps by the command line's hand, rollouts by HTTP and gRPC, telemetry of both."""

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc

from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.runtime import CacheOptions, FolderStore, RepositoryOptions, serve_bundles
from edgekit.telemetry import MemoryTransport, start_telemetry
from tests.runtime.serving_bundles import write_scale

pytestmark = pytest.mark.slow
X = np.ones((1, 4), np.float32)


@pytest.fixture
def bundles(tmp_path):
    for version in ("1", "2", "3"):
        write_scale(tmp_path / version, version=version, scale=float(version))
    return tmp_path


@pytest.fixture
def telemetry():
    with start_telemetry("edgekit-runtime", "edge", transport=MemoryTransport(), device_id="here", interval_s=60) as started:
        yield started


@pytest.fixture
def server(bundles, telemetry):
    FolderStore(bundles / "repository").install(bundles / "1", ["stable"])
    options = RepositoryOptions(folder=str(bundles / "repository"))
    with serve_bundles([], ("127.0.0.1", 0), ("127.0.0.1", 0), telemetry, repository=options) as started:
        yield started


def post(server, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/v2/{path}", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def until(condition):
    """What another thread is about to do."""
    limit_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit_s


def answer(client, version=""):
    return client.infer(InferRequest("scale", [Tensor("x", X)], version), 10.0)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_installed_version_takes_over_without_a_lost_request(server, bundles, telemetry, scheme):
    port = server.http_port if scheme == "http" else server.grpc_port
    client = connect(f"{scheme}://127.0.0.1:{port}")
    answers, stop = [], threading.Event()

    def ask():
        own = connect(f"{scheme}://127.0.0.1:{port}")
        while not stop.is_set():
            found = answer(own)
            answers.append((found.model_version, float(found.outputs[0].data[0, 0])))
        own.close()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    store = FolderStore(bundles / "repository")
    for version in ("2", "3"):
        store.install(bundles / version, ["stable"])
        until(lambda version=version: answer(client).model_version == version)
    store.remove("scale", "1")
    until(lambda: len(post(server, "repository/index", {})) == 2)
    stop.set()
    for thread in threads:
        thread.join(10)
    client.close()
    assert {version for version, _ in answers} == {"1", "2", "3"}
    assert all(float(version) == value for version, value in answers)
    points = [point for point in telemetry.meter.collect(time.time_ns()) if point.name == "edgekit.model.changes"]
    swaps = {point.attributes["edgekit.model.version"]: point.value for point in points if point.attributes["edgekit.change"] == "swap"}
    assert swaps == {"2": 1, "3": 1}


def test_rollouts_over_http_and_grpc(server, bundles):
    FolderStore(bundles / "repository").install(bundles / "2")
    post(server, "repository/models/scale/load", {"parameters": {"rollout": "split", "version": "2", "share": 0.5}})
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    seen = {client.infer("scale", [tensor], request_id=str(key)).get_response().model_version for key in range(40)}
    assert seen == {"1", "2"}
    config = client.get_model_config("scale", as_json=True)["config"]
    assert config["parameters"]["labels"]["string_value"] == "canary=2,stable=1"
    assert json.loads(config["parameters"]["rollout"]["string_value"])["now"]["share"] == 0.5
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, "repository/models/scale/load", {"parameters": {"label": "stable", "version": "2"}})
    assert refused.value.code == 400
    assert "a rollout of model scale holds it" in json.load(refused.value)["error"]
    post(server, "repository/models/scale/load", {"parameters": {"rollout": "promote"}})
    assert client.infer("scale", [tensor], model_version="stable").get_response().model_version == "2"
    client.close()


def test_an_empty_repository_is_live_and_becomes_ready(bundles):
    options = RepositoryOptions(folder=str(bundles / "new"))
    with serve_bundles([], ("127.0.0.1", 0), None, repository=options) as started:
        client = connect(f"http://127.0.0.1:{started.http_port}")
        assert not client.ready()
        FolderStore(bundles / "new").install(bundles / "1")
        until(client.ready)
        assert answer(client).model_version == "1"
        client.close()


def test_the_result_cache_over_http_and_grpc(bundles, telemetry):
    options = RepositoryOptions(folder=str(bundles / "repository"))
    FolderStore(bundles / "repository").install(bundles / "1", ["stable"])
    with serve_bundles([], ("127.0.0.1", 0), ("127.0.0.1", 0), telemetry, repository=options, cache=CacheOptions(1 << 20)) as started:
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{started.grpc_port}")
        tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        own = connect(f"http://127.0.0.1:{started.http_port}")
        answers = [answer(own), answer(own)]
        assert [found.parameters.get("edgekit_cache") for found in answers] == [None, "hit"]
        found = client.infer("scale", [tensor], request_id="seven")
        assert found.get_response().parameters["edgekit_cache"].string_param == "hit"
        assert found.get_response().id == "seven"
        np.testing.assert_array_equal(found.as_numpy("y"), X)
        stats = client.get_inference_statistics("scale", as_json=True)["model_stats"][0]
        assert (stats["inference_stats"]["cache_hit"]["count"], stats["inference_stats"]["cache_miss"]["count"]) == ("2", "1")
        assert (stats["inference_count"], stats["execution_count"]) == ("3", "1")
        FolderStore(bundles / "repository").install(bundles / "2", ["stable"])
        until(lambda: answer(own).model_version == "2")
        assert float(answer(own).outputs[0].data[0, 0]) == 2.0
        own.close()
        client.close()
    names = {point.name for point in telemetry.meter.collect(time.time_ns())}
    assert {"edgekit.cache.lookups", "edgekit.cache.bytes", "edgekit.model.changes"} <= names
