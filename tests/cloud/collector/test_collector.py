"""The whole collector on a real chDB: over HTTP and gRPC, resends, conservation, percentiles, what it refuses, and a clean end."""

import concurrent.futures
import gzip
import itertools
import json
import math
import random
import socket
import threading

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from edgekit.cloud.collector import start_collector
from edgekit.errors import BindError
from edgekit.telemetry import start_telemetry

pytestmark = pytest.mark.slow

SUMS, EXPONENTIAL, LOGS = "edgekit_metrics_sum", "edgekit_metrics_exponential_histogram", "edgekit_logs"
boots = (f"boot-{k}" for k in itertools.count())


def of(boot):
    return f"boot_id = '{boot}'"


def fill(meter, n=3):
    for k in range(n):
        meter.counter("c").add(k + 1, {"k": k})
        meter.histogram("edgekit.request.duration").record(0.01 * (k + 1), {"k": k})


def test_json_protobuf_and_gzip_over_http(client, otlp):
    boot = next(boots)
    source = otlp.resource("dev-http", boot)
    bodies = [otlp.metrics(fill, source, client.now_ms())[0] for _ in range(3)]
    protobuf = json_format.Parse(bodies[1], metrics_service_pb2.ExportMetricsServiceRequest()).SerializeToString()
    answers = [
        client.post("metrics", bodies[0], "application/json; charset=utf-8"),
        client.post("metrics", protobuf, "application/x-protobuf"),
        client.post("metrics", gzip.compress(bodies[2]), Content_Encoding="gzip"),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.body for answer in answers] == [b"{}", b"", b"{}"]
    assert answers[1].headers["Content-Type"] == "application/x-protobuf"
    assert client.count(SUMS, of(boot)) == 9
    assert client.count(EXPONENTIAL, of(boot)) == 9


def test_grpc(client, otlp):
    import grpc
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

    boot = next(boots)
    source = otlp.resource("dev-grpc", boot)
    (body,) = otlp.metrics(fill, source, client.now_ms())
    with grpc.insecure_channel(f"127.0.0.1:{client.collector.grpc_port}") as channel:
        metrics = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        request = json_format.Parse(body, metrics_service_pb2.ExportMetricsServiceRequest())
        assert not metrics.Export(request, timeout=20, compression=grpc.Compression.Gzip).HasField("partial_success")
        request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].as_double = math.nan
        assert metrics.Export(request, timeout=20).partial_success.rejected_data_points == 1
        receipt = json_format.Parse(
            otlp.receipt({"verified": "host"}, source, client.now_ms()), logs_service_pb2.ExportLogsServiceRequest()
        )
        logs_service_pb2_grpc.LogsServiceStub(channel).Export(receipt, timeout=20)
        many = metrics_service_pb2.ExportMetricsServiceRequest.FromString(b"\x0a\x00" * 100_001)
        with pytest.raises(grpc.RpcError) as caught:
            metrics.Export(many, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        too_large = metrics_service_pb2.ExportMetricsServiceRequest()
        too_large.resource_metrics.add().resource.attributes.add(key="k").value.string_value = "x" * (17 << 20)
        with pytest.raises(grpc.RpcError) as caught:
            metrics.Export(too_large, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (client.count(SUMS, of(boot)), client.count(LOGS, of(boot))) == (3, 1)


def test_every_row_is_stored_once_whatever_is_sent_again(client, otlp):
    rng = random.Random(11)
    boot = next(boots)
    sources = [otlp.resource(f"dev-{k}", boot) for k in range(4)]
    batches = [body for source in sources for _ in range(5) for body in otlp.metrics(fill, source, client.now_ms())]
    receipts = [otlp.receipt({"verified": "host", "n": k}, source, client.now_ms()) for k, source in enumerate(sources)]
    sent = [("metrics", body) for body in batches] + [("logs", body) for body in receipts]
    sent += [rng.choice(sent) for _ in range(30)]
    rng.shuffle(sent)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda item: client.post(*item).status, sent))
    assert set(statuses) == {200}
    assert client.count(SUMS, of(boot)) == 4 * 5 * 3
    assert client.count(EXPONENTIAL, of(boot)) == 4 * 5 * 3
    assert client.count(LOGS, of(boot)) == 4
    everything = "SELECT * FROM {} FINAL WHERE boot_id = '{}' ORDER BY device_id, sequence, point_id"
    before = [client.query(everything.format(table, boot)) for table in (SUMS, EXPONENTIAL, LOGS)]
    (total,) = client.query(f"SELECT sum(value) FROM {SUMS} FINAL WHERE {of(boot)}")
    assert total[0] == 4 * 5 * (1 + 2 + 3)
    for signal, body in sent[:20]:
        client.post(signal, body)
    client.query(f"SELECT 1 FROM {SUMS} LIMIT 1")
    assert [client.query(everything.format(table, boot)) for table in (SUMS, EXPONENTIAL, LOGS)] == before


def test_from_a_device_to_the_page(client, tmp_path):
    rng = random.Random(3)
    durations = {"edge": [rng.lognormvariate(-4, 0.5) for _ in range(2000)], "cloud": [rng.lognormvariate(-3, 0.3) for _ in range(500)]}
    telemetry = start_telemetry("edgekit-router", "edge", client.collector.url, "dev-e2e", interval_s=3600, spool_dir=tmp_path)
    with telemetry:
        telemetry.set_bundle("sha256:beef", "raspberry-pi-5")
        for tier, values in durations.items():
            for k, value in enumerate(values):
                model = {"edgekit.model": "rec", "edgekit.model.version": "2"}
                telemetry.meter.histogram("edgekit.request.duration").record(
                    value, {**model, "edgekit.tier": tier, "edgekit.outcome": "ok"}
                )
                telemetry.meter.counter("edgekit.route.requests").add(
                    1, {**model, "edgekit.tier": tier, "edgekit.sla": "met" if value < 0.05 else "missed", "edgekit.outcome": "ok"}
                )
                if k % 700 == 699:
                    assert telemetry.flush(20)
        telemetry.send_receipt({"verified": "reference", "bundle_digest": "sha256:beef"})
        assert telemetry.flush(20)
        assert telemetry.dropped == {}
    status, fleet = client.get_json("/api/fleet?window_s=60")
    assert status == 200
    (device,) = (one for one in fleet["devices"] if one["device_id"] == "dev-e2e")
    both = durations["edge"] + durations["cloud"]
    assert device["requests"] == 2500
    assert device["sla_hit_rate"] == pytest.approx(sum(value < 0.05 for value in both) / 2500, abs=1e-6)
    assert device["offload_share"] == pytest.approx(0.2)
    assert (device["verified"], device["profile"], device["stale"]) == ("reference", "raspberry-pi-5", False)
    assert device["models"] == [{"model": "rec", "version": "2", "requests": 2500}]
    for name, q in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        truth = 1e3 * sorted(both)[math.ceil(q * 2500) - 1]
        assert device[name] == pytest.approx(truth, rel=0.0114)
    _, series = client.get_json("/api/series?window_s=60&step_s=60")
    assert set(series["tiers"]) >= {"edge", "cloud"}
    cloud = sorted(durations["cloud"])
    assert max(p for p in series["tiers"]["cloud"]["p50_ms"] if p) == pytest.approx(1e3 * cloud[249], rel=0.05)
    assert any(rate for rate in series["sla_hit_rate"])


HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


def test_what_a_device_can_write_stays_text(client, otlp):
    def hostile(meter):
        meter.histogram("edgekit.request.duration").record(
            0.01, {"edgekit.model": HOSTILE, "edgekit.model.version": HOSTILE, "edgekit.tier": HOSTILE, "edgekit.outcome": "ok"}
        )

    source = otlp.resource(HOSTILE, next(boots), HOSTILE, **{"edgekit.device_profile": HOSTILE, "edgekit.bundle.digest": HOSTILE})
    (body,) = otlp.metrics(hostile, source, client.now_ms())
    assert client.post("metrics", body).status == 200
    assert client.post("logs", otlp.receipt({"verified": HOSTILE}, source, client.now_ms())).status == 200
    answer = client.request("GET", "/api/fleet?window_s=61")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    devices = json.loads(answer.body)["devices"]
    (device,) = (one for one in devices if one["device_id"] == HOSTILE)
    assert (device["verified"], device["profile"], device["models"][0]["model"]) == (HOSTILE, HOSTILE, HOSTILE)


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"{", {"Content-Type": "application/json"}, 400, "not valid JSON"),
        (b"\xff\xff", {"Content-Type": "application/x-protobuf"}, 400, "not valid protobuf"),
        (b"no gzip", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400, "not valid gzip"),
        (gzip.compress(b" " * (17 << 20)), {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400, "more than 16 MiB"),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "br"}, 400, "expected gzip"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/x-protobuf"),
        (b" " * (5 << 20), {"Content-Type": "application/json"}, 413, "more than 4 MiB"),
    ],
)
def test_bad_bodies_get_one_clear_line(client, path, body, headers, status, text):
    answer = client.request("POST", path, body, headers)
    assert answer.status == status
    assert text.encode() in answer.body
    assert b"Traceback" not in answer.body
    if b"{" in answer.body[:1]:
        assert "\n" not in json.loads(answer.body)["message"]


def test_refused_points_are_told(client, otlp):
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add()
    answer = client.post("metrics", json_format.MessageToJson(request).encode())
    assert (answer.status, json.loads(answer.body)["partialSuccess"]["rejectedDataPoints"]) == (200, "1")
    assert client.post("metrics", b"{}").status == 200


@pytest.mark.parametrize(
    "query", ["window_s=x", "window_s=0", "window_s=nan", "window_s=1e99", "step_s=0.1", "window_s=86400&step_s=1", "window_s=%3Cscript%3E"]
)
def test_bad_windows_are_one_clear_line(client, query):
    for path in ("/api/fleet", "/api/series"):
        status, body = client.get_json(f"{path}?{query}")
        assert status == 400
        assert set(body) == {"error"}
        assert "expected" in body["error"]


def test_a_full_queue_says_when_to_come_back(client, otlp, monkeypatch):
    monkeypatch.setattr(client.collector.services.ingest, "_limit_rows", 1)
    hold, entered = threading.Event(), threading.Event()

    def busy(_store):
        entered.set()
        hold.wait(20)

    client.collector.services.store.submit(busy)
    assert entered.wait(10)
    boot = next(boots)
    source = otlp.resource("dev-full", boot)
    bodies = [otlp.metrics(fill, source, client.now_ms())[0] for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(client.post, "metrics", body) for body in bodies]
        done, _ = concurrent.futures.wait(answers, 20, concurrent.futures.FIRST_COMPLETED)
        hold.set()
        (refused,) = (future.result() for future in done)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert sorted(future.result(20).status for future in answers) == [200, 503]
    for body in bodies:
        assert client.post("metrics", body).status == 200
    assert client.count(SUMS, of(boot)) == 6


def test_health_counts(client, otlp):
    _, before = client.get_json("/healthz")
    client.post("metrics", otlp.metrics(fill, otlp.resource("dev-health", next(boots)), client.now_ms())[0])
    _, after = client.get_json("/healthz")
    assert after["inserted_rows"] - before["inserted_rows"] == 7, "six points and the device's own row"
    assert after["queued_rows"] == 0


def test_a_port_in_use_is_one_clear_line_and_leaves_nothing(client):
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"port {port} .* --http"):
            start_collector(client.path, ("127.0.0.1", port), None)
        with pytest.raises(BindError, match=f"port {port} .* --otlp-grpc"):
            start_collector(client.path, ("127.0.0.1", 0), ("127.0.0.1", port))
    assert threading.active_count() <= before
