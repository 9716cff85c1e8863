"""OTLP requests of any shape, and one real collector for the tests of a module (chDB has one path a process)."""

import http.client
import json
from types import SimpleNamespace

import pytest

from edgekit.cloud.collector import start_collector
from edgekit.telemetry import Meter
from edgekit.telemetry._otlp import Resource, encode_metrics, encode_receipt

NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="session")
def otlp():
    """Builders of OTLP bodies as a device makes them."""

    def resource(device="d1", boot="b1", service="edgekit-router", **extra):
        attributes = {
            "service.name": service,
            "service.version": "1.0",
            "device.id": device,
            "edgekit.tier": "edge",
            "edgekit.device_profile": "generic-x86",
            "edgekit.bundle.digest": "sha256:aa",
            "edgekit.boot.id": boot,
        }
        return Resource(attributes | extra)

    def metrics(fill, source, now_ms):
        meter = Meter(start_ns=(now_ms - 5000) * 1_000_000)
        fill(meter)
        return [batch.body for batch in encode_metrics(meter.collect(now_ms * 1_000_000), source)]

    def receipt(content, source, now_ms):
        return encode_receipt(content, source, now_ms * 1_000_000).body

    return SimpleNamespace(resource=resource, metrics=metrics, receipt=receipt)


class Client:
    def __init__(self, collector, path):
        self.collector = collector
        self.path = path

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.collector.http_port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return SimpleNamespace(status=answer.status, headers=dict(answer.headers), body=answer.read())
        finally:
            connection.close()

    def post(self, signal, body, content_type="application/json", **headers):
        answer = self.request(
            "POST", f"/v1/{signal}", body, {"Content-Type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}}
        )
        return answer

    def get_json(self, path):
        answer = self.request("GET", path)
        return answer.status, json.loads(answer.body)

    def count(self, table, where="1"):
        """Rows of a table, each identity once."""
        return self.collector.services.store.call(lambda db: db.query(f"SELECT count() FROM {table} FINAL WHERE {where}"))[0][0]

    def query(self, sql):
        return self.collector.services.store.call(lambda db: db.query(sql))

    def now_ms(self):
        return self.collector.services.wall_ms()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    with start_collector(path, ("127.0.0.1", 0), ("127.0.0.1", 0), insert_interval_s=0.0) as collector:
        yield Client(collector, path)
