"""gRPC servers side by side in one run: ours with a model, Triton with the same model, and, without a model, our transport and grpcio's two.

Every server has one core of its own and the load (h2load, one thread, one call at a time on each connection) another; the servers take turns, round after round,
so that what else the machine does meets all of them. Two figures a server and number of connections: what came out (requests a second, latencies), and the CPU time
that the server's processes spent on a request, which hardly depends on how busy the machine is. The echoes say what a transport costs: they take the same request
(768 float32, raw contents) and give the same answer; ours decodes and encodes them, grpcio's hand bytes through.

What it does not show: a network, many different clients, or any other mix of requests. The first answer's numbers are checked, and the bytes of all others.

Run ``python -m benchmarks serve_grpc [--servers a,b] [--connections 1,16] [--seconds S] [--rounds R] [-o FILE]``. Needs ``h2load`` (Debian: nghttp2-client) and two
cores. Triton is ``.venv-triton``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.serve import LOAD_CORE, READY_S, SERVER_CORE, Case, make_case, medians
from edgekit.protocol import InferRequest, InferResponse, Tensor
from edgekit.protocol._grpc_codec import decode_response, encode_request, encode_response
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._grpc_wire import framed

SERVERS = ["edgekit", "triton", "edgekit-echo", "edgekit-echo-asyncio", "grpcio-echo", "grpcio-aio-echo"]
PATH = "/inference.GRPCInferenceService/ModelInfer"
FRAME_BYTES = 5


class Files:
    """The request with its prefix, for h2load, and the answer of the echoes."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.request = encode_request(InferRequest(case.name, [Tensor(case.input_name, case.array)])).SerializeToString()
        self.body = folder / "body"
        self.body.write_bytes(framed(len(self.request)) + self.request)
        self.answer = folder / "answer"
        self.answer.write_bytes(encode_response(InferResponse(case.name, "1", [Tensor("y", case.expected)])).SerializeToString())


class Running:
    """A server that answers."""

    def __init__(self, server: str, case: Case, files: Files) -> None:
        self.name, self._files = server, files
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            str(Path(__file__).parent / "_grpc_peers.py"),
            server,
            "--model",
            str(case.model),
            "--bundle",
            str(case.bundle),
        ]
        command += ["--answer", str(files.answer), "--port", str(self.port), "--core", str(SERVER_CORE)]
        began = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        raw = self._first_answer()
        self.start_s = time.perf_counter() - began
        self._answer_bytes = len(raw) + FRAME_BYTES
        found = decode_response(message_classes()["ModelInferResponse"].FromString(raw)).outputs[0].data
        error = float(np.abs(found.astype(np.float64) - case.expected).max())
        if found.shape != case.expected.shape or error > 1e-3:
            raise SystemExit(f"{server}: its answer is off by {error}")

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self._family())

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        self._load(connections, 1.0)
        before = self._cpu_s()
        latencies_us, data_bytes, wall_s = self._load(connections, seconds)
        cpu_us = (self._cpu_s() - before) / len(latencies_us) * 1e6
        if data_bytes != len(latencies_us) * self._answer_bytes:  # a refusal has no data
            raise SystemExit(f"{self.name}: {data_bytes} bytes for {len(latencies_us)} answers of {self._answer_bytes}")
        percentiles = {f"p{p}_ms": float(np.percentile(latencies_us, p)) / 1e3 for p in (50, 95, 99)}
        return {"requests_per_s": len(latencies_us) / wall_s, "cpu_us": cpu_us, **percentiles}

    def _first_answer(self) -> bytes:
        import grpc

        deadline = time.perf_counter() + READY_S
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise SystemExit(f"{self.name} ended: {self._process.stderr.read()[-2000:]}")
            with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                answer: bytes = channel.unary_unary(PATH)(self._files.request, timeout=2)
                return answer
            time.sleep(0.01)
        self._process.terminate()
        raise SystemExit(f"{self.name}: no answer within {READY_S:g} s")

    def _family(self) -> list[Any]:
        import psutil

        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def _cpu_s(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._family()))

    def _load(self, connections: int, seconds: float) -> tuple[np.ndarray, int, float]:
        """Latency of each call in microseconds, bytes of all answers, and how long it took."""
        log = self._files.body.with_name("log")
        log.unlink(missing_ok=True)
        command = [
            "taskset",
            "-c",
            str(LOAD_CORE),
            "h2load",
            "-t1",
            f"-c{connections}",
            "-m1",
            f"-D{max(1, round(seconds))}",
            f"--log-file={log}",
        ]
        command += [
            "-d",
            str(self._files.body),
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            f"http://127.0.0.1:{self.port}{PATH}",
        ]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        requests = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", shown)
        traffic = re.search(r"\((\d+)\) data", shown)
        wall = re.search(r"finished in ([\d.]+)(m?s),", shown)
        if requests is None or traffic is None or wall is None or int(requests[3]) or int(requests[4]):
            raise SystemExit(f"{self.name}: {shown}")
        latencies = np.loadtxt(log, usecols=2, ndmin=1)
        return latencies, int(traffic[1]), float(wall[1]) / (1e3 if wall[2] == "ms" else 1)


@contextlib.contextmanager
def running(servers: list[str], case: Case, files: Files) -> Iterator[list[Running]]:
    started: list[Running] = []
    try:
        for server in servers:
            started.append(Running(server, case, files))  # noqa: PERF401 - those before it are ended when one fails
        yield started
    finally:
        for server in started:
            server.stop()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    servers = arguments.servers.split(",")
    counts = [int(text) for text in arguments.connections.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        case = make_case("mlp", Path(name))
        with running(servers, case, Files(case, Path(name))) as started:
            for turn in range(arguments.rounds):
                print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
                for connections in counts:
                    for server in started:
                        found.setdefault((server.name, connections), []).append(server.measure(connections, arguments.seconds))
            processes = {
                server.name: {"start_s": round(server.start_s, 2), "rss_mb": round(server.rss_bytes() / 1e6)} for server in started
            }
    return {"servers": {server: {str(count): medians(found[server, count]) for count in counts} | processes[server] for server in servers}}


def table(results: dict[str, Any]) -> str:
    counts = [key for key in next(iter(results["servers"].values())) if key.isdigit()]
    columns = "".join(f"{f'req/s, {count} conns':>17}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}" for count in counts)
    lines = [f"{'':<21}{columns}{'RSS MB':>9}{'start s':>9}"]
    for server, row in results["servers"].items():
        cells = "".join(
            f"{row[count]['requests_per_s']:>17.0f}{row[count]['p50_ms']:>9.2f}{row[count]['p99_ms']:>9.2f}{row[count]['cpu_us']:>9.1f}"
            for count in counts
        )
        lines.append(f"{server:<21}{cells}{row['rss_mb']:>9}{row['start_s']:>9.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--connections", default="1,16")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each figure and round, whole ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="the JSON goes there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.servers.split(",")) - set(SERVERS):
        raise SystemExit(f"--servers {', '.join(sorted(unknown))}: unknown; there are {', '.join(SERVERS)}")
    if shutil.which("h2load") is None or (os.cpu_count() or 1) < 2:
        raise SystemExit("h2load and two cores are needed; Debian: apt-get install nghttp2-client")
    machine = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    options = {"seconds": arguments.seconds, "rounds": arguments.rounds, "load_average_before": os.getloadavg()[0]}
    results = run(arguments)
    document = json.dumps({**machine, **options, "load_average_after": os.getloadavg()[0], **results}, indent=2)
    print(document)
    print(table(results), file=sys.stderr)
    if arguments.output is not None:
        arguments.output.write_text(document + "\n")


if __name__ == "__main__":
    main()
