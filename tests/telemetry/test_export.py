"""Export: what an answer means, back-off, nothing lost and nothing twice, and a caller that never notices."""

import json
import math
import random
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.telemetry import MemoryTransport, Meter, start_telemetry
from edgekit.telemetry._exporter import DropCounts, ExportCycle
from edgekit.telemetry._http import HttpTransport, Response, backoff_s, judge
from edgekit.telemetry._otlp import Batch, Resource
from edgekit.telemetry._spool import Spool

BATCH = Batch("metrics", b"{}", 5)


@pytest.mark.parametrize(
    ("response", "action", "reason", "dropped", "retry_after_s"),
    [
        (Response(200, b"{}"), "delivered", "", 0, None),
        (Response(200, b""), "delivered", "", 0, None),
        (Response(202, b"[1]"), "delivered", "", 0, None),
        (Response(200, b'{"partialSuccess":{"rejectedDataPoints":"3"}}'), "delivered", "partial_success", 3, None),
        (Response(200, b'{"partialSuccess":{"rejectedLogRecords":99}}'), "delivered", "partial_success", 5, None),
        (Response(0, error="refused"), "retry", "unreachable", 0, None),
        (Response(429, retry_after="7"), "retry", "http_429", 0, 7.0),
        (Response(503, retry_after="Thu, 01 Jan 1970 00:01:40 GMT"), "retry", "http_503", 0, 40.0),
        (Response(503, retry_after="nonsense"), "retry", "http_503", 0, None),
        (Response(503, retry_after="nan"), "retry", "http_503", 0, None),
        (Response(503, retry_after="1e9"), "retry", "http_503", 0, 600.0),
        (Response(502), "retry", "http_502", 0, None),
        (Response(504), "retry", "http_504", 0, None),
        (Response(400), "drop", "http_400", 5, None),
        (Response(404), "drop", "http_404", 5, None),
        (Response(500), "drop", "http_500", 5, None),
        (Response(302), "drop", "http_302", 5, None),
    ],
)
def test_meaning_of_an_answer(response, action, reason, dropped, retry_after_s):
    verdict = judge(BATCH, response, now_s=60.0)
    assert (verdict.action, verdict.reason, verdict.dropped_rows, verdict.retry_after_s) == (action, reason, dropped, retry_after_s)


def test_backoff_doubles_to_a_minute_with_jitter():
    rng = random.Random(3)
    for attempt, ceiling in ((1, 1), (2, 2), (4, 8), (7, 60), (5000, 60)):
        drawn = [backoff_s(attempt, rng) for _ in range(200)]
        assert ceiling * 0.5 <= min(drawn) < ceiling * 0.55
        assert ceiling * 0.95 < max(drawn) <= ceiling


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def cycle_with(receiver, spool=None):
    meter = Meter(start_ns=0)
    drops = DropCounts(meter)
    cycle = ExportCycle(
        meter,
        Resource({"device.id": "d", "edgekit.boot.id": "b"}),
        spool or Spool(None, 1 << 20, drops.add),
        receiver,
        drops,
        random.Random(1),
    )
    return meter, cycle, drops


def counted(documents, name):
    return sum(
        point["asDouble"]
        for document in documents
        for resource in document["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == name
        for point in metric["sum"]["dataPoints"]
    )


@settings(max_examples=60)
@given(st.lists(st.sampled_from([200, 0, 429, 503]), max_size=30), st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=12))
def test_an_outage_loses_nothing_and_doubles_nothing(script, increments):
    receiver = MemoryTransport(script)
    meter, cycle, drops = cycle_with(receiver)
    clock = Clock()
    counter = meter.counter("c")
    for k, n in enumerate(increments):
        counter.add(n)
        cycle.collect(k + 1)
        cycle.send(clock, clock.now_s + 100)
        clock.now_s += 5
    for _ in range(len(script) + 1):
        clock.now_s += 1000
        if cycle.send(clock, clock.now_s + 100):
            break
    assert cycle.backlog == 0
    assert counted(receiver.documents("metrics"), "c") == sum(increments)
    sequences = [
        document["resourceMetrics"][0]["resource"]["attributes"][-1]["value"]["intValue"] for document in receiver.documents("metrics")
    ]
    assert sequences == [str(k) for k in range(len(increments))]
    assert drops.by_reason() == {}
    cycle.close()


def test_retry_after_and_backoff_hold_the_sender():
    receiver = MemoryTransport([Response(503, retry_after="30"), 0])
    meter, cycle, _ = cycle_with(receiver)
    clock = Clock()
    meter.counter("c").add()
    cycle.collect(1)
    assert not cycle.send(clock, math.inf)
    assert cycle.retry_at_s == 1030
    clock.now_s = 1029
    assert not cycle.send(clock, math.inf)
    assert receiver.attempts == 1
    clock.now_s = 1030
    assert not cycle.send(clock, math.inf)
    assert receiver.attempts == 2
    assert 1031 <= cycle.retry_at_s <= 1032, "second failure in a row: 1 to 2 s"
    clock.now_s = 1033
    assert cycle.send(clock, math.inf)
    cycle.close()


def test_refusals_are_dropped_with_a_reason_and_the_loss_is_reported():
    receiver = MemoryTransport([400, Response(200, b'{"partialSuccess":{"rejectedDataPoints":"1"}}')])
    meter, cycle, drops = cycle_with(receiver)
    clock = Clock()
    for k in range(2):
        meter.counter("a").add()
        cycle.collect(k + 1)
    assert cycle.send(clock, math.inf)
    assert receiver.attempts == 2, "neither is sent again"
    assert drops.by_reason() == {"http_400": 1, "partial_success": 1}
    cycle.collect(3)
    assert cycle.send(clock, math.inf)
    assert counted(receiver.documents("metrics"), "edgekit.telemetry.dropped") == 2
    cycle.close()


def test_a_full_disk_keeps_telemetry_in_memory(tmp_path):
    spool = Spool(tmp_path / "s.sqlite")
    spool._db.execute("PRAGMA max_page_count=4")
    receiver = MemoryTransport()
    meter, cycle, drops = cycle_with(receiver, spool)
    for k in range(200):
        meter.counter("c").add(1, {"k": k})
    cycle.collect(1)
    assert cycle.backlog == 1
    assert cycle.send(Clock(), math.inf)
    assert counted(receiver.documents("metrics"), "c") == 200
    assert drops.by_reason() == {}
    for k in range(200):
        meter.counter("c").add(1, {"k": k})
    cycle.collect(2)
    cycle.close()
    assert drops.by_reason() == {"memory_only": 200}


def test_over_http_with_one_kept_connection(http_receiver, tmp_path):
    receiver = http_receiver()
    with start_telemetry("edgekit-runtime", "edge", receiver.url + "/base/", "dev-1", 3600, tmp_path) as telemetry:
        telemetry.set_bundle("sha256:1", "p")
        telemetry.meter.counter("c").add(3)
        assert telemetry.exporting
        assert telemetry.flush(10)
        assert telemetry.send_receipt({"verified": "host"})
        telemetry.set_bundle("sha256:2", "p")
        telemetry.meter.counter("c").add(4)
        assert telemetry.flush(10)
        telemetry.meter.counter("c").add(5)
    assert [path for path, _, _ in receiver.requests] == ["/base/v1/metrics", "/base/v1/logs", "/base/v1/metrics", "/base/v1/metrics"]
    assert receiver.connections == 1
    headers = receiver.requests[0][1]
    assert (headers["Content-Type"], headers["Content-Encoding"]) == ("application/json", "gzip")
    assert counted([body for path, _, body in receiver.requests if "metrics" in path], "c") == 12
    resources = [
        {pair["key"]: next(iter(pair["value"].values())) for pair in body[group][0]["resource"]["attributes"]}
        for (_, _, body), group in zip(
            receiver.requests, ["resourceMetrics", "resourceLogs", "resourceMetrics", "resourceMetrics"], strict=True
        )
    ]
    assert resources[0] | {"edgekit.boot.id": "", "service.version": ""} == {
        "service.name": "edgekit-runtime",
        "service.version": "",
        "device.id": "dev-1",
        "edgekit.tier": "edge",
        "edgekit.device_profile": "p",
        "edgekit.bundle.digest": "sha256:1",
        "edgekit.boot.id": "",
        "edgekit.sequence": "0",
    }
    assert [resource["edgekit.sequence"] for resource in resources] == ["0", "1", "2", "3"]
    assert len({resource["edgekit.boot.id"] for resource in resources}) == 1
    assert resources[2]["edgekit.bundle.digest"] == "sha256:2"
    telemetry.close()
    assert not telemetry.exporting
    assert not telemetry.send_receipt({})


def test_a_connection_that_the_receiver_closed_is_opened_anew(http_receiver):
    receiver = http_receiver({0: (200, {"Connection": "close"}, b"{}"), 1: (503, {"Retry-After": "9"}, b"x" * 100_000)})
    transport = HttpTransport(receiver.url)
    assert transport.send(BATCH, 5).status == 200
    second = transport.send(BATCH, 5)
    assert (second.status, second.retry_after, len(second.body)) == (503, "9", 64 << 10)
    assert transport.send(BATCH, 5).status == 200
    transport.close()


def test_a_dead_collector_costs_the_caller_nothing_and_the_next_start_delivers(http_receiver, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        telemetry = start_telemetry("svc", "edge", dead, "dev", spool_dir=tmp_path, interval_s=3600)
        telemetry.meter.counter("c").add(3)
        assert telemetry.send_receipt({"verified": "host"})
        assert not telemetry.flush(5)
        assert telemetry.backlog == 2
        telemetry.close()
        telemetry.close()
    receiver = http_receiver()
    with start_telemetry("svc", "edge", receiver.url, "dev", spool_dir=tmp_path, interval_s=3600) as again:
        assert again.flush(10)
    assert sorted(path for path, _, _ in receiver.requests) == ["/v1/logs", "/v1/metrics"]
    assert counted([body for path, _, body in receiver.requests if path == "/v1/metrics"], "c") == 3


def test_close_breaks_off_a_collector_that_accepts_and_says_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        telemetry = start_telemetry(
            "svc", "edge", f"http://127.0.0.1:{silent.getsockname()[1]}", "dev", spool_dir=tmp_path, interval_s=3600
        )
        telemetry.meter.counter("c").add()
        telemetry.close(timeout_s=0.2)
    assert not [thread for thread in threading.enumerate() if thread.name == "edgekit-telemetry"]


def test_without_a_collector_the_meter_works_and_nothing_is_sent():
    before = threading.active_count()
    telemetry = start_telemetry("svc", "edge")
    telemetry.meter.counter("c").add(2)
    assert threading.active_count() == before
    assert telemetry.flush(0)
    assert not telemetry.exporting
    assert not telemetry.send_receipt({"a": 1})
    assert telemetry.backlog == 0
    assert [point.value for point in telemetry.meter.collect(1 << 62)] == [2]
    assert telemetry.resource["device.id"]
    telemetry.close()


def test_a_receipt_that_cannot_travel_is_counted_not_raised(tmp_path):
    telemetry = start_telemetry("svc", "edge", spool_dir=tmp_path, interval_s=3600, transport=MemoryTransport())
    loop = {}
    loop["self"] = loop
    assert not telemetry.send_receipt(loop)
    assert not telemetry.send_receipt({"large": "x" * (5 << 20)})
    assert telemetry.dropped == {"not_encodable": 1, "too_large": 1}
    telemetry.close()


def test_an_unwritable_spool_directory_falls_back_to_memory(tmp_path):
    (tmp_path / "file").write_text("")
    receiver = MemoryTransport()
    with start_telemetry("svc", "edge", spool_dir=tmp_path / "file" / "x", interval_s=3600, transport=receiver) as telemetry:
        telemetry.meter.counter("c").add(2)
        assert telemetry.flush(10)
    assert counted(receiver.documents("metrics"), "c") == 2


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "ftp://x", "http://", "http://[::1", "http://h:99999999"])
def test_a_url_that_is_none_is_one_clear_line(url):
    with pytest.raises(UsageError, match="collector URL") as caught:
        start_telemetry("svc", "edge", url)
    assert "\n" not in str(caught.value)


def test_the_thread_collects_by_itself(tmp_path):
    arrived = threading.Event()

    class Receiver(MemoryTransport):
        def send(self, batch, timeout_s):
            answer = super().send(batch, timeout_s)
            arrived.set()
            return answer

    receiver = Receiver()
    with start_telemetry("svc", "edge", spool_dir=tmp_path, interval_s=0.01, transport=receiver) as telemetry:
        telemetry.meter.gauge("g").set(1)
        assert arrived.wait(10)
    assert json.loads(receiver.accepted[0].body)["resourceMetrics"]
