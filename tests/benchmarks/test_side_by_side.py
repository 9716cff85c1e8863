"""Servers that take turns: their processes, what the load generators say, and what happens when one of them is not there."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from benchmarks import _peers, _side_by_side, serve, serve_grpc
from benchmarks._cases import tiny_mlp
from benchmarks._processes import SETTLE_STEP_S, Child, without_folders
from benchmarks._results import SideBySide
from benchmarks._side_by_side import ServerError, rotated, running, table
from benchmarks._traffic import LoadError, read_h2load, read_v2, read_wrk

ROOT = Path(__file__).resolve().parent.parent.parent
H2LOAD = """
finished in 1.00s, 2000.00 req/s, 1.20MB/s
requests: 2000 total, 2000 started, 2000 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
traffic: 1.20MB (1258291) total, 100.00KB (102400) headers (space savings 90.00%), 97.66KB (100000) data
"""
PARENT = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"


def until(condition, limit_s=30.0):
    """Wait for a condition of another process."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.005)
    return found


@pytest.fixture
def child():
    child = Child([sys.executable, "-c", PARENT])
    yield child
    if not child.ended():
        child.stop()


def test_a_child_is_counted_paused_and_ended_with_all_that_it_started(child):
    grandchild = psutil.Process(int(until(child.said)))
    assert {process.pid for process in child.family()} == {child.process.pid, grandchild.pid}
    assert child.rss_bytes() >= grandchild.memory_info().rss
    assert child.cpu_s() > 0
    child.pause()
    until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in child.family()))
    child.resume()
    until(lambda: all(process.status() != psutil.STATUS_STOPPED for process in child.family()))
    child.pause()
    child.stop()  # also when it is paused
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_what_is_idle_has_settled(child):
    until(child.said)
    began = time.monotonic()
    child.settle()
    assert child.cpu_s() >= 0
    assert time.monotonic() - began >= SETTLE_STEP_S


def test_what_never_idles_is_not_waited_for():
    child = Child([sys.executable, "-c", "while True: pass"])
    try:
        child.settle()
        assert not child.ended()
    finally:
        child.stop()


def test_a_child_that_ended_has_no_family():
    child = Child([sys.executable, "-c", "print('why it ended')"])
    child.process.wait()
    assert child.ended()
    assert child.said() == "why it ended"
    assert child.cpu_s() == 0.0
    child.stop()


def test_folders_of_this_machine_are_not_told():
    text = "in /home/me/x/lib/popen.py, line 3 (see http://localhost/a/b and a/b, 1/2)"
    assert without_folders(text) == "in popen.py, line 3 (see http://localhost/a/b and a/b, 1/2)"


def test_the_order_rotates():
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 3) == []


class Started:
    """What `running` needs of a server."""

    start_s = 0.1

    def __init__(self, child):
        self.child = child


def fails(error):
    def begin():
        raise error

    return begin


def test_a_peer_that_is_not_there_is_left_out_and_the_rest_runs(child, capsys):
    starts = {
        "kserve": fails(_peers.PeerMissingError("kserve: no network")),
        "triton": fails(ServerError("triton ended")),
        "edgekit": lambda: Started(child),
    }
    with running(starts) as (servers, left_out):
        assert [server.child for server in servers] == [child]
        assert left_out == {"kserve": "kserve: no network", "triton": "triton ended"}
    assert child.ended()
    assert "left out: kserve: no network" in capsys.readouterr().err


def test_an_environment_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    (tmp_path / "peer.txt").write_text("no-such-package-of-anybody @ file:///nonexistent.whl\n")
    monkeypatch.setattr(_peers, "LOCKS", tmp_path)
    monkeypatch.setattr(_peers, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(_peers, "ROOT", tmp_path)
    with pytest.raises(_peers.PeerMissingError, match="peer: cannot be installed"):
        _peers.peer_python("peer")
    assert not (tmp_path / "environments" / "peer" / "installed.txt").exists()


def test_what_has_no_list_runs_here():
    assert _peers.peer_python("edgekit") == Path(sys.executable)


def test_every_peer_has_a_version():
    ours = {name for name in (*serve.SERVERS, *serve_grpc.SERVERS) if name.startswith("edgekit")}
    for name in {*serve.SERVERS, *serve_grpc.SERVERS} - ours:
        assert _peers.locked_version(name), name
    assert _peers.locked_version("edgekit") == ""


def test_wrk_is_read():
    text = 'Running\nJSON{"requests":1000,"us":500000,"errors":{"connect":0,"read":0,"write":0,"status":0,"timeout":0},"p50_us":1000,"p95_us":2000,"p99_us":3000}\n'
    assert read_wrk(text) == {"requests_per_s": 2000.0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no answer"),
        ('JSON{"requests":0,"us":1,"errors":{}}', "no answer"),
        ('JSON{"requests":10,"us":1,"errors":{"read":0,"status":2}}', r"of 10 requests failed: 2 \(status\)"),
    ],
)
def test_failures_under_wrk_are_told(text, why):
    with pytest.raises(LoadError, match=why):
        read_wrk(text)


def test_h2load_is_read():
    latencies_us = np.linspace(1, 2000, 2000)
    found = read_h2load(H2LOAD.format(succeeded=2000, failed=0), latencies_us, 50)
    assert found["requests_per_s"] == 2000.0
    assert found["p50_ms"] == pytest.approx(1.0, abs=0.01)


def test_failures_under_h2load_are_told():
    latencies_us = np.ones(2000)
    with pytest.raises(LoadError, match="5 requests failed"):
        read_h2load(H2LOAD.format(succeeded=1995, failed=5), latencies_us, 50)
    with pytest.raises(LoadError, match="100000 bytes for 2000 answers of 51"):
        read_h2load(H2LOAD.format(succeeded=2000, failed=0), latencies_us, 51)
    with pytest.raises(LoadError, match="h2load said"):
        read_h2load("nothing", latencies_us, 50)


def test_answers_are_read_binary_and_as_json():
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
    head = json.dumps({"model_version": None, "outputs": [tensor]}).encode()
    expected = np.array([[1.5, -2.0]], np.float32)
    np.testing.assert_array_equal(read_v2(head + expected.tobytes(), str(len(head))), expected)
    np.testing.assert_array_equal(read_v2(json.dumps({"outputs": [tensor | {"data": [1.5, -2.0]}]}).encode(), None), expected)


def test_a_table_has_every_server(side_by_side):
    lines = table(side_by_side).splitlines()
    assert "bare engine 50000/s" in lines[0]
    assert [line.split()[0] for line in lines[2:6]] == list(side_by_side.servers)
    assert lines[-1] == "left out: kserve: no network"


def test_models_are_the_same_every_time(tmp_path):
    first = tiny_mlp(tmp_path).read_bytes()
    assert tiny_mlp(tmp_path).read_bytes() == first


@pytest.mark.parametrize("script", [serve, serve_grpc])
def test_unknown_servers_are_wrong_usage(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", "--servers", "edgekit,nginx"])
    with pytest.raises(SystemExit) as stopped:
        _side_by_side.main("http", script.__doc__, script.SERVERS, ("mlp",), script.traffic_for)
    assert stopped.value.code == 2
    assert "nginx: unknown; there are edgekit" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_two_servers_are_measured(transport):
    from benchmarks._traffic import missing_tool

    if why := missing_tool(transport):
        pytest.skip(why)
    script, other = ("serve", "probe") if transport == "http" else ("serve_grpc", "grpcio-echo")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--servers", f"edgekit,{other}", "--connections", "4"]
    done = subprocess.run([*command, "--rounds", "1", "--seconds", "1"], check=True, capture_output=True, text=True)
    found = msgspec.json.decode(done.stdout, type=SideBySide)
    assert found.left_out == {}
    for name in ("edgekit", other):
        figures = found.servers[name].connections["4"]
        assert set(figures) == set(_side_by_side.TURN)
        assert all(value > 0 for values in figures.values() for value in values), name


def test_the_bare_engine_runs_around_our_turn():
    """In each round, beside the most connections; a machine that becomes slower is so for both, whoever begins the round."""
    log = []

    class Turns:
        child = traffic = None

        def __init__(self, name):
            self.name = name

        def turn(self, connections, seconds):
            log.append((self.name, connections, seconds))
            return dict.fromkeys(_side_by_side.TURN, 1.0)

    def engine(seconds):
        log.append(("engine", seconds))
        return {"requests_per_s": float(len(log)), "cpu_us": 1.0}

    bare, left_out = _side_by_side.Bare(engine, 3.0), {"ours": "only its turn counts here", "other": "the same"}
    measure = functools.partial(_side_by_side.measure, rounds=2, seconds=3.0, bare=bare)
    assert measure([Turns("ours"), Turns("other")], [1, 16], left_out=left_out) == {}
    assert log == [("engine", 1.5)] * 4  # who is left out costs the engine no turn
    assert bare.rounds["requests_per_s"] == [1.5, 3.5]
    log.clear()
    with pytest.raises(AttributeError):  # they have no process to ask for its memory
        measure([Turns("ours"), Turns("other")], [1, 16], left_out={})
    assert log[:6] == [("ours", 1, 3.0), ("other", 1, 3.0), ("engine", 1.5), ("ours", 16, 3.0), ("engine", 1.5), ("other", 16, 3.0)]
    assert log[6:] == [("other", 1, 3.0), ("ours", 1, 3.0), ("other", 16, 3.0), ("engine", 1.5), ("ours", 16, 3.0), ("engine", 1.5)]


def test_the_help_of_a_benchmark_says_what_it_does_not_show():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "serve", "--help"], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "What it does not show" in done.stdout
    assert "--rounds" in done.stdout
