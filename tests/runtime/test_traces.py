"""Traces of requests through the whole runtime: batches, sequences, versions on trial; set with Triton's own clients."""

import json

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.runtime import serve_bundles
from tests.runtime.serving_bundles import write_scale

pytestmark = pytest.mark.slow
STEPS = ["REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END"]
AROUND = {tritonclient.http: ("HTTP_RECV", "HTTP_SEND"), tritonclient.grpc: ("GRPC_WAITREAD", "GRPC_SEND")}
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def shown(client, model=""):
    """The settings as either client shows them, each as a list of text."""
    answer = client.get_trace_settings(model)
    if isinstance(answer, dict):
        return {name: value if isinstance(value, list) else [value] for name, value in answer.items()}
    return {name: list(setting.value) for name, setting in answer.settings.items()}


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc])
def test_tritons_clients_turn_traces_on_and_off(tmp_path, library):
    write_scale(tmp_path / "scale-2", version="2", scale=2.0)
    folder = tmp_path / "traces"
    addresses = ("127.0.0.1", 0), ("127.0.0.1", 0)
    with serve_bundles([tmp_path / "scale-2"], *addresses, trace_folder=folder) as server:
        port = server.http_port if library is tritonclient.http else server.grpc_port
        with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
            asked = library.InferInput("x", [2, 4], "FP32")
            asked.set_data_from_numpy(X)
            client.update_trace_settings(
                model_name="scale",
                settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "3", "log_frequency": "2", "trace_file": "t"},
            )
            settings = shown(client, "scale")
            assert (settings["trace_level"], settings["trace_rate"]) == (["TIMESTAMPS"], ["2"])
            assert shown(client)["trace_level"] == ["OFF"]
            for index in range(10):
                client.infer("scale", [asked], request_id=str(index))
            assert shown(client, "scale")["trace_count"] == ["0"]
            client.update_trace_settings(model_name="scale", settings=dict.fromkeys(settings))
            assert shown(client, "scale") == shown(client)
    files = {path.name: json.loads(path.read_bytes()) for path in folder.iterdir()}
    assert sorted(files) == ["t.0", "t.1"]
    entries = [*files["t.0"], *files["t.1"]]
    heads = [entry for entry in entries if "model_name" in entry]
    assert [(head["model_name"], head["model_version"], head["request_id"]) for head in heads] == [
        ("scale", 2, "1"),
        ("scale", 2, "3"),
        ("scale", 2, "5"),
    ]
    received, sent = AROUND[library]
    for head in heads:
        steps = [entry["timestamps"][0] for entry in entries if entry["id"] == head["id"] and "timestamps" in entry]
        assert [step["name"] for step in steps] == [f"{received}_START", f"{received}_END", *STEPS, f"{sent}_START", f"{sent}_END"]
        times = [step["ns"] for step in steps]
        assert times == sorted(times)


def test_requests_that_run_together_share_their_compute_times(tmp_path):
    write_scale(tmp_path / "scale", version="1", scale=2.0)
    folder = tmp_path / "traces"
    with serve_bundles([tmp_path / "scale"], ("127.0.0.1", 0), ("127.0.0.1", 0), trace_folder=folder) as server:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_file": "t"})
        client = connect(f"grpc://127.0.0.1:{server.grpc_port}")
        begun = [client.start(InferRequest("scale", [Tensor("x", X)], id=str(index)), 60) for index in range(64)]
        for call in begun:
            call.result(10)
        client.close()
    entries = json.loads((folder / "t").read_bytes())
    runs = {}
    for number in range(1, 65):
        times = {step["name"]: step["ns"] for entry in entries if entry["id"] == number for step in entry.get("timestamps", ())}
        ordered = [times[name] for name in STEPS]
        assert ordered == sorted(ordered)
        runs.setdefault(times["COMPUTE_END"], set()).add(tuple(times[name] for name in STEPS[2:6]))
    assert all(len(compute) == 1 for compute in runs.values())
