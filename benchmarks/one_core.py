"""Where a model of a millisecond should run when there is one core: by a worker or in the event loop, one by one or in rows.

One server in one process on core 0, PP-OCR's angle classifier with a batch of one, 16 connections of wrk from another core. The ways take turns of ``--window`` seconds in the same process, the
bare engine on the same thread among them, so that what else the machine does meets all alike. A turn counts when the process had the core for `HAD` of it, as it has on a quiet machine:
a thread that never sleeps is given less of a core that others use. For each way: how many turns counted, and quartiles of the requests a second and of the process's CPU time for
a request.

- ``worker``: nothing longer than a millisecond in the loop, no rows beyond a millisecond
- ``worker_rows``: the same with rows of up to 10 ms
- ``loop``: in the loop, one by one
- ``loop_rows``: in the loop, rows of up to 10 ms; what `edgekit serve` does

What it does not show: several cores; other models; a core that others use.

Run ``python -m benchmarks one_core [--seconds S] [--window W]``; prints JSON. Needs ``wrk`` and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._processes import free_port
from benchmarks._results import plain
from benchmarks._traffic import HttpTraffic, missing_tool
from benchmarks.two_cores import case_of
from edgekit.protocol import Server
from edgekit.runtime import EngineOptions, _dispatch, _scheduler, serve_bundles
from edgekit.runtime._core import RuntimeCore

WAYS = {"worker": (1e-3, 0.0), "worker_rows": (1e-3, 10e-3), "loop": (10e-3, 0.0), "loop_rows": (10e-3, 10e-3)}
"""Name -> longest batch in the loop, longest row; seconds."""
CONNECTIONS = 16
SERVER_CORE, LOAD_CORE = 0, 1
SETTLE = 0.25  # of a turn, before it counts
HAD = 0.95
Turn = tuple[float, float, float]
"""Requests a second, CPU time of one in microseconds, the share of the core that the process had."""


def take(way: str) -> None:
    _dispatch._ONE_CORE_S, _scheduler._LONG_ROW_S = WAYS[way]


def kept_cores(created: list[RuntimeCore]) -> Callable[..., None]:
    """`RuntimeCore.__init__` that notes what it made: the counters of the server's model are wanted."""
    plainly = RuntimeCore.__init__

    def noting(self: RuntimeCore, *arguments: Any, **options: Any) -> None:
        plainly(self, *arguments, **options)
        created.append(self)

    return noting


def answered(core: RuntimeCore) -> int:
    return sum(row["inference_count"] for row in core.statistics())


def bare_turn(server: Server, core: RuntimeCore, array: Any, seconds: float) -> Turn:
    """The engine in the loop's own thread, which answers nobody meanwhile."""
    model = core._repository.loaded()[0]
    inputs, engine = {model.signature.inputs[0].name: array}, model._sessions[0].engine
    found: list[Turn] = []
    ended = threading.Event()

    def run() -> None:
        began, cpu_s, runs = time.perf_counter(), time.thread_time(), 0
        while time.perf_counter() - began < seconds:
            engine.run(inputs)
            runs += 1
        found.append(figures(runs, time.perf_counter() - began, time.thread_time() - cpu_s))
        ended.set()

    transport: Any = server._transports[0]
    transport._loop.call_soon_threadsafe(run)
    ended.wait()
    return found[0]


def figures(runs: int, wall_s: float, cpu_s: float) -> Turn:
    return runs / wall_s, cpu_s / max(1, runs) * 1e6, cpu_s / wall_s


def turn(core: RuntimeCore, way: str, seconds: float) -> Turn:
    take(way)
    time.sleep(seconds * SETTLE)
    count, began, cpu_s = answered(core), time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return figures(answered(core) - count, time.perf_counter() - began, time.process_time() - cpu_s)


def run(folder: Path, seconds: float, window_s: float) -> dict[str, Any]:
    case = case_of("fixed", folder / "fixed")
    traffic = HttpTraffic(case, "v2 binary", folder)
    os.sched_setaffinity(0, {SERVER_CORE})
    created: list[RuntimeCore] = []
    RuntimeCore.__init__ = kept_cores(created)  # type: ignore[method-assign]
    port = free_port()
    script = str(Path(__file__).parent / "_wrk_load.lua")
    fields = ";".join(f"{name}:{value}" for name, value in traffic.fields.items())
    load = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{round(2 * seconds) + 60}s", "-s", script]
    variables = {**os.environ, "WRK_BODY": str(traffic.body), "WRK_FIELDS": fields}
    found: dict[str, list[Turn]] = {name: [] for name in ("bare_engine", *WAYS)}
    with serve_bundles([case.bundle], ("127.0.0.1", port), None, options=EngineOptions(threads=1)) as server:
        wrk = subprocess.Popen([*load, f"http://127.0.0.1:{port}{traffic.path}"], env=variables, stdout=subprocess.DEVNULL)
        try:
            turn(created[0], "loop_rows", 1.0)
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                found["bare_engine"].append(bare_turn(server, created[0], case.array, window_s))
                for way in WAYS:
                    found[way].append(turn(created[0], way, window_s))
        finally:
            wrk.terminate()
            wrk.wait()
    return {name: told(turns) for name, turns in found.items()}


def told(turns: list[Turn]) -> dict[str, Any]:
    """Quartiles of the turns in which the process had the core."""
    counted = [turn for turn in turns if turn[2] >= HAD]
    rates, cpu_us = [turn[0] for turn in counted], [turn[1] for turn in counted]
    return {"turns": len(turns), "counted": len(counted), "requests_per_s": quartiles(rates), "cpu_us": quartiles(cpu_us)}


def quartiles(values: list[float]) -> dict[str, float]:
    """Empty for fewer than two values."""
    return dict(zip(("lower", "median", "upper"), statistics.quantiles(values, n=4), strict=True)) if len(values) > 1 else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--window", type=float, default=0.2, help="seconds of a turn")
    arguments = parser.parse_args()
    if why := missing_tool("http"):
        sys.exit(f"cannot run here: {why}")
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), arguments.seconds, arguments.window)
    print(json.dumps(plain({"connections": CONNECTIONS, "window_s": arguments.window, "ways": found}), indent=2))


if __name__ == "__main__":
    main()
