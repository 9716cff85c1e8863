"""The router behind real HTTP and gRPC servers, between real servers of both tiers; and a cloud that dies, hangs or refuses under load."""

import queue
import re
import socket
import threading
import time

import numpy as np
import pytest

from edgekit.errors import BindError, DeadlineError, NotFoundError, RequestError, UsageError
from edgekit.protocol import InferRequest, RequestedOutput, Tensor, connect, serve
from edgekit.router import Router, RouterCore, RouterOptions, serve_router
from edgekit.runtime import serve_bundles

X = np.arange(8, dtype=np.float32).reshape(1, 8)
ANY = ("127.0.0.1", 0)


def request(model="tiny_mlp", name="x", data=X, **more):
    return InferRequest(model, [Tensor(name, data)], **more)


def until(happens, limit_s=15.0):
    """Wait for something; the limit is only there to end a test that fails."""
    ends = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < ends
        threading.Event().wait(0.01)


# The core, without a socket


@pytest.fixture
def core(bundle):
    with Router(bundle, sla_ms=1000) as router:
        yield RouterCore(router)


def test_metadata_is_the_edges(core):
    metadata = core.model_metadata("tiny_mlp")
    assert (metadata.name, metadata.versions, metadata.platform) == ("tiny_mlp", ["1"], "edgekit_onnxruntime")
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [("x", "FP32", [1, 8])]
    assert core.model_config("tiny_mlp")["output"] == [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [1, 4]}]
    assert core.server_metadata().name == "edgekit-router"
    assert "sequence" in core.server_metadata().extensions
    assert core.live()
    assert core.ready()
    assert core.model_ready("tiny_mlp", "1")
    assert [(e.name, e.version, e.state) for e in core.repository_index()] == [("tiny_mlp", "1", "READY")]


def test_the_answer_says_how_it_came_about(core):
    response = core.infer(request(id="a7"))
    assert (response.id, response.model_name, response.model_version) == ("a7", "tiny_mlp", "1")
    assert response.parameters["edgekit_tier"] == "edge"
    assert re.fullmatch(r"edge;reason=local_fits;p_edge=[01]\.\d{3};p_cloud=0\.000;hedged=0", response.parameters["edgekit_decision"])
    assert [tensor.name for tensor in response.outputs] == ["probabilities"]


def test_requested_outputs(core):
    assert len(core.infer(request(outputs=[RequestedOutput("probabilities")])).outputs) == 1
    with pytest.raises(RequestError, match="no such output"):
        core.infer(request(outputs=[RequestedOutput("nope")]))


def test_statistics_count_answers_and_failures(core):
    for _ in range(3):
        core.infer(request())
    with pytest.raises(RequestError):
        core.infer(request(data=np.ones((2, 9), np.float32)))
    (row,) = core.statistics("tiny_mlp")
    assert row["inference_stats"]["success"]["count"] == 3
    assert row["inference_stats"]["success"]["ns"] > 0
    assert row["inference_stats"]["fail"]["count"] == 1
    for index in range(50):
        with pytest.raises(NotFoundError):
            core.infer(request(model=f"made-up-{index}"))
    assert len(core.statistics()) == 1  # names that come from outside leave nothing behind


@pytest.mark.parametrize("call", ["infer", "metadata", "ready", "config", "statistics"])
def test_an_unknown_model(core, call):
    calls = {
        "infer": lambda: core.infer(request(model="other")),
        "metadata": lambda: core.model_metadata("other"),
        "ready": lambda: core.model_ready("other"),
        "config": lambda: core.model_config("other"),
        "statistics": lambda: core.statistics("other"),
    }
    with pytest.raises(NotFoundError, match="other"):
        calls[call]()


def test_repository_operations_are_refused(core):
    with pytest.raises(UsageError, match="cannot load"):
        core.repository_load("tiny_mlp", {})
    with pytest.raises(UsageError, match="cannot unload"):
        core.repository_unload("tiny_mlp", {})


@pytest.mark.slow  # waits for a health check
def test_ready_when_either_tier_is(clients):
    edge, cloud = clients
    with Router(edge, cloud, sla_ms=100, model="m") as router:
        core = RouterCore(router)
        edge.script.ready = False
        assert core.ready()
        assert core.model_ready("m")
        cloud.script.ready = False
        until(lambda: router.endpoints[0].open)  # a health check finds out
        assert not core.ready()
        assert not core.model_ready("m")
        assert core.live()


def test_a_request_with_a_deadline_has_no_grace(clients):
    edge, _ = clients
    edge.script.mode = "hang"
    with Router(edge, None, sla_ms=10_000, model="m") as router:
        core = RouterCore(router)
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            core.infer(request(model="m", deadline_s=started + 0.05))
        assert time.monotonic() - started < 1.0  # the grace would be 40 s
        edge.script.release()


# Real servers

pytest_slow = pytest.mark.slow


@pytest.fixture
def tiers(scripts, scripted_core):
    """Edge and cloud as real HTTP servers; the cloud's is a list so that a test can stop and restart it."""
    servers = [serve(scripted_core(script), ANY, None) for script in scripts]
    yield servers
    for script in scripts:
        script.release()
    for server in servers:
        server.stop(1.0)


def url(server):
    return f"http://127.0.0.1:{server.http_port}"


@pytest_slow
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_router_is_a_server_like_any_other(bundle, transport):
    before = set(threading.enumerate())
    server = serve_router(bundle, None, 1000, ANY if transport == "http" else None, ANY if transport == "grpc" else None)
    port = server.http_port if transport == "http" else server.grpc_port
    client = connect(f"{transport}://127.0.0.1:{port}")
    try:
        assert client.ready()
        assert client.model_metadata("tiny_mlp").inputs[0].name == "x"
        response = client.infer(request(id="b1"), 5.0)
        assert response.id == "b1"
        assert response.parameters["edgekit_tier"] == "edge"
        assert response.outputs[0].data.shape == (1, 4)
        with pytest.raises(RequestError, match="shape"):
            client.infer(request(data=np.ones((1, 9), np.float32)), 5.0)
        with pytest.raises(NotFoundError):
            client.infer(request(model="other"), 5.0)
        (row,) = client.statistics("tiny_mlp")
        assert row["inference_stats"]["success"]["count"] == 1
    finally:
        client.close()
        server.stop()
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("edgekit")]


@pytest_slow
def test_a_port_in_use_closes_the_router(bundle):
    with socket.create_server(ANY) as taken, pytest.raises(BindError, match="in use"):
        serve_router(bundle, None, 1000, taken.getsockname(), None)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("edgekit-router")]


@pytest_slow
def test_the_cloud_dies_under_load_and_no_client_sees_an_error(tiers, scripts):
    with Router(url(tiers[0]), url(tiers[1]), sla_ms=400, model="m") as router:
        results, errors, killed = [], [], threading.Event()

        def ask(worker):
            for index in range(60):
                try:
                    results.append((f"{worker}-{index}", router.route({"x": X + worker}, request_id=f"{worker}-{index}")))
                except Exception as exc:  # noqa: BLE001 - none is expected
                    errors.append(exc)
                if len(results) == 60:
                    killed.set()

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        assert killed.wait(20.0)
        tiers[1].stop(0.0)
        for thread in threads:
            thread.join(30.0)
        assert errors == []
        assert len(results) == 240
        for identity, result in results:
            np.testing.assert_array_equal(result.outputs["y"], (X + int(identity.split("-")[0])) * 2)
        assert len({identity for identity, _ in results}) == 240
        # Nothing ran more often than its two attempts allow.
        for script in scripts:
            assert max(script.ids.count(identity) for identity, _ in results) <= 1


@pytest_slow
def test_a_half_open_cloud_never_blocks_the_device(tiers):
    """A socket that accepts (the kernel does) and never says anything: health checks find it, and no answer waits for it."""
    with socket.create_server(ANY, backlog=64) as silent:
        target = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Router(url(tiers[0]), target, sla_ms=300, model="m") as router:
            results = [router.route({"x": X}) for _ in range(40)]
            assert {result.tier for result in results} == {"edge"}
            assert not any(result.late for result in results[1:])
            until = time.monotonic() + 5.0
            while router.cloud_reachable and time.monotonic() < until:
                threading.Event().wait(0.02)
            assert not router.cloud_reachable
            assert router.route({"x": X}).tier == "edge"
            assert router.explain()["decision"]["tiers"] == ["edge"]


@pytest_slow
def test_the_device_dies_and_the_cloud_takes_over(tiers):
    with Router(url(tiers[0]), url(tiers[1]), sla_ms=500, model="m") as router:
        assert router.route({"x": X}).tier == "edge"
        tiers[0].stop(0.0)
        results = [router.route({"x": X}) for _ in range(30)]
        assert {result.tier for result in results} == {"cloud"}
        assert not any(result.late for result in results)
        assert results[-1].reason == "local_failing"


@pytest_slow
def test_a_slow_device_is_left_for_the_cloud_and_found_again(tiers, scripts):
    """The edge takes 150 ms of a 100 ms SLA: traffic moves to the cloud within a few requests, and back within a probe interval of its recovery."""
    edge, _ = scripts
    slow = threading.Event()
    original = edge.handle

    def handle(incoming):
        if slow.is_set():
            threading.Event().wait(0.15)
        return original(incoming)

    edge.handle = handle
    with Router(url(tiers[0]), url(tiers[1]), sla_ms=100, model="m", options=RouterOptions(workers=1)) as router:
        for _ in range(40):
            router.infer({"x": X})
        assert router.route({"x": X}).tier == "edge"
        slow.set()
        results = [router.route({"x": X}) for _ in range(60)]
        assert {result.tier for result in results[10:]} == {"cloud"}
        assert sum(result.late for result in results) <= 6
        slow.clear()
        until, in_a_row = time.monotonic() + 30.0, 0
        while in_a_row < 5:  # a busy machine may make the device slow once more in between
            assert time.monotonic() < until
            in_a_row = in_a_row + 1 if router.route({"x": X}).tier == "edge" else 0


@pytest_slow
def test_requests_of_one_stream_are_routed_at_once_and_answered_in_order(clients):
    tritonclient = pytest.importorskip("tritonclient.grpc")
    edge, _ = clients
    edge.script.mode = "hang"
    answers = queue.Queue()
    server = serve_router(edge, None, 60_000, None, ANY, model="m", options=RouterOptions(workers=4))
    client = tritonclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    try:
        client.start_stream(lambda result, error: answers.put((result, error)))
        tensor = tritonclient.InferInput("x", [1, 8], "FP32")
        tensor.set_data_from_numpy(X)
        for number in range(4):
            client.async_stream_infer("m", [tensor], request_id=str(number))
        until(lambda: edge.script.calls == 4)  # none waits for the answer to the one before
        edge.script.release()
        told = [answers.get(timeout=15.0) for _ in range(4)]
        assert [error for _, error in told] == [None] * 4
        assert [result.get_response().id for result, _ in told] == ["0", "1", "2", "3"]
        assert "reason=" in told[0][0].get_response().parameters["edgekit_decision"].string_param
    finally:
        client.stop_stream()
        client.close()
        server.stop()


@pytest_slow
@pytest.mark.parametrize("named", [False, True])
def test_the_index_of_a_router_before_an_edge_server(bundle, named):
    with serve_bundles([bundle.path], ANY, None) as edge:
        with Router(url(edge), None, sla_ms=1000, model="tiny_mlp" if named else "") as router:
            entries = RouterCore(router).repository_index()
            assert [(entry.name, entry.version, entry.state) for entry in entries] == [("tiny_mlp", "1", "READY")]
        edge.stop()
