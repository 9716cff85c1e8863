"""Servers side by side in one run: the same model, the same load, turn by turn.

Every server has one core of its own and the load another. The order rotates from round to round, so that what else the machine does meets all of them, and who
is not measured is stopped where it is (SIGSTOP): some servers use a core's percents while nothing is asked. Before each turn comes a warm-up with the same load.
The bare engine runs on the servers' core right before and right after the first server's turn, half as long each: a quotient of the two in a round is of the same seconds,
for the same engine took up to a third longer in one minute than in the next.
A turn gives what came out (requests a second, latencies), the CPU time that the server's processes spent on a request, which hardly depends on
how busy the machine is, and how busy the load generator was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks._cases import Case, make_case
from benchmarks._peers import PeerMissingError, locked_version, peer_python
from benchmarks._processes import Child, free_port
from benchmarks._results import Contender, SideBySide, plain, spread
from benchmarks._traffic import LoadError, NotYetError, Traffic, missing_tool

ROLES = Path(__file__).parent / "_roles.py"
SERVER_CORE, LOAD_CORE = 0, 1
READY_S = 90.0
WARM_UP_S = 1.0
WRONG_BY = 1e-3
TURN = ("requests_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_us", "load_busy")


class ServerError(Exception):
    """A server did not start, or did not answer right."""


def role_command(python: Path | str, transport: str, role: str, case: Case, folder: Path, port: int) -> list[str]:
    """The command line of one role (`_roles.py`)."""
    request = folder / "request.npy"
    if not request.is_file():
        np.save(request, case.array)
    values = {
        "model": case.model,
        "bundle": case.bundle,
        "request": request,
        "answer": folder / "grpc-answer",
        "name": case.name,
        "port": port,
    }
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return [str(python), str(ROLES), transport, role, *flags, "--core", str(SERVER_CORE)]


class Server:
    """A server that has answered right, with the seconds from its start to that answer.

    Raises:
        ServerError: it ended, did not answer within `READY_S`, or answered with other numbers.
    """

    def __init__(self, name: str, child: Child, port: int, traffic: Traffic, expected: np.ndarray) -> None:
        self.name, self.child, self.port, self.traffic = name, child, port, traffic
        began = time.perf_counter()
        try:
            answer = self._first_answer()
            self.start_s = time.perf_counter() - began
            if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=0, atol=WRONG_BY):
                raise ServerError(f"{name}: its answer is wrong")
        except BaseException:
            child.stop()
            raise

    def _first_answer(self) -> np.ndarray:
        deadline = time.perf_counter() + READY_S
        while True:
            if self.child.ended():
                raise ServerError(f"{self.name} ended: {self.child.said()}")
            try:
                return self.traffic.first_answer(self.port)
            except NotYetError as exc:
                if time.perf_counter() > deadline:
                    raise ServerError(f"{self.name}: no answer within {READY_S:g} s: {exc}") from None
            time.sleep(0.01)

    def turn(self, connections: int, seconds: float, load_core: int = LOAD_CORE) -> dict[str, float]:
        """One turn of load from a core, warm-up before it; the figures are those of `TURN`."""
        self.child.resume()
        try:
            with contextlib.suppress(LoadError):  # what goes wrong in the warm-up does not count either
                self.traffic.load(self.port, connections, WARM_UP_S, load_core)
            before, began = self.child.cpu_s(), time.perf_counter()
            found = self.traffic.load(self.port, connections, seconds, load_core)
            spent_s = time.perf_counter() - began
            cpu_s = self.child.cpu_s() - before
            self.child.settle()
        finally:
            self.child.pause()
        return found | {"cpu_us": cpu_s / (found["requests_per_s"] * spent_s) * 1e6}


def start(name: str, transport: str, case: Case, folder: Path, traffic: Traffic) -> Server:
    """Start a role as a server; raises `ServerError` or `PeerMissingError`."""
    port = free_port()
    command = role_command(peer_python(name), transport, name, case, folder, port)
    return Server(name, Child(command), port, traffic, case.expected)


@contextlib.contextmanager
def running(starts: dict[str, Callable[[], Server]]) -> Iterator[tuple[list[Server], dict[str, str]]]:
    """Those servers that could be started, paused, and why the others could not."""
    servers: list[Server] = []
    left_out: dict[str, str] = {}
    try:
        for name, begin in starts.items():
            try:
                servers.append(begin())
            except (ServerError, PeerMissingError) as exc:
                left_out[name] = str(exc)
                print(f"left out: {exc}", file=sys.stderr, flush=True)
            else:
                servers[-1].child.pause()
                print(f"{name} answered after {servers[-1].start_s:.1f} s", file=sys.stderr, flush=True)
        yield servers, left_out
    finally:
        for server in servers:
            server.child.stop()


def bare_engine(case: Case, folder: Path, seconds: float) -> dict[str, float]:
    """The engine without a server, one run after the other, on the servers' core."""
    command = [*role_command(sys.executable, "http", "engine", case, folder, 0), "--seconds", str(seconds)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


class Bare:
    """The bare engine's turns, one each round.

    Args:
        run: the engine for so many seconds; its figures.
        seconds: of a turn.

    Attributes:
        rounds: figures by name, a value for each round.
    """

    def __init__(self, run: Callable[[float], dict[str, float]], seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self.rounds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Half of its turn before the block, and half after it."""
        before = self._run(self._seconds / 2)
        yield
        after = self._run(self._seconds / 2)
        for name, value in before.items():
            self.rounds.setdefault(name, []).append((value + after[name]) / 2)


def measure(
    servers: Sequence[Server], connections: Sequence[int], rounds: int, seconds: float, left_out: dict[str, str], bare: Bare
) -> dict[str, Contender]:
    """Turns of all servers, round after round. One that fails under load is left out from then on, and of the results."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {server.name: {} for server in servers}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        if not servers:
            with bare.around():
                continue
        for count in connections:
            for server in rotated(servers, turn):
                beside = bare.around() if server is servers[0] and count == max(connections) else contextlib.nullcontext()
                try:
                    with beside:
                        figures = {} if server.name in left_out else server.turn(count, seconds)
                except LoadError as exc:
                    left_out[server.name] = f"{count} connections: {exc}"
                    print(f"left out: {server.name}, {left_out[server.name]}", file=sys.stderr, flush=True)
                    continue
                rows = found[server.name].setdefault(str(count), {name: [] for name in TURN})
                for name, value in figures.items():
                    rows[name].append(value)
    return {
        server.name: Contender(
            version=locked_version(server.name),
            encoding=server.traffic.encoding,
            start_s=server.start_s,
            rss_mb=server.child.rss_bytes() / 1e6,
            connections=found[server.name],
        )
        for server in servers
        if server.name not in left_out
    }


def rotated(servers: Sequence[Server], turn: int) -> list[Server]:
    """The order of a round: the first goes last in the next."""
    first = turn % len(servers) if servers else 0
    return [*servers[first:], *servers[:first]]


def run(transport: str, arguments: argparse.Namespace, traffic_for: Callable[[str, Case, Path], Traffic]) -> SideBySide:
    """The whole benchmark, for the servers and connections of the arguments."""
    counts = [int(text) for text in arguments.connections.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = make_case(arguments.model, folder)
        bare = Bare(functools.partial(bare_engine, case, folder), arguments.seconds)
        starts: dict[str, Callable[[], Server]] = {
            server: functools.partial(start, server, transport, case, folder, traffic_for(server, case, folder))
            for server in arguments.servers.split(",")
        }
        with running(starts) as (servers, left_out):
            found = measure(servers, counts, arguments.rounds, arguments.seconds, left_out, bare)
    return SideBySide(
        transport=transport,
        model=arguments.model,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        bare_engine=bare.rounds,
        servers=found,
        left_out=left_out,
    )


def table(results: SideBySide) -> str:
    """For a terminal: medians over the rounds."""
    counts = sorted({count for server in results.servers.values() for count in server.connections}, key=int)
    bare = {name: spread(values).median for name, values in results.bare_engine.items()}
    lines = [f"{results.model} over {results.transport}: bare engine {bare['requests_per_s']:.0f}/s, {bare['cpu_us']:.1f} us CPU a run"]
    columns = "".join(f"{f'req/s, {count} conns':>17}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'load':>6}" for count in counts)
    lines.append(f"{'':<21}{columns}{'RSS MB':>9}{'start s':>9}")
    for name, server in results.servers.items():
        cells = ""
        for count in counts:
            row = {key: spread(values).median for key, values in server.connections[count].items()}
            cells += (
                f"{row['requests_per_s']:>17.0f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['cpu_us']:>9.1f}{row['load_busy']:>6.0%}"
            )
        lines.append(f"{name:<21}{cells}{server.rss_mb:>9.0f}{server.start_s:>9.2f}")
    return "\n".join([*lines, *(f"left out: {name}: {why}" for name, why in results.left_out.items())])


def main(
    transport: str,
    description: str,
    servers: Sequence[str],
    models: Sequence[str],
    traffic_for: Callable[[str, Case, Path], Traffic],
) -> None:
    """Parse, run, print: JSON to stdout, a table to stderr. Exit 1 when a server had to be left out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=models, default=models[0])
    parser.add_argument("--servers", default=",".join(servers), help="comma-separated; all by default")
    parser.add_argument("--connections", default="1,16", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each turn, whole ones")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.servers.split(",")) - set(servers):
        parser.error(f"--servers {', '.join(sorted(unknown))}: unknown; there are {', '.join(servers)}")
    if why := missing_tool(transport):
        sys.exit(f"cannot run here: {why}")
    results = run(transport, arguments, traffic_for)
    print(json.dumps(plain(results), indent=2))
    print(table(results), file=sys.stderr)
    sys.exit(1 if results.left_out else 0)
