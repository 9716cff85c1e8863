"""A real model at a constant rate on two cores: latency from when each request was due, errors, memory and processor time, minute by minute.

PP-OCR's angle classifier (float32, 110 kB a request). It is built for the profile ``generic-x86``, that is for ONNX
Runtime; ``--device intel-nuc`` takes OpenVINO. Requests run one by one; ``--batch open`` lets the scheduler put them together. The server is `edgekit serve` as users start it, with one engine thread a run, held to two cores.

The load is an open loop of a process of its own (`_constant_rate.py`): requests go out when they are due and count from then. It shares the two cores with the server where there
are no others; ``generator_cores`` says what it took. One answer in sixteen is compared with the right numbers.

``met`` is true when nothing failed, all of the rate was sent and answered, and the 99th percentile is below ``--limit-ms``.

What it does not show: a network, arrivals in bursts, other sizes of requests.

Run ``python -m benchmarks sustained [--minutes M] [--rate R] [--grpc] [--device intel-nuc|generic-x86] [--batch fixed|open]``; prints JSON; exit 1 when it was not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._cases import CLASSIFIER_SHAPE, Case, make_case
from benchmarks._processes import Child, free_port
from benchmarks._results import plain
from benchmarks._side_by_side import Server, ServerError
from benchmarks._traffic import GRPC_PATH, GrpcTraffic, HttpTraffic
from edgekit.protocol import InferRequest, Tensor
from edgekit.protocol._grpc_codec import encode_request as encode_grpc

GENERATOR = Path(__file__).parent / "_constant_rate.py"
CORES = "0,1"
WARM_UP_S = 3.0
SAMPLE_S = 1.0
PERCENTILES = (50, 90, 99, 99.9)
BEHIND_S = 30.0  # the generator may end so much later than planned


def classifier_for(device: str, batch: str, folder: Path) -> Case:
    """The classifier as the profile's own engine runs it, with an open batch or one of a single row."""
    from edgekit.converters import build

    case = make_case("classifier", folder)
    bundle = folder / f"{device}-{batch}.edgekit"
    shapes = {case.input_name: (-1 if batch == "open" else 1, *CLASSIFIER_SHAPE[1:])}
    build(case.model, device=device, precision="fp32", output=str(bundle), name=case.name, shapes=shapes)
    return case._replace(bundle=bundle)


def start(case: Case, transport: str, folder: Path) -> Server:
    port = free_port()
    addresses = (
        ["--http", f"127.0.0.1:{port}", "--grpc", "off"] if transport == "http" else ["--http", "off", "--grpc", f"127.0.0.1:{port}"]
    )
    command = ["taskset", "-c", CORES, sys.executable, "-m", "edgekit.cli", "serve", str(case.bundle), *addresses, "--threads", "1"]
    traffic = HttpTraffic(case, "v2 binary", folder) if transport == "http" else GrpcTraffic(case, folder)
    return Server("edgekit", Child(command), port, traffic, case.expected)


def message(case: Case, server: Server, transport: str) -> tuple[bytes, str]:
    """What the generator sends, over HTTP with its head; and the path."""
    if transport == "grpc":
        return encode_grpc(InferRequest(case.name, [Tensor(case.input_name, case.array)])).SerializeToString(), GRPC_PATH
    traffic = server.traffic
    assert isinstance(traffic, HttpTraffic)
    body = traffic.body.read_bytes()
    fields = {"Host": f"127.0.0.1:{server.port}", "Content-Length": str(len(body)), **traffic.fields}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {traffic.path} HTTP/1.1\r\n{head}\r\n".encode() + body, traffic.path


def play(server: Server, case: Case, transport: str, folder: Path, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One run of the generator, the server's memory and processor time watched meanwhile."""
    request, path = message(case, server, transport)
    (folder / "request").write_bytes(request)
    np.save(folder / "expected.npy", case.expected)
    output = folder / "latencies.npz"
    files = ["--request", str(folder / "request"), "--expected", str(folder / "expected.npy"), "--output", str(output)]
    load = ["--port", str(server.port), "--path", path, "--rate", str(options.rate), "--seconds", str(seconds)]
    command = ["taskset", "-c", CORES, sys.executable, str(GENERATOR), transport, *files, *load, "--connections", str(options.connections)]
    began, cpu_s = time.perf_counter(), server.child.cpu_s()
    rss: list[tuple[float, float]] = []
    generator = subprocess.Popen(command)
    try:
        while generator.poll() is None:
            rss.append((time.perf_counter() - began, server.child.rss_bytes() / 1e6))
            if server.child.ended():
                raise ServerError(f"the server ended: {server.child.said()}")
            if rss[-1][0] > seconds + BEHIND_S:
                raise ServerError(
                    f"the generator is {BEHIND_S:g} s behind: {options.rate:g} requests/s are more than this machine has time for"
                )
            time.sleep(SAMPLE_S)
    finally:
        generator.kill()
        generator.wait()
    if generator.returncode:
        raise ServerError(f"the generator ended with {generator.returncode}")
    spent_s = time.perf_counter() - began
    found = np.load(output)
    return figures(
        found["due_s"],
        found["latency_s"],
        dict(zip(found["errors"].tolist(), found["counts"].tolist(), strict=True)),
        seconds,
    ) | {
        "server_cores": (server.child.cpu_s() - cpu_s) / spent_s,
        "generator_cores": float(found["cpu_s"]) / spent_s,
        "rss_mb": rss[-1][1],
        "rss_slope_mb_per_minute": slope(rss) * 60,
    }


def figures(due_s: np.ndarray, latency_s: np.ndarray, errors: dict[str, int], seconds: float) -> dict[str, Any]:
    """What the latencies say, over all and for each minute by when requests were due."""
    asked = len(latency_s) + sum(errors.values())
    minutes = [latency_s[(due_s >= start) & (due_s < start + 60)] for start in np.arange(0, seconds, 60)]
    return {
        "requests": asked,
        "answered_per_s": len(latency_s) / max(seconds, float((due_s + latency_s).max(initial=0.0))),
        "errors": errors,
        **{f"p{each:g}_ms": percentile_ms(latency_s, each) for each in PERCENTILES},
        "max_ms": percentile_ms(latency_s, 100),
        "p99_ms_by_minute": [percentile_ms(each, 99) for each in minutes],
    }


def percentile_ms(latency_s: np.ndarray, percent: float) -> float:
    """0 for no latencies."""
    return float(np.percentile(latency_s, percent)) * 1e3 if len(latency_s) else 0.0


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Of a line through the second half of (seconds, value); 0 for fewer than two."""
    half = np.array(samples[len(samples) // 2 :])
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) if len(half) > 1 else 0.0


def met(found: dict[str, Any], limit_ms: float) -> bool:
    return not found["errors"] and found["requests"] > 0 and found["p99_ms"] < limit_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    parser.add_argument("--limit-ms", type=float, default=100.0, help="for the 99th percentile")
    parser.add_argument("--device", choices=["generic-x86", "intel-nuc"], default="generic-x86")
    parser.add_argument("--batch", choices=["fixed", "open"], default="fixed", help="rows of a request: one, or as many as run together")
    parser.add_argument("--grpc", action="store_true", help="over gRPC instead of HTTP")
    parser.add_argument("--connections", type=int, default=64, help="of the generator; over gRPC most calls under way")
    options = parser.parse_args()
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < len(CORES.split(",")):
        sys.exit("cannot run here: two cores are needed")
    transport = "grpc" if options.grpc else "http"
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            case = classifier_for(options.device, options.batch, folder)
            server = start(case, transport, folder)
            try:
                play(server, case, transport, folder, options, WARM_UP_S)
                found = play(server, case, transport, folder, options, options.minutes * 60)
            finally:
                server.child.stop()
    except ServerError as exc:
        sys.exit(str(exc))
    asked = {
        "model": "PP-OCR angle classifier, float32",
        "device": options.device,
        "batch": options.batch,
        "transport": transport,
        "rate_per_s": options.rate,
    }
    document = {**asked, "minutes": options.minutes, "limit_ms": options.limit_ms, **found, "met": met(found, options.limit_ms)}
    print(json.dumps(plain(document), indent=2))
    sys.exit(0 if document["met"] else 1)


if __name__ == "__main__":
    main()
