"""`serve_bundles` with real ONNX Runtime sessions, asked by Triton's own clients and by ours."""

import threading
import time

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from edgekit.bundle import Bundle
from edgekit.errors import BindError, DeadlineError, EngineError, NotFoundError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferRequest, RequestedOutput, Tensor, connect
from edgekit.runtime import EngineOptions, ModelRepository, RuntimeCore, RuntimeMetrics, serve_bundles
from edgekit.telemetry import Meter, start_telemetry
from tests.runtime.serving_bundles import gather_model, text_model, write_scale, write_serving_bundle

pytestmark = pytest.mark.slow
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    write_scale(root / "scale-2", version="2", scale=2.0)
    write_scale(root / "scale-10.edgekit", version="10", scale=10.0)
    write_scale(root / "other", name="other", scale=7.0)
    write_serving_bundle(root / "text", text_model(), "text", "1", {})
    write_serving_bundle(root / "gather", gather_model(), "gather", "1", {"index": np.array([0, 2])})
    return root


@pytest.fixture(scope="module")
def server(folder):
    with serve_bundles([folder], ("127.0.0.1", 0), ("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    """Triton's client library and a client of it: the same calls on both."""
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    port = server.http_port if request.param == "http" else server.grpc_port
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    yield library, client
    client.close()


@pytest.fixture(params=["http", "grpc"])
def client(request, server):
    connected = connect(f"{request.param}://127.0.0.1:{server.http_port if request.param == 'http' else server.grpc_port}")
    yield connected
    connected.close()


def tensor(library, name, array, datatype="FP32", **form):
    built = library.InferInput(name, list(array.shape), datatype)
    built.set_data_from_numpy(array, **form)
    return built


def plain(answer):
    """A dict from either client: HTTP gives one, gRPC a message."""
    if isinstance(answer, (dict, list)):
        return answer
    from google.protobuf import json_format

    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def test_live_ready_and_metadata(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "2")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("scale", "3")
    server = plain(client.get_server_metadata())
    assert server["name"] == "edgekit"
    assert "binary_tensor_data" in server["extensions"]
    model = plain(client.get_model_metadata("scale"))
    assert (model["name"], model["versions"], model["platform"]) == ("scale", ["2", "10"], "edgekit_onnxruntime")
    assert [int(dim) for dim in model["inputs"][0]["shape"]] == [-1, 4]
    assert [(item["name"], item["datatype"]) for item in model["outputs"]] == [("y", "FP32"), ("total", "FP32")]
    config = plain(client.get_model_config("text"))
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    assert config["backend"] == "edgekit"


def test_infer_binary(triton):
    library, client = triton
    result = client.infer("scale", [tensor(library, "x", X)], request_id="77")
    np.testing.assert_array_equal(result.as_numpy("y"), X * 10)
    np.testing.assert_array_equal(result.as_numpy("total"), X.sum(1, keepdims=True))
    response = plain(result.get_response())
    assert (response["model_name"], response["model_version"], response["id"]) == ("scale", "10", "77")


def test_infer_a_version_and_some_outputs(triton):
    library, client = triton
    outputs = [library.InferRequestedOutput("total")]
    result = client.infer("scale", [tensor(library, "x", X)], model_version="2", outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("total"), X.sum(1, keepdims=True))
    assert result.as_numpy("y") is None


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_json_and_binary_over_http(server, binary_in, binary_out):
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    outputs = [tritonclient.http.InferRequestedOutput(name, binary_data=binary_out) for name in ("total", "y")]
    result = client.infer("scale", [tensor(tritonclient.http, "x", X, binary_data=binary_in)], outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["total", "y"]
    np.testing.assert_array_equal(result.as_numpy("y"), X * 10)
    client.close()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request(server, algorithm):
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    result = client.infer("scale", [tensor(tritonclient.http, "x", X)], request_compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), X * 10)
    client.close()


def test_bytes(triton):
    library, client = triton
    text = np.array(["edge", "", "Grüße"], dtype=object)
    result = client.infer("text", [tensor(library, "text", text, "BYTES")])
    assert [item.decode() for item in result.as_numpy("copy")] == text.tolist()
    with pytest.raises(InferenceServerException, match="not UTF-8"):
        client.infer("text", [tensor(library, "text", np.array([b"\xff"], dtype=object), "BYTES")])


def test_async_and_stream(server):
    answers = []
    arrived = threading.Semaphore(0)

    def take(result, error):
        answers.append((result, error))
        arrived.release()

    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    client.async_infer("scale", [tensor(tritonclient.grpc, "x", X)], take)
    assert arrived.acquire(timeout=10)
    client.start_stream(take)
    client.async_stream_infer("scale", [tensor(tritonclient.grpc, "x", X)], request_id="s1")
    client.async_stream_infer("nope", [tensor(tritonclient.grpc, "x", X)], request_id="s2")
    assert all(arrived.acquire(timeout=10) for _ in range(2))
    client.stop_stream()
    client.close()
    for result, error in answers[:2]:
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), X * 10)
    assert "no such model" in str(answers[2][1])


BAD_INPUTS = {
    "unknown model": ("nope", "x", X, "FP32", "model 'nope': no such model"),
    "unknown input": ("scale", "z", X, "FP32", "input 'z': no such input; expected inputs x"),
    "wrong dtype": ("scale", "x", X.astype(np.float64), "FP64", "input 'x': dtype float64; expected float32"),
    "wrong shape": ("scale", "x", np.ones((2, 5), np.float32), "FP32", r"input 'x': shape \[2,5\]; expected float32\[N,4\]"),
    "wrong rank": ("scale", "x", np.ones(4, np.float32), "FP32", r"input 'x': shape \[4\]"),
    "fails in the engine": ("gather", "index", np.array([7]), "INT64", "model gather: .*failed|gather|engine"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(triton, name):
    library, client = triton
    model, input_name, array, datatype, message = BAD_INPUTS[name]
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(model, [tensor(library, input_name, array, datatype)])
    assert "Traceback" not in str(caught.value)


def test_missing_input_wrong_size_and_unknown_output(triton):
    library, client = triton
    with pytest.raises(InferenceServerException, match="input 'x': missing"):
        client.infer("scale", [])
    short = tensor(library, "x", X)
    short.set_shape([3, 4])
    with pytest.raises(InferenceServerException, match=r"input 'x': 32 bytes of data; expected 48 for FP32\[3,4\]"):
        client.infer("scale", [short])
    with pytest.raises(InferenceServerException, match="output 'z': no such output; expected outputs y, total"):
        client.infer("scale", [tensor(library, "x", X)], outputs=[library.InferRequestedOutput("z")])


def test_a_timeout_that_cannot_be_met_is_refused(triton):
    library, client = triton
    with pytest.raises(InferenceServerException, match="model scale: the deadline"):
        client.infer("scale", [tensor(library, "x", X)], timeout=1)
    np.testing.assert_array_equal(client.infer("scale", [tensor(library, "x", X)], timeout=10_000_000).as_numpy("y"), X * 10)


def test_repository(triton):
    library, client = triton

    def states():
        index = plain(client.get_model_repository_index())
        return {(row["name"], row["version"]): row["state"] for row in (index if isinstance(index, list) else index["models"])}

    assert set(states().values()) == {"READY"}
    client.unload_model("other")
    assert states()["other", "1"] == "UNAVAILABLE"
    assert not client.is_model_ready("other")
    with pytest.raises(InferenceServerException, match="not loaded"):
        client.infer("other", [tensor(library, "x", X)])
    client.load_model("other")
    assert client.is_model_ready("other")
    np.testing.assert_array_equal(client.infer("other", [tensor(library, "x", X)]).as_numpy("y"), X * 7)
    with pytest.raises(InferenceServerException, match="model 'nope': not in the repository"):
        client.load_model("nope")
    with pytest.raises(InferenceServerException, match="parameter 'config': not supported"):
        client.load_model("other", config="{}")


def test_statistics(triton):
    library, client = triton

    def counts():
        entry = plain(client.get_inference_statistics("scale", "10"))["model_stats"][0]
        steps = entry["inference_stats"]
        return entry, {step: int(steps[step].get("count", 0)) for step in ("success", "fail", "queue", "compute_infer")}

    _, before = counts()
    client.infer("scale", [tensor(library, "x", X)])
    with pytest.raises(InferenceServerException):
        client.infer("scale", [tensor(library, "x", X[:, :3])])
    entry, after = counts()
    assert {step: after[step] - before[step] for step in after} == {"success": 1, "fail": 1, "queue": 1, "compute_infer": 1}
    steps = entry["inference_stats"]
    parts = sum(int(steps[step].get("ns", 0)) for step in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert abs(int(steps["success"]["ns"]) - parts) <= 4 * after["success"]  # rounding
    assert int(entry["inference_count"]) == after["success"]
    assert 0 <= time.time() * 1e3 - int(entry["last_inference"]) < 60_000
    assert len(plain(client.get_inference_statistics())["model_stats"]) == 5


def test_our_clients(client):
    assert client.ready()
    assert client.model_metadata("scale").versions == ["2", "10"]
    request = InferRequest("scale", [Tensor("x", X)], outputs=[RequestedOutput("y")])
    np.testing.assert_array_equal(client.infer(request, 10.0).outputs[0].data, X * 10)
    assert client.statistics("scale", "10")[0]["inference_stats"]["success"]["count"] > 0
    with pytest.raises(NotFoundError):
        client.infer(InferRequest("nope", [Tensor("x", X)]), 10.0)
    with pytest.raises(RequestError, match="input 'x': shape"):
        client.infer(InferRequest("scale", [Tensor("x", X[0])]), 10.0)
    with pytest.raises(EngineError):
        client.infer(InferRequest("gather", [Tensor("index", np.array([9]))]), 10.0)


def test_overload_and_deadlines_over_the_wire(folder):
    """One instance held by the test, one place in the queue: the third request is refused, a waiting one runs out of time."""
    repository = ModelRepository([folder / "other"], queue_capacity=1)
    repository.load_all()
    outcomes = []
    core = RuntimeCore(repository, lambda *args: outcomes.append(args[-1]))
    request = InferRequest("other", [Tensor("x", X)])
    results = []
    waiting = threading.Thread(target=lambda: results.append(core.infer(request)))
    with repository.get("other").queue.lease(None):
        waiting.start()
        while not core.queue_depth("other"):
            pass
        assert (core.queue_depth("other"), core.in_flight("other")) == (1, 1)
        with pytest.raises(OverloadedError, match="model other: 1 requests wait already; expected at most 1"):
            core.infer(request)
    waiting.join(10)
    np.testing.assert_array_equal(results[0].outputs[0].data, X * 7)
    with repository.get("other").queue.lease(None), pytest.raises(DeadlineError):
        core.infer(InferRequest("other", [Tensor("x", X)], deadline_s=time.monotonic() + 0.02))
    assert outcomes == ["rejected", "ok", "rejected"]
    assert core.queue_depth("nope") == 0
    core.close()


def test_an_observer_that_fails_costs_no_answer(folder, caplog):
    def fail(*_):
        raise ZeroDivisionError

    repository = ModelRepository([folder / "other"])
    repository.load_all()
    core = RuntimeCore(repository, fail)
    np.testing.assert_array_equal(core.infer(InferRequest("other", [Tensor("x", X)])).outputs[0].data, X * 7)
    assert "observer failed" in caplog.text
    core.close()


def test_metrics(folder):
    telemetry = start_telemetry("edgekit-runtime", "edge")
    meter = telemetry.meter
    seen = []
    observer = lambda *args: seen.append(args)  # noqa: E731
    with serve_bundles([folder / "gather"], ("127.0.0.1", 0), None, telemetry, on_result=observer) as server:
        client = connect(f"http://127.0.0.1:{server.http_port}")
        client.infer(InferRequest("gather", [Tensor("index", np.array([1]))]), 10.0)
        for index in (np.array([9]), np.array([1], np.int32)):
            with pytest.raises((EngineError, RequestError)):
                client.infer(InferRequest("gather", [Tensor("index", index)]), 10.0)
        client.close()
    assert [args[-1] for args in seen] == ["ok", "error", "rejected"]
    points = {(point.name, point.attributes.get("edgekit.outcome")): point for point in meter.collect(time.time_ns())}
    duration = points["edgekit.request.duration", "ok"]
    assert duration.attributes == {
        "edgekit.model": "gather",
        "edgekit.model.version": "1",
        "edgekit.tier": "edge",
        "edgekit.engine": "onnxruntime",
        "edgekit.outcome": "ok",
    }
    assert ("edgekit.request.duration", "error") in points
    assert ("edgekit.queue.duration", "rejected") in points
    assert ("edgekit.queue.depth", None) in points
    bundle = Bundle.open(folder / "gather")
    assert telemetry.resource["edgekit.bundle.digest"] == bundle.digest
    assert telemetry.resource["edgekit.device_profile"] == bundle.manifest.device


def test_metrics_need_no_core():
    RuntimeMetrics(Meter())("m", "1", "onnxruntime", 0.0, 0.1, "ok")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"instances": -1}, "instances: -1; expected 0 or more"),
        ({"max_batch": 0}, "max batch: 0; expected 1 or more"),
        ({"queue_capacity": -1}, "queue capacity: -1; expected 0 or more"),
        ({"options": EngineOptions(threads=-2)}, "threads: -2; expected 0 or more"),
    ],
)
def test_impossible_numbers_are_refused(folder, wrong, line):
    with pytest.raises(UsageError, match=line):
        serve_bundles([folder / "other"], None, None, **wrong)


def test_port_in_use_is_said_before_models_are_loaded(folder, server):
    with pytest.raises(BindError, match=r"in use.*--http"):
        serve_bundles([folder], ("127.0.0.1", server.http_port), None)
    with pytest.raises(BindError, match=r"in use.*--grpc"):
        serve_bundles([folder], None, ("127.0.0.1", server.grpc_port))


def test_stop_leaves_no_thread(folder):
    before = set(threading.enumerate())
    server = serve_bundles([folder / "other"], ("127.0.0.1", 0), ("127.0.0.1", 0))
    client = connect(f"http://127.0.0.1:{server.http_port}")
    assert client.ready()
    client.close()
    server.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # grpcio's own are ending when its stop returns
        assert not thread.is_alive(), thread
