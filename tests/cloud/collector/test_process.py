"""Collectors in processes of their own: the store outlives them, belongs to one at a time, and a resend after a restart changes nothing."""

import http.client
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CHILD = """
import json, sys, threading
from edgekit.cloud.collector import start_collector
from edgekit.errors import EdgeKitError
try:
    with start_collector(sys.argv[1], ("127.0.0.1", 0), None, insert_interval_s=0.0) as collector:
        count = lambda db: db.query("SELECT count(), sum(value) FROM edgekit_metrics_sum FINAL")[0]
        print(json.dumps({"port": collector.http_port, "rows": collector.services.store.call(count)}), flush=True)
        sys.stdin.read()
        rows = collector.services.store.call(count)
    print(json.dumps({"rows": rows, "threads": [thread.name for thread in threading.enumerate()]}), flush=True)
except EdgeKitError as exc:
    print(json.dumps({"error": str(exc)}), flush=True)
"""


class Child:
    def __init__(self, path):
        self.process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = json.loads(self.process.stdout.readline())

    def post(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.said["port"], timeout=30)
        connection.request("POST", "/v1/metrics", body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    def end(self):
        out, _ = self.process.communicate("", timeout=60)
        assert self.process.returncode == 0
        return json.loads(out)

    def kill(self):
        self.process.kill()
        self.process.communicate()


def test_rows_outlive_the_collector_a_kill_included(otlp, tmp_path):
    import time

    source = otlp.resource("d", "b")
    bodies = [otlp.metrics(lambda meter: meter.counter("c").add(5), source, time.time_ns() // 1_000_000)[0] for _ in range(2)]
    first = Child(tmp_path / "store")
    assert first.said["rows"] == [0, 0]
    assert first.post(bodies[0]) == 200
    second = Child(tmp_path / "store")
    assert "stop the other collector, or give --store another folder" in second.said["error"]
    second.process.communicate("", timeout=60)
    assert first.post(bodies[1]) == 200
    first.kill()
    third = Child(tmp_path / "store")
    assert third.said["rows"] == [2, 10], "acknowledged rows survive a kill"
    assert [third.post(body) for body in bodies] == [200, 200]
    assert third.end() == {"rows": [2, 10], "threads": ["MainThread"]}, "sending them again changed nothing"
