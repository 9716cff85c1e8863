"""A server whose profile lists accelerators that are not here, as its operator sees it: log, metadata over the protocol, and telemetry."""

from __future__ import annotations

import gzip
import http.server
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.converters import build

WAIT_S = 60.0


class Sink(http.server.ThreadingHTTPServer):
    """A collector that keeps the change counts which arrive."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.fallbacks: list[dict[str, str]] = []
        self.told = threading.Event()

    def take(self, document: dict) -> None:
        for resource in document.get("resourceMetrics", []):
            metrics = [metric for scope in resource["scopeMetrics"] for metric in scope["metrics"]]
            for point in (
                point for metric in metrics if metric["name"] == "edgekit.model.changes" for point in metric["sum"]["dataPoints"]
            ):
                facts = {one["key"]: one["value"]["stringValue"] for one in point["attributes"]}
                if facts["edgekit.change"] == "fallback":
                    self.fallbacks.append(facts)
                    self.told.set()


class _Receive(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        assert isinstance(self.server, Sink)
        self.server.take(json.loads(raw))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_log_metadata_and_telemetry_say_what_does_not_run(tiny_mlp: Path, tmp_path: Path, sink: Sink) -> None:
    build(tiny_mlp, device="intel-lunar-lake", precision="fp32", shapes={"x": (1, 8)}, output=tmp_path / "bundle", name="mlp")
    flags = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--collector", f"http://127.0.0.1:{sink.server_port}"]
    command = [sys.executable, "-m", "edgekit", "serve", str(tmp_path / "bundle"), *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("http ")[1].split(",")[0])  # printed when it is ready
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/mlp/config", timeout=WAIT_S) as answer:
            config = {key: value["string_value"] for key, value in json.load(answer)["parameters"].items()}
    finally:
        server.terminate()  # what was counted is sent at the end
        _, log = server.communicate(timeout=WAIT_S)
    assert sink.told.wait(WAIT_S)
    assert (sink.fallbacks[-1]["edgekit.runs_on"], sink.fallbacks[-1]["edgekit.wanted"]) == ("openvino/cpu", "openvino/npu")
    assert "mlp: runs on openvino/cpu instead of openvino/npu" in log
    assert config["running.accelerator"] == "cpu"
    assert "openvino/npu: engine openvino: no device here" in config["running.passed_over"]
