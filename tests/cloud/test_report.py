"""Triton's cumulative statistics as deltas: parsing, resets, and the whole way to a receiver."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cloud import _report
from edgekit.cloud._report import Snapshot, increase, parse_prometheus, parse_statistics, record, report_triton
from edgekit.errors import UnavailableError, UsageError
from edgekit.telemetry import Meter

PROMETHEUS = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="rec",version="1"} 7
nv_inference_request_failure{model="rec",reason="REJECTED",version="1"} 1
nv_inference_request_failure{model="rec",reason="OTHER",version="1"} 2
nv_inference_count{model="rec",version="1"} 14
nv_inference_exec_count{model="rec",version="1"} 5
nv_inference_request_duration_us{model="rec",version="1"} 35000
nv_inference_queue_duration_us{model="rec",version="1"} 1500
nv_inference_compute_infer_duration_us{model="a \\"b\\" {c}",version="2"} 10
nv_inference_pending_request_count{model="rec",version="1"} 3
nv_cpu_utilization 0.5
nv_inference_count{model="rec",version="3"} NaN
garbage {
"""

STATISTICS = {
    "model_stats": [
        {
            "name": "rec",
            "version": "1",
            "last_inference": 1,
            "inference_count": 14,
            "execution_count": 5,
            "inference_stats": {
                "success": {"count": 7, "ns": 35_000_000},
                "fail": {"count": 3, "ns": 10},
                "queue": {"count": 7, "ns": 1_500_000},
                "compute_infer": {"count": 7, "ns": 9},
            },
        },
        {"name": "idle", "version": "1"},
    ]
}


def test_prometheus_page():
    snapshot = parse_prometheus(PROMETHEUS)
    assert snapshot.totals["rec", "1"] == {
        "ok": 7,
        "error": 3,
        "inferences": 14,
        "executions": 5,
        "request.time": pytest.approx(0.035),
        "queue.time": pytest.approx(0.0015),
    }
    assert snapshot.totals['a "b" {c}', "2"] == {"compute_infer.time": pytest.approx(1e-5)}
    assert snapshot.pending == {("rec", "1"): 3}
    assert ("rec", "3") not in snapshot.totals


def test_statistics_extension_says_the_same():
    snapshot = parse_statistics(json.dumps(STATISTICS).encode())
    prometheus = parse_prometheus(PROMETHEUS).totals["rec", "1"]
    assert {name: snapshot.totals["rec", "1"][name] for name in prometheus} == pytest.approx(prometheus)
    assert not any(snapshot.totals["idle", "1"].values())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"model_stats": 3}', b'{"model_stats": [{"name": "x", "inference_stats": []}]}', b"<html>"]
)
def test_an_answer_that_is_none_is_one_clear_line(body):
    with pytest.raises(UnavailableError, match="/v2/models/stats"):
        parse_statistics(body)


def totals(**values):
    return Snapshot({("m", "1"): values})


def test_first_snapshot_is_a_baseline_and_resets_count_from_zero():
    assert increase(None, totals(ok=5.0)) == {}
    assert increase(totals(ok=5.0), totals(ok=5.0)) == {}
    assert increase(totals(ok=5.0), totals(ok=8.0, error=1.0)) == {("m", "1"): {"ok": 3.0, "error": 1.0}}
    assert increase(totals(**{"ok": 5.0, "request.time": 2.0}), totals(**{"ok": 1.0, "request.time": 2.5})) == {
        ("m", "1"): {"ok": 1.0, "request.time": 2.5}
    }, "after a restart the time is new as a whole, though it is above the old value"
    assert increase(Snapshot({}), totals(ok=2.0)) == {("m", "1"): {"ok": 2.0}}
    assert increase(totals(ok=2.0), Snapshot({})) == {}


@given(st.lists(st.tuples(st.integers(min_value=1, max_value=50), st.booleans()), max_size=30))
def test_increases_add_up_to_what_happened_between_restarts_seen(steps):
    """Each step adds requests, some after a restart. A restart is visible when the new count is below the old one; then nothing is lost."""
    count, before, seen, happened = 0, totals(ok=0.0), 0.0, 0
    for added, restart in steps:
        visible_restart = restart and added < count
        count = added if visible_restart else count + added
        happened += added
        after = totals(ok=float(count))
        seen += increase(before, after).get(("m", "1"), {}).get("ok", 0.0)
        before = after
    assert seen == happened


def test_instruments_hold_means_not_percentiles():
    meter = Meter(start_ns=0)
    record(meter, Snapshot({}), parse_prometheus(PROMETHEUS))
    points = meter.collect(1)
    assert {point.kind for point in points} == {"sum", "gauge"}
    requests = {point.attributes["edgekit.outcome"]: point.value for point in points if point.name == "edgekit.triton.requests"}
    assert requests == {"ok": 7, "error": 3}
    (time,) = (point for point in points if point.name == "edgekit.triton.request.time")
    assert (time.unit, time.attributes["edgekit.tier"], time.attributes["edgekit.model"]) == ("s", "cloud", "rec")


@contextmanager
def serving(handle):
    """An HTTP server whose ``handle(method, path, body)`` gives ``(status, body)``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = handle(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_polls_until_told_to_stop_and_survives_an_outage(tmp_path):
    import gzip

    stop, polls, sent = threading.Event(), [], []

    def handle(method, path, body):
        if method == "POST":
            sent.append(json.loads(gzip.decompress(body)))
            return 200, b"{}"
        assert path == "/v2/models/stats"
        polls.append(path)
        if len(polls) == 2:
            return 500, b"down"
        if len(polls) >= 4:
            stop.set()
        answer = json.loads(json.dumps(STATISTICS))
        answer["model_stats"][0]["inference_stats"]["success"]["count"] += len(polls)
        return 200, json.dumps(answer).encode()

    with serving(handle) as url:
        answered = report_triton(url, url, 0.01, stop, spool_dir=tmp_path)
    assert answered == len(polls) - 1
    points = [
        (metric["name"], point)
        for document in sent
        for metric in document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        for point in metric.get("sum", metric.get("gauge", {})).get("dataPoints", [])
    ]
    assert sum(point["asDouble"] for name, point in points if name == "edgekit.triton.requests") == len(polls) - 1
    resource = {pair["key"]: pair["value"].get("stringValue") for pair in sent[0]["resourceMetrics"][0]["resource"]["attributes"]}
    assert (resource["service.name"], resource["edgekit.tier"]) == ("edgekit-triton", "cloud")
    assert resource["device.id"] == "triton-" + url.removeprefix("http://")


def set_event():
    """What is told to stop before it begins polls once."""
    stop = threading.Event()
    stop.set()
    return stop


def test_prometheus_is_read_where_the_url_says_metrics(tmp_path):
    with serving(lambda method, path, body: (200, PROMETHEUS.encode() if path == "/metrics" else b"{}")) as url:
        assert report_triton(url + "/metrics", url, stop_event=set_event(), spool_dir=tmp_path) == 1


def test_a_triton_that_is_away_is_no_answer(tmp_path):
    with serving(lambda *_: (404, b"")) as url:
        assert report_triton(url, url, stop_event=set_event(), spool_dir=tmp_path) == 0
        with pytest.raises(UnavailableError, match="404"):
            _report.fetch(url + "/v2/models/stats")
    with pytest.raises(UnavailableError, match="Triton at"):
        _report.fetch(url + "/v2/models/stats")


@pytest.mark.parametrize("url", ["localhost:8000", "grpc://x:1", "http://"])
def test_a_url_that_is_none_is_one_clear_line(url):
    with pytest.raises(UsageError, match="--triton"):
        report_triton(url, "http://127.0.0.1:1")
