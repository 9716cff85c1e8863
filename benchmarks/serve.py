"""Requests per second and latency of the device server over HTTP (binary tensors) and gRPC, with a model that costs next to nothing.

The server is a process of its own; so are the load generators (our clients, one thread a connection), which share this machine's cores with it: on few cores
the figures at 16 connections say what both sides do together. The floor is the same request on the same session without a server.

What it does not show: a network, large tensors, a model that takes time.

Run ``python benchmarks/serve.py [--seconds S]``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.session_overhead import tiny_mlp
from edgekit.converters import build
from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.runtime import load, serve_bundles

WARM_UP_S = 1.0
LOAD_PROCESSES = 2
X = np.arange(8, dtype=np.float32).reshape(1, 8)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(seconds, p)) * 1e3, 3) for p in (50, 95, 99)}


def run_server(bundle: str) -> None:
    """Role of the server process: says where it listens, ends when its input does."""
    with serve_bundles([bundle], ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
        print(json.dumps({"http": server.http_port, "grpc": server.grpc_port}), flush=True)
        sys.stdin.read()


def run_load(url: str, connections: int, seconds: float) -> None:
    """Role of a load process: latencies of each request after the warm-up, as JSON."""
    client = connect(url)
    request = InferRequest("tiny_mlp", [Tensor("x", X)])
    latencies: list[list[float]] = [[] for _ in range(connections)]
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    def work(mine: list[float]) -> None:
        while (started := time.perf_counter()) < end:
            client.infer(request, 10.0)
            if started >= begin:
                mine.append(time.perf_counter() - started)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    print(json.dumps([value for mine in latencies for value in mine]))


def role(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, **options)


def measure(url: str, connections: int, seconds: float) -> dict[str, float]:
    processes = min(LOAD_PROCESSES, connections)
    started = [role("--load", url, "--connections", str(connections // processes), "--seconds", str(seconds)) for _ in range(processes)]
    latencies: list[float] = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit("a load process failed")
        latencies += json.loads(output)
    return {"requests_per_s": round(len(latencies) / seconds), "requests": len(latencies), **percentiles(latencies)}


def floor(bundle: str) -> dict[str, float]:
    with load(bundle) as session:
        seconds = []
        for turn in range(6000):
            started = time.perf_counter()
            session.run({"x": X})
            if turn >= 1000:
                seconds.append(time.perf_counter() - started)
    return {**percentiles(seconds), "requests_per_s": round(1 / statistics.fmean(seconds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each figure")
    parser.add_argument("--server", metavar="BUNDLE", help=argparse.SUPPRESS)
    parser.add_argument("--load", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--connections", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        return run_server(arguments.server)
    if arguments.load:
        return run_load(arguments.load, arguments.connections, arguments.seconds)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "tiny_mlp.edgekit")
        build(tiny_mlp(Path(folder)), device="generic-x86", precision="fp32", output=bundle)
        results["session_without_server"] = floor(bundle)
        server = role("--server", bundle, stdin=subprocess.PIPE)
        assert server.stdout is not None
        try:
            ports = json.loads(server.stdout.readline())
            for scheme, port in ports.items():
                for connections in (1, 16):
                    results[f"{scheme}, {connections} connections"] = measure(
                        f"{scheme}://127.0.0.1:{port}", connections, arguments.seconds
                    )
        finally:
            server.communicate()
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    options = {"seconds": arguments.seconds, "warm_up_s": WARM_UP_S, "load_processes": LOAD_PROCESSES}
    print(json.dumps({**machine, **options, "load_average_1min": os.getloadavg()[0], "results": results}, indent=2))
    return None


if __name__ == "__main__":
    main()
