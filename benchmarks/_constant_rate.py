"""An open loop: requests are sent when they are due, whatever became of those before. A process of its own.

Request number n is due at n / rate. It goes out on a connection that is idle, over gRPC as one more call of a channel. While none is idle it waits here, and its latency counts
from when it was due: a server that stalls is charged for all that would have arrived meanwhile (no coordinated omission). The loop looks at the clock every millisecond, so latencies hold up
to one of the generator's own.

``python _constant_rate.py http|grpc --port P --path PATH --request FILE --head FILE --expected FILE.npy --rate R --seconds S --connections N --output FILE.npz``
"""

from __future__ import annotations

import argparse
import asyncio
import time
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

TICK_S = 0.001
DRAIN_S = 10.0
CHECKED = 16  # one answer in so many is compared with the right one
WRONG_BY = 1e-3


class Plan:
    """What is due, what came back, and when."""

    def __init__(self, rate: float, seconds: float, expected: np.ndarray) -> None:
        self.total = round(rate * seconds)
        self.sent = 0
        self.due_s = array("d")
        self.latency_s = array("d")
        self.errors: Counter[str] = Counter()
        self._rate, self._expected = rate, expected.ravel()
        self.began_s = time.perf_counter()

    def next_due_s(self) -> float | None:
        """When the next request is due, if it is by now."""
        due_s = self.began_s + self.sent / self._rate
        if self.sent >= self.total or due_s > time.perf_counter():
            return None
        self.sent += 1
        return due_s

    def answered(self, due_s: float, error: str, values: bytes) -> None:
        """An answer: what is wrong with it, or the raw bytes of its tensor."""
        if not error and self.answers % CHECKED == 0:
            found = np.frombuffer(values, np.float32)
            if found.shape != self._expected.shape or float(np.abs(found - self._expected).max()) > WRONG_BY:
                error = "wrong numbers"
        if error:
            self.errors[error] += 1
            return
        self.due_s.append(due_s - self.began_s)
        self.latency_s.append(time.perf_counter() - due_s)

    @property
    def answers(self) -> int:
        return len(self.latency_s) + self.errors.total()

    @property
    def done(self) -> bool:
        return self.sent == self.total and self.answers == self.sent


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self._rest = b""
        self._due_s = 0.0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 22)
        self._pool.idle.append(self)

    def ask(self, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(self._pool.request)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._rest[:end].lower()
        stop = end + 4 + field(head, b"content-length")
        if len(self._rest) < stop:
            return
        body, self._rest = self._rest[end + 4 : stop], self._rest[stop:]
        status = head[9:12].decode()
        json_bytes = field(head, b"inference-header-content-length")
        self._finish("" if status == "200" else f"status {status}", body[json_bytes:])

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._pool.lost += 1
        if self._due_s:
            self._pool.plan.answered(self._due_s, "connection lost", b"")

    def _finish(self, error: str, values: bytes) -> None:
        due_s, self._due_s = self._due_s, 0.0
        self._pool.plan.answered(due_s, error, values)
        self._pool.idle.append(self)


class HttpPool:
    """Connections that keep alive."""

    def __init__(self, plan: Plan, request: bytes) -> None:
        self.plan, self.request = plan, request
        self.idle: deque[Connection] = deque()
        self.lost = 0

    def send_due(self) -> None:
        while self.idle and (due_s := self.plan.next_due_s()) is not None:
            self.idle.popleft().ask(due_s)


class GrpcChannel:
    """Calls of one channel."""

    def __init__(self, plan: Plan, request: bytes, call: Any, most: int) -> None:
        from edgekit.protocol._grpc_messages import message_classes

        self.plan, self._request, self._call, self._most = plan, request, call, most
        self._answer_class = message_classes()["ModelInferResponse"]
        self._running: set[asyncio.Task[None]] = set()

    def send_due(self) -> None:
        while len(self._running) < self._most and (due_s := self.plan.next_due_s()) is not None:
            task = asyncio.ensure_future(self._ask(due_s))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _ask(self, due_s: float) -> None:
        import grpc

        try:
            raw = await self._call(self._request)
        except grpc.RpcError as exc:
            self.plan.answered(due_s, f"status {exc.code().name}", b"")
            return
        self.plan.answered(due_s, "", self._answer_class.FromString(raw).raw_output_contents[0])


def field(head: bytes, name: bytes) -> int:
    """A number among the fields of a head in lower case; 0 when it is not there."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return 0
    at += len(name) + 3
    end = head.find(b"\r\n", at)
    return int(head[at : end if end > 0 else len(head)])


async def pump(sender: HttpPool | GrpcChannel) -> None:
    """Send what is due until all was, then wait for what is out."""
    plan = sender.plan
    plan.began_s = time.perf_counter()
    end_s = None
    while not plan.done:
        sender.send_due()
        if plan.sent == plan.total:
            end_s = end_s or time.perf_counter() + DRAIN_S
            if time.perf_counter() > end_s:
                break
        await asyncio.sleep(TICK_S)


async def over_http(options: argparse.Namespace, plan: Plan, request: bytes) -> None:
    pool = HttpPool(plan, request)
    loop = asyncio.get_running_loop()
    for _ in range(options.connections):
        await loop.create_connection(lambda: Connection(pool), "127.0.0.1", options.port)
    await pump(pool)


async def over_grpc(options: argparse.Namespace, plan: Plan, request: bytes) -> None:
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{options.port}") as channel:
        await pump(GrpcChannel(plan, request, channel.unary_unary(options.path), options.connections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transport", choices=["http", "grpc"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--request", type=Path, required=True, help="over HTTP with its head")
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True, help="most requests under way")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    plan = Plan(options.rate, options.seconds, np.load(options.expected))
    work = over_http if options.transport == "http" else over_grpc
    if options.transport == "http":
        import uvloop

        uvloop.install()
    asyncio.run(work(options, plan, options.request.read_bytes()))
    lost = plan.total - plan.answers
    if lost:
        plan.errors["no answer"] += lost
    names, counts = list(plan.errors), list(plan.errors.values())
    np.savez(
        options.output,
        due_s=plan.due_s,
        latency_s=plan.latency_s,
        cpu_s=time.process_time(),
        errors=np.array(names),
        counts=np.array(counts, int),
    )


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
