"""Triton's trace settings and files: which requests are traced, where files go, and what a kill or a full folder leaves."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from edgekit.errors import EdgeKitError, RequestError, StorageError
from edgekit.protocol import InferRequest, InferResponse, Tensor, connect, serve
from edgekit.protocol import _trace_files as trace_files
from edgekit.protocol._trace import MOST_TRACES, Traces
from edgekit.protocol._trace_files import TraceFolder

ON = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_file": "t.json"}


@pytest.fixture
def traces(tmp_path):
    made = Traces(TraceFolder(tmp_path))
    yield made
    made.close()


def play(traces, model="echo", times=1):
    """So many requests, one after the other; the numbers of those that were traced."""
    numbers = []
    for index in range(times):
        trace = traces.begin(model, "HTTP", (1.0, 2.0))
        if trace is not None:
            trace.attach(InferRequest(model, [], id=str(index)))
            trace.answered(InferResponse(model, "3", []))
            trace.sending()
            trace.sent()
            numbers.append(index)
    return numbers


def written(folder):
    """Entries of each file by its name; anything that is not whole fails."""
    return {path.name: json.loads(path.read_bytes()) for path in sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))}


def heads(entries):
    return [entry for entry in entries if "model_name" in entry]


@pytest.mark.parametrize("rate", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [-1, 1, 5])
@pytest.mark.parametrize("frequency", [0, 1, 4])
def test_rate_and_count_hold(traces, tmp_path, rate, count, frequency):
    traces.update({**ON, "trace_rate": str(rate), "trace_count": count, "log_frequency": frequency})
    found = play(traces, times=23)
    expected = list(range(rate - 1, 23, rate))[: None if count < 0 else count]
    assert found == expected
    assert traces.on == (count < 0 or len(expected) < count)
    assert traces.read()["trace_count"] == str(count if count < 0 else count - len(expected))
    traces.close()
    files = written(tmp_path)
    assert [int(head["request_id"]) for entries in files.values() for head in heads(entries)] == expected
    spent = count == len(expected)
    names = [f"t.json.{index}" for index in range(-(-len(expected) // (frequency or 23)))] if frequency or spent else ["t.json"]
    assert list(files) == (names if expected else [])
    if frequency:
        assert all(len(heads(entries)) == frequency for entries in list(files.values())[:-1])


def test_a_trace_is_written_as_triton_writes_it(traces, tmp_path):
    traces.update(ON)
    before_s = time.monotonic()
    play(traces)
    traces.close()
    head, *steps = written(tmp_path)["t.json"]
    assert head == {"id": 1, "model_name": "echo", "model_version": 3, "request_id": "0"}
    assert all(step.keys() == {"id", "timestamps"} and step["id"] == 1 and len(step["timestamps"]) == 1 for step in steps)
    names = [step["timestamps"][0]["name"] for step in steps]
    assert names == ["HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "REQUEST_END", "HTTP_SEND_START", "HTTP_SEND_END"]
    times = [step["timestamps"][0]["ns"] for step in steps]
    assert times[:2] == [10**9, 2 * 10**9]
    assert before_s * 1e9 - 1 < times[2] <= times[3] <= times[4] <= times[5] < time.monotonic() * 1e9 + 1


def test_a_model_has_settings_of_its_own(traces, tmp_path):
    traces.update(ON)
    assert traces.update({"trace_rate": 2, "trace_file": "own"}, "a")["trace_level"] == ["TIMESTAMPS"]  # the rest is everybody's
    traces.update({"trace_level": "OFF"}, "b")
    assert play(traces, "a", 4) == [1, 3]
    assert play(traces, "b", 4) == []
    assert play(traces, "c", 4) == [0, 1, 2, 3]
    traces.update({"trace_rate": None, "trace_file": None}, "a")
    assert traces.read("a") == traces.read()
    assert play(traces, "a", 2) == [0, 1]
    traces.update({"trace_level": None})  # back to the default, which is off
    assert traces.read()["trace_level"] == traces.read("a")["trace_level"] == ["OFF"]
    assert not traces.on
    traces.close()
    assert {name: len(heads(entries)) for name, entries in written(tmp_path).items()} == {"own": 2, "t.json": 6}


def test_what_holds_for_all_reaches_models_and_not_the_other_way_round(traces):
    traces.update({**ON, "trace_count": 10})
    traces.update({"trace_rate": 2}, "a")
    assert play(traces, "a", 6) == [1, 3, 5]
    assert traces.read("a")["trace_count"] == "7"
    assert traces.read()["trace_count"] == "10"
    traces.update({"trace_rate": 3}, "b")
    assert traces.read("a")["trace_count"] == "7"
    assert play(traces, times=4) == [0, 1, 2, 3]
    traces.update({"trace_file": "other"})  # the count goes on
    assert traces.read()["trace_count"] == "6"
    assert traces.read("a") == {**traces.read(), "trace_rate": "2"}


def test_a_request_under_way_when_settings_change_is_written_where_it_began(traces, tmp_path):
    traces.update(ON)
    trace = traces.begin("echo", "GRPC", (1.0, 1.0))
    traces.update({"trace_level": "OFF"})
    trace.end()
    trace.end()
    traces.close()
    assert [head["model_version"] for head in heads(written(tmp_path)["t.json"])] == [-1]


def test_what_a_client_chose_is_bounded_and_quoted(traces, tmp_path):
    traces.update(ON)
    name = '"},{"\n' + "x" * 100_000
    trace = traces.begin(name, "HTTP", (0.0, 0.0))
    trace.attach(InferRequest(name, [], name, name))
    trace.end()
    traces.close()
    (head,) = heads(written(tmp_path)["t.json"])
    assert head["model_name"] == head["request_id"] == head["model_version"] == name[:128]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"colour": "red"}, "trace setting 'colour': no such setting"),
        ({"trace_level": ["TENSORS"]}, "what is in tensors is not written"),
        ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, "expected OFF or TIMESTAMPS"),
        ({"trace_level": 1}, "expected OFF or TIMESTAMPS"),
        ({"trace_rate": "0"}, "expected a whole number from 1"),
        ({"trace_rate": True}, "expected a whole number"),
        ({"trace_rate": ["1", "2"]}, "expected a whole number"),
        ({"trace_count": "-2"}, "expected a whole number from -1"),
        ({"trace_count": "9" * 5000}, "expected a whole number from -1"),
        ({"log_frequency": MOST_TRACES + 1}, f"from 0 to {MOST_TRACES}"),
        ({"trace_file": "/etc/passwd"}, "a plain file name"),
        ({"trace_file": "../t"}, "a plain file name"),
        ({"trace_file": ".bashrc"}, "a plain file name"),
        ({"trace_file": "a\0b"}, "a plain file name"),
        ({"trace_file": "x" * 101}, "a plain file name"),
        ({"trace_mode": "opentelemetry"}, "expected 'triton'"),
        ({"trace_level": "TIMESTAMPS"}, "trace setting 'trace_file': none"),
    ],
)
def test_bad_settings_change_nothing(traces, wanted, message):
    before = traces.read()
    with pytest.raises(RequestError) as caught:
        traces.update({"trace_rate": 7, **wanted})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert traces.read() == before


def test_without_a_folder_traces_cannot_be_turned_on():
    traces = Traces()
    assert traces.update({"trace_level": "OFF", "trace_rate": 1000, "trace_count": None, "trace_mode": "triton"}) == traces.read()
    with pytest.raises(RequestError, match="start the server with --trace-dir"):
        traces.update(ON)
    assert traces.read()["trace_level"] == ["OFF"]
    assert not traces.on
    traces.close()


def test_a_file_that_is_there_is_never_touched(tmp_path):
    (tmp_path / "t.json").write_text("the operator's")
    (tmp_path / "t.json.1").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        traces = Traces(TraceFolder(tmp_path))
        traces.update(ON)
        play(traces)
        traces.close()
    assert (tmp_path / "t.json").read_text() == "the operator's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.json.0", "t.json.1", "t.json.2"]


@pytest.mark.parametrize("bound", ["MOST_FILES", "MOST_BYTES"])
def test_a_full_folder_turns_traces_off(tmp_path, monkeypatch, caplog, bound):
    monkeypatch.setattr(trace_files, bound, {"MOST_FILES": 3, "MOST_BYTES": 1700}[bound])
    traces = Traces(TraceFolder(tmp_path))
    traces.update({**ON, "log_frequency": 1})
    traces.update({"trace_rate": 2}, "a")
    for _ in range(6):
        play(traces)
    traces.close()
    files = written(tmp_path)
    assert 2 <= len(files) <= 3
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1700
    assert not traces.on
    assert traces.read()["trace_level"] == traces.read("a")["trace_level"] == ["OFF"]
    assert "traces are off" in caplog.text
    fresh = Traces(TraceFolder(tmp_path))
    if bound == "MOST_FILES":
        with pytest.raises(EdgeKitError, match="remove some"):
            fresh.update(ON)
        (tmp_path / "t.json.0").unlink()
    assert fresh.update(ON)["trace_level"] == ["TIMESTAMPS"]
    fresh.close()


def test_many_traces_are_written_before_they_fill_the_memory(traces, tmp_path):
    traces.update(ON)
    play(traces, times=MOST_TRACES + 1)
    traces.close()
    assert {name: len(heads(entries)) for name, entries in written(tmp_path).items()} == {"t.json": 1, "t.json.0": MOST_TRACES}


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        TraceFolder(tmp_path / "file")
    with pytest.raises(StorageError):
        serve(None, ("127.0.0.1", 0), None, trace_folder=tmp_path / "file" / "below")


KILLED = """
import sys
from edgekit.protocol import InferRequest
from edgekit.protocol._trace import Traces
from edgekit.protocol._trace_files import TraceFolder
traces = Traces(TraceFolder(sys.argv[1]))
traces.update({"trace_level": "TIMESTAMPS", "trace_rate": 1, "trace_file": "t", "log_frequency": 20})
while True:
    trace = traces.begin("echo", "HTTP", (0.0, 0.0))
    if trace is not None:
        trace.end()
    if traces._last_number % 200 == 0:
        print(traces._last_number, flush=True)
"""


def test_a_kill_leaves_whole_files(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as child:
        for _ in range(5):
            assert child.stdout.readline()
        child.kill()
    shown = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(heads(entry for path in shown for entry in json.loads(path.read_bytes()))) == 20 * len(shown)
    left = [path for path in tmp_path.iterdir() if path not in shown]
    assert len(left) <= 1
    part = left[0] if left else tmp_path / ".edgekit-traces.1"
    part.touch()
    TraceFolder(tmp_path).close()
    assert part.exists()  # another server may be writing it
    os.utime(part, (0, 0))
    TraceFolder(tmp_path).close()
    assert not part.exists()


def post(server, settings, model=""):
    path = f"http://127.0.0.1:{server.http_port}/v2/{f'models/{model}/' if model else ''}trace/setting"
    try:
        with urllib.request.urlopen(path, json.dumps(settings).encode(), timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


def get(server, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/{path}", timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("kind", ["submitting_core", "echo_core"])
def test_every_step_of_requests_in_the_order_of_time(request, tmp_path, transport, kind):
    core = request.getfixturevalue(kind)
    with serve(core, ("127.0.0.1", 0), ("127.0.0.1", 0), trace_folder=tmp_path) as server:
        assert post(server, {"trace_file": "../t"})[0] == 400
        assert post(server, ON, "nothing")[0] == 404
        status, settings = post(server, ON)
        assert (status, settings["trace_file"]) == (200, "t.json")
        client = connect(f"{transport}://127.0.0.1:{server.http_port if transport == 'http' else server.grpc_port}")
        assert "trace" in get(server, "v2")["extensions"]
        assert get(server, "v2/models/echo/trace/setting") == settings
        for index, model in enumerate(("echo", "echo", "echo", "bug")):
            asked = InferRequest(model, [Tensor("x", np.ones((1, 4), np.float32))], id=str(index))
            if model == "bug":
                with pytest.raises(EdgeKitError):
                    client.infer(asked, 5)
            else:
                client.infer(asked, 5)
        client.close()
    entries = written(tmp_path)["t.json"]
    assert [head["request_id"] for head in heads(entries)] == ["0", "1", "2", "3"]
    assert [head["model_version"] for head in heads(entries)] == [1, 1, 1, -1]
    received, sent = {"http": ("HTTP_RECV", "HTTP_SEND"), "grpc": ("GRPC_WAITREAD", "GRPC_SEND")}[transport]
    names = [f"{received}_START", f"{received}_END", "REQUEST_START", "REQUEST_END", f"{sent}_START", f"{sent}_END"]
    for head in heads(entries):
        steps = [entry["timestamps"][0] for entry in entries if entry["id"] == head["id"] and "timestamps" in entry]
        assert [step["name"] for step in steps] == names
        assert [step["ns"] for step in steps] == sorted(step["ns"] for step in steps)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_client_that_leaves_ends_its_trace(submitting_core, tmp_path, transport):
    with serve(submitting_core, ("127.0.0.1", 0), ("127.0.0.1", 0), trace_folder=tmp_path) as server:
        post(server, {**ON, "trace_count": 1})
        client = connect(f"{transport}://127.0.0.1:{server.http_port if transport == 'http' else server.grpc_port}")
        begun = client.start(InferRequest("held", [Tensor("x", np.ones((1, 4), np.float32))], id="7"), 60)
        assert submitting_core.entered.acquire(timeout=5)
        begun.cancel()
        assert submitting_core.cancels.acquire(timeout=5)
        client.close()
        submitting_core.release.set()
    (head,) = heads(written(tmp_path)["t.json.0"])
    assert head["request_id"] == "7"
