"""A server among clients that behave badly: does every well-formed request get the right numbers or a refusal, and does memory stay where it was?

At the same time, each in threads of its own: clients that ask and check every number (binary and JSON, one to eight rows, kept and new connections), clients that vanish in the middle
(by end or by reset), noise and damaged requests, senders that drip, clients that pipeline and do not read, and an operator who swaps two versions with different weights: the
one comes, is loaded, becomes stable and answers, the other goes. The server is a process of its own that follows a repository; every number is checked against the version that says it answered.

Its resident memory is read twice a second, and its slope is that of a line through the second half. The allocator's pages settle for about two minutes, so shorter runs show a slope
that longer ones do not; what tells a leak from that is what the server holds: Python's blocks of memory and the bytes in use on the C heap (glibc), asked for ten times in a run.

What it does not show: a network; more clients than this machine can play.

Run ``python -m benchmarks soak [--seconds S] [--swap-every S]``; prints JSON; exit 1 when something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._cases import mlp
from edgekit.protocol import InferRequest, Tensor
from edgekit.protocol._http_codec import decode_response, encode_request
from edgekit.runtime import FolderStore

PATH = "/v2/models/mlp/infer"
REFUSED = {503, 504}
ANSWERS_TO_NOISE = {200, 400, 404, 405, 408, 413, 414, 415, 417, 431, 501, 503, 504, 505}
SETTLE_S = 3.0
HELD_TIMES = 10
Versions = dict[str, tuple[Path, Callable[[np.ndarray], np.ndarray]]]


def serve_role(repository: str) -> None:
    """The server: says where it listens, then for each line of input what it holds; ends with the input."""
    from edgekit.runtime import RepositoryOptions, serve_bundles
    from edgekit.runtime.engines import EngineOptions

    options, where = EngineOptions(threads=1), RepositoryOptions(folder=repository)
    with serve_bundles([], ("127.0.0.1", 0), None, options=options, repository=where) as server:
        print(server.http_port, flush=True)
        for _ in sys.stdin:
            gc.collect()
            print(json.dumps({"python_blocks": sys.getallocatedblocks(), "c_heap_in_use_bytes": c_heap_in_use_bytes()}), flush=True)


class _MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def c_heap_in_use_bytes() -> int | None:
    """Bytes that the program holds on glibc's heap, mapped blocks included; ``None`` with another C library."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return None
    ask.restype = _MallInfo
    found = ask()
    return int(found.uordblks + found.hblkhd)


def write_versions(folder: Path) -> Versions:
    """Two versions of one MLP with different weights: a bundle and the right answers by version."""
    import onnx
    from onnx import numpy_helper

    from edgekit.converters import build

    source = mlp(folder)
    model = onnx.load(source)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made: Versions = {}
    for version, sign in (("1", 1), ("2", -1)):
        last = weights["w2"] * np.float32(sign)
        next(item for item in model.graph.initializer if item.name == "w2").CopyFrom(numpy_helper.from_array(last, "w2"))
        onnx.save(model, source)
        bundle = build(source, device="generic-x86", precision="fp32", output=folder / version, name="mlp", model_version=version)

        def right(x: np.ndarray, last: np.ndarray = last) -> np.ndarray:
            answer: np.ndarray = np.maximum(x @ weights["w1"] + weights["b1"], 0) @ last + weights["b2"]
            return answer

        made[version] = bundle.path, right
    return made


class Clients:
    """All kinds of clients, until `stop`."""

    def __init__(self, port: int, store: FolderStore, versions: Versions, swap_every_s: float) -> None:
        self.port = port
        self._store = store
        self._versions = versions
        self._swap_every_s = swap_every_s
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

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
            answer = decode_response(body, response.headers.get("Inference-Header-Content-Length"))
            got, right = answer.outputs[0].data, self._versions[answer.model_version][1](x)
            if got.shape != right.shape or np.abs(got - right).max() > 1e-3:
                self.fail(f"a good request got other numbers than those of version {answer.model_version}")
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

    def swapping(self, random: np.random.Generator) -> None:  # noqa: ARG002 - as all kinds
        """The operator: installs the version that is not there, waits until it answers, removes the other."""
        for version, other in (("2", "1"), ("1", "2")):
            if self.stop.wait(self._swap_every_s):
                return
            self._store.install(self._versions[version][0], ["stable"])
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("POST", "/v2/repository/models/mlp/load")
            status = connection.getresponse().status
            connection.close()
            self._store.remove("mlp", other)
            self.count(f"swapped: {status}")
            if status != http.HTTPStatus.OK:
                self.fail(f"a load got {status}")

    def run(self, kind: Callable[[np.random.Generator], None], seed: int) -> None:
        random = np.random.default_rng(seed)
        while not self.stop.is_set():
            try:
                kind(random)
            except Exception as exc:  # noqa: BLE001 - anything a client meets that it should not
                if not self.stop.is_set():
                    self.fail(f"{kind.__name__}: {type(exc).__name__}: {exc}")


class Server:
    """The server's process."""

    def __init__(self, repository: str) -> None:
        import psutil

        self.process = subprocess.Popen([sys.executable, __file__, "--server", repository], stdin=PIPE, stdout=PIPE, text=True)
        self.port = int(self._line())
        self.seen = psutil.Process(self.process.pid)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def holds(self) -> dict[str, int | None]:
        """What it says that it holds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        held: dict[str, int | None] = json.loads(self._line())
        return held


def watch(server: Server, seconds: float) -> tuple[list[tuple[float, int]], list[dict[str, int | None]]]:
    """Resident bytes over time, twice a second, and what the server holds, ten times."""
    memory: list[tuple[float, int]] = []
    held: list[dict[str, int | None]] = []
    began = time.monotonic()
    while (at := time.monotonic() - began) < seconds and server.process.poll() is None:
        memory.append((at, server.seen.memory_info().rss))
        if at >= seconds / HELD_TIMES * (len(held) + 0.5):
            held.append(server.holds())
        time.sleep(0.5)
    return memory, held


def slope_kb_per_min(memory: list[tuple[float, int]]) -> float:
    """Of a line through these points (seconds, bytes)."""
    return round(float(np.polyfit([at for at, _ in memory], [rss for _, rss in memory], 1)[0]) * 60 / 1e3, 1)


def soak(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the server and the clients, watch, and tell."""
    versions = write_versions(folder)
    store = FolderStore(folder / "repository")
    store.install(versions["1"][0], ["stable"])
    server = Server(str(store.folder))
    clients = Clients(server.port, store, versions, arguments.swap_every)
    kinds = [*[clients.good] * 4, clients.vanishing, clients.noise, clients.noise, clients.dripping, clients.not_reading]
    kinds += [clients.swapping] if arguments.swap_every else []
    threads = [threading.Thread(target=clients.run, args=(kind, seed)) for seed, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        memory, held = watch(server, arguments.seconds)
    finally:
        clients.stop.set()
        for thread in threads:
            thread.join()
    crashed = server.process.poll()
    open_after = None
    if crashed is None:
        time.sleep(SETTLE_S)  # for what lingers to be closed
        open_after = len(server.seen.net_connections() if hasattr(server.seen, "net_connections") else server.seen.connections())
    server.process.communicate()
    megabytes = [round(rss / 1e6, 1) for _, rss in memory]
    return {
        "seconds": arguments.seconds,
        "crashed": crashed,
        "wrong": clients.wrong[:20],
        "wrong_count": len(clients.wrong),
        "counts": dict(sorted(clients.counts.items())),
        "rss_mb": {"start": megabytes[0], "end": megabytes[-1], "most": max(megabytes)},
        "rss_mb_by_tenths": [megabytes[len(megabytes) * tenth // 10] for tenth in range(10)],
        "rss_slope_kb_per_min": slope_kb_per_min(memory[len(memory) // 2 :]),
        "held": {key: [each[key] for each in held] for key in held[0]} if held else {},
        "sockets_open_afterwards": open_after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--swap-every", type=float, default=1.0, metavar="S", help="seconds between two swaps; 0 leaves the model as it is")
    parser.add_argument("--server", metavar="REPOSITORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        return serve_role(arguments.server)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments)
    print(json.dumps(result, indent=2))
    if result["crashed"] is not None or result["wrong"]:
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
