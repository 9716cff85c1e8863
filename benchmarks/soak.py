"""A server among clients that behave badly: does every well-formed request get the right numbers or a refusal, and does memory stay where it was?

At the same time, each in threads of its own: clients that ask and check every number (binary and JSON, one to eight rows, kept and new connections), clients that vanish in the middle
(by end or by reset), noise and damaged requests, senders that drip, clients that pipeline and do not read, and reloads of the model. The server is a process of its own;
its resident memory is read twice a second, and its slope is that of a line through the second half.

What it does not show: a network; more clients than this machine can play.

Run ``python -m benchmarks soak [--seconds S] [--no-reloads]``; prints JSON; exit 1 when something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.serve import mlp
from edgekit.protocol import InferRequest, Tensor
from edgekit.protocol._http_codec import decode_response, encode_request

PATH = "/v2/models/mlp/infer"
REFUSED = {503, 504}
ANSWERS_TO_NOISE = {200, 400, 404, 405, 408, 413, 414, 415, 417, 431, 501, 503, 504, 505}
SETTLE_S = 3.0


def serve_role(bundle: str) -> None:
    from edgekit.runtime import serve_bundles
    from edgekit.runtime.engines import EngineOptions

    with serve_bundles([bundle], ("127.0.0.1", 0), None, options=EngineOptions(threads=1)) as server:
        print(server.http_port, flush=True)
        sys.stdin.read()


class Clients:
    """All kinds of clients, until `stop`."""

    def __init__(self, port: int, model: Path) -> None:
        import onnx
        from onnx import numpy_helper

        self.port = port
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(model).graph.initializer}
        self._reference: Callable[[np.ndarray], np.ndarray] = lambda x: (
            np.maximum(x @ weights["w1"] + weights["b1"], 0) @ weights["w2"] + weights["b2"]
        )

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what[:300])

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        sock.settimeout(20)
        return sock

    def request(self, random: np.random.Generator, *, binary: bool = True) -> tuple[np.ndarray, bytes]:
        """A good request's input and bytes."""
        x = random.random((int(random.integers(1, 9)), 768), dtype=np.float32)
        message = encode_request(InferRequest("mlp", [Tensor("x", x)]), binary=binary)
        fields = "".join(f"{name}: {value}\r\n" for name, value in message.headers().items())
        head = f"POST {PATH} HTTP/1.1\r\nHost: soak\r\n{fields}Content-Length: {len(message.body)}\r\n\r\n"
        return x, head.encode() + message.body

    def good(self, random: np.random.Generator) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        for _ in range(int(random.integers(1, 50))):
            if self.stop.is_set():
                break
            x = random.random((int(random.integers(1, 9)), 768), dtype=np.float32)
            message = encode_request(InferRequest("mlp", [Tensor("x", x)]), binary=bool(random.random() < 0.8))
            connection.request("POST", PATH, message.body, message.headers())
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                self.count(f"good: {response.status}")
                if response.status not in REFUSED:
                    self.fail(f"a good request got {response.status}: {body[:200]!r}")
                continue
            got = decode_response(body, response.headers.get("Inference-Header-Content-Length")).outputs[0].data
            if got.shape != (len(x), 10) or np.abs(got - self._reference(x)).max() > 1e-3:
                self.fail("a good request got other numbers")
            self.count("good: 200")
        connection.close()

    def vanishing(self, random: np.random.Generator) -> None:
        _, raw = self.request(random)
        with self.connect() as sock:
            sock.sendall(raw[: int(random.integers(1, len(raw) + 1))])
            if random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.count("vanished")

    def noise(self, random: np.random.Generator) -> None:
        raw = bytearray(random.bytes(200) if random.random() < 0.3 else self.request(random)[1])
        for _ in range(int(random.integers(1, 6))):
            at = int(random.integers(0, min(len(raw), 400)))
            raw[at : at + int(random.integers(0, 5))] = random.bytes(int(random.integers(0, 5)))
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(raw)
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(65536):
                    answer += piece
        if answer:
            status = int(answer[9:12])
            self.count(f"noise: {status}")
            if status not in ANSWERS_TO_NOISE:
                self.fail(f"noise got {answer[:200]!r}")

    def dripping(self, random: np.random.Generator) -> None:
        _, raw = self.request(random)
        with self.connect() as sock:
            for at in range(0, len(raw), 997):
                sock.sendall(raw[at : at + 997])
                if self.stop.wait(0.01):
                    return
            status = int(sock.recv(65536)[9:12])
        self.count(f"dripped: {status}")
        if status not in REFUSED | {200}:
            self.fail(f"a dripped request got {status}")

    def not_reading(self, random: np.random.Generator) -> None:
        _, raw = self.request(random)
        with self.connect() as sock:
            sock.settimeout(0.5)
            with contextlib.suppress(OSError):
                for _ in range(300):
                    sock.sendall(raw)
            self.stop.wait(0.5)
        self.count("did not read")

    def reloading(self, _: np.random.Generator) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", "/v2/repository/models/mlp/load")
        status = connection.getresponse().status
        connection.close()
        self.count(f"reloaded: {status}")
        if status != http.HTTPStatus.OK:
            self.fail(f"a reload got {status}")
        self.stop.wait(1.0)

    def run(self, kind: Callable[[np.random.Generator], None], seed: int) -> None:
        random = np.random.default_rng(seed)
        while not self.stop.is_set():
            try:
                kind(random)
            except Exception as exc:  # noqa: BLE001 - anything a client meets that it should not
                if not self.stop.is_set():
                    self.fail(f"{kind.__name__}: {type(exc).__name__}: {exc}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--no-reloads", action="store_true", help="leave the model as it is")
    parser.add_argument("--server", metavar="BUNDLE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        return serve_role(arguments.server)
    import psutil

    from edgekit.converters import build

    with tempfile.TemporaryDirectory() as name:
        model = mlp(Path(name))
        bundle = str(Path(name) / "mlp.edgekit")
        build(model, device="generic-x86", precision="fp32", output=bundle, name="mlp")
        server = subprocess.Popen([sys.executable, __file__, "--server", bundle], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        clients = Clients(int(server.stdout.readline()), model)
        kinds = [
            *[clients.good] * 4,
            clients.vanishing,
            clients.noise,
            clients.noise,
            clients.dripping,
            clients.not_reading,
            *([] if arguments.no_reloads else [clients.reloading]),
        ]
        threads = [threading.Thread(target=clients.run, args=(kind, seed)) for seed, kind in enumerate(kinds)]
        process = psutil.Process(server.pid)
        memory: list[tuple[float, int]] = []
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while time.monotonic() - began < arguments.seconds and server.poll() is None:
            memory.append((time.monotonic() - began, process.memory_info().rss))
            time.sleep(0.5)
        clients.stop.set()
        for thread in threads:
            thread.join()
        crashed = server.poll()
        if crashed is None:
            time.sleep(SETTLE_S)  # for what lingers to be closed
            open_after = len(process.net_connections()) if hasattr(process, "net_connections") else len(process.connections())
        server.communicate()
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit([at for at, _ in half], [rss for _, rss in half], 1)[0])
    result = {
        "seconds": arguments.seconds,
        "load_average": os.getloadavg()[0],
        "crashed": crashed,
        "wrong": clients.wrong[:20],
        "wrong_count": len(clients.wrong),
        "counts": dict(sorted(clients.counts.items())),
        "rss_mb": {
            "start": round(memory[0][1] / 1e6, 1),
            "end": round(memory[-1][1] / 1e6, 1),
            "most": round(max(m for _, m in memory) / 1e6, 1),
        },
        "rss_slope_kb_per_min": round(slope * 60 / 1e3, 1),
        "sockets_open_afterwards": open_after if crashed is None else None,
    }
    print(json.dumps(result, indent=2))
    if crashed is not None or clients.wrong:
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
