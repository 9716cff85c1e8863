"""What the router as a server adds to an edge server: each in a process of its own, as `edgekit serve` and `edgekit route` run, one connection.

The same request goes directly to the edge server and through the router, in turns; the figure is the median of the differences of neighbours, which a drift of the machine leaves alone.
The client writes bytes that were encoded before and reads the answer's length, so that it costs next to nothing. Ways in and on: HTTP to an edge server over HTTP, gRPC to one over
HTTP, gRPC to one over gRPC. CPU time of a request is the router's own, and what a request from the router costs the edge server more than one from the client:
mostly that its caches have cooled, for a pause of half a millisecond between direct requests costs it as much.

The edge server has core 0, router and client share core 1: one of the two works at a time.

What it does not show: several connections, a cloud tier (there is none), a network.

Run ``python -m benchmarks router_hop [--pairs N] [--rounds R] [--model mlp|classifier]``; prints JSON. Needs two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import http.client
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks._cases import MODELS, Case, make_case
from benchmarks._results import plain
from benchmarks._results_routing import Hop, RouterHop
from benchmarks._traffic import GRPC_PATH
from edgekit.cli.demo._stage import Child, cores, start
from edgekit.protocol import InferRequest, Tensor
from edgekit.protocol._grpc_codec import encode_request as encode_grpc
from edgekit.protocol._http_codec import encode_request

WAYS = {"http": ("http", "http"), "grpc, edge over http": ("grpc", "http"), "grpc": ("grpc", "grpc")}
"""Name -> how the client calls, and how the router calls the edge server."""
SLA_MS = "1000"
WARM_UP = 100
ANSWER_S = 10.0


Ask = Callable[[], None]


@contextlib.contextmanager
def over_http(case: Case, port: int) -> Iterator[Ask]:
    """Asks on one connection, with as little of our own as can be."""
    message = encode_request(InferRequest(case.name, [Tensor(case.input_name, case.array)]))
    fields = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(message.body)), **message.headers()}
    head = f"POST /v2/models/{case.name}/infer HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    data = head.encode() + message.body
    with socket.create_connection(("127.0.0.1", port), ANSWER_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            sock.sendall(data)
            answer = sock.recv(1 << 16)
            while (end := answer.find(b"\r\n\r\n")) < 0:
                answer += sock.recv(1 << 16)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise http.client.HTTPException(answer[:200])
            told = answer[:end].lower()
            at = told.index(b"content-length:") + len(b"content-length:")
            length = int(told[at:].split(b"\r\n", 1)[0])
            while len(answer) < end + 4 + length:
                answer += sock.recv(1 << 16)

        yield ask


@contextlib.contextmanager
def over_grpc(case: Case, port: int) -> Iterator[Ask]:
    """The same over gRPC: grpcio, which hands bytes through."""
    import grpc

    body = encode_grpc(InferRequest(case.name, [Tensor(case.input_name, case.array)])).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(GRPC_PATH)
        yield lambda: call(body, timeout=ANSWER_S)


CLIENTS = {"http": over_http, "grpc": over_grpc}


def in_turns(direct: Ask, routed: Ask, pairs: int) -> tuple[float, float, float]:
    """Medians of both and of the differences of neighbours, in microseconds."""
    times: tuple[list[int], list[int]] = ([], [])
    gc.collect()
    gc.disable()
    for turn in range(pairs):
        for which in (0, 1) if turn % 2 else (1, 0):
            ask = (direct, routed)[which]
            started = time.perf_counter_ns()
            ask()
            times[which].append(time.perf_counter_ns() - started)
    gc.enable()
    added = [ours - bare for bare, ours in zip(*times, strict=True)]
    return statistics.median(times[0]) / 1e3, statistics.median(times[1]) / 1e3, statistics.median(added) / 1e3


def cpu_us(processes: list[int], ask: Ask, count: int) -> list[float]:
    """CPU time of each process for a request."""

    before = [spent_us(process) for process in processes]
    for _ in range(count):
        ask()
    return [(spent_us(process) - earlier) / count for process, earlier in zip(processes, before, strict=True)]


def spent_us(process: int) -> float:
    """CPU time of all its threads so far, to the nanosecond (Linux); `psutil` has hundredths of a second."""
    nanoseconds = 0
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError):
            nanoseconds += int(path.read_text().split()[0])
    return nanoseconds / 1e3


def measure(case: Case, way: str, edge: Child, rounds: int, pairs: int) -> Hop:
    """One way in and on, with a router of its own."""
    client, onward = WAYS[way]
    command = ["route", "--edge", f"{onward}://127.0.0.1:{edge.announced[onward]}", "--sla-ms", SLA_MS]
    figures: list[tuple[float, ...]] = []
    with contextlib.ExitStack() as ends:
        router = start([*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], cores()[1])
        ends.callback(router.close)
        direct, routed = (ends.enter_context(CLIENTS[client](case, child.announced[client])) for child in (edge, router))
        processes = [child.pid for child in (edge, router)]
        for ask in (direct, routed) * WARM_UP:
            ask()
        for _ in range(rounds):
            latencies = in_turns(direct, routed, pairs)
            edge_alone_us = cpu_us(processes[:1], direct, pairs)[0]
            edge_us, router_us = cpu_us(processes, routed, pairs)
            figures.append((*latencies, router_us, edge_alone_us, edge_us - edge_alone_us))
    return Hop(**dict(zip(Hop.__struct_fields__, map(list, zip(*figures, strict=True)), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, help="both when left out")
    parser.add_argument("--way", choices=WAYS, help="all when left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=500, help="calls of each kind in a round")
    options = parser.parse_args()
    results: dict[str, dict[str, Hop]] = {}
    device, rest = cores()
    with tempfile.TemporaryDirectory() as name:
        cases = [make_case(kind, Path(name)) for kind in ([options.model] if options.model else MODELS)]
        os.sched_setaffinity(0, rest)
        for case in cases:
            edge = start(["serve", str(case.bundle), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--threads", "1"], device)
            try:
                ways = [options.way] if options.way else WAYS
                results[case.name] = {way: measure(case, way, edge, options.rounds, options.pairs) for way in ways}
            finally:
                edge.close()
    print(json.dumps(plain(RouterHop(rounds=options.rounds, pairs=options.pairs, results=results)), indent=2))


if __name__ == "__main__":
    main()
