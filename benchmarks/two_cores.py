"""One core and two: what `edgekit serve` gains from the second, beside the bare engine.

PP-OCR's angle classifier, 110 kB a request; ``fixed`` takes one picture a run, ``open`` as many as are worth it. In turns, round after round: the bare engine in one process on core
0, in two processes on cores 0 and 1, the server held to core 0, the server on both. One core's turn is in two halves around that of two cores, so that a machine that becomes slower
meanwhile is so for both. The server is the command as users start it, with one engine thread and nothing else set: its threads are what uses the second core, behind one listening socket.

The load is wrk in a closed loop. Beside the server on one core it has another; a server on both shares with it where there are only two, so ``load_busy``, the share of a core
that it took, is missing from the server. ``scaling`` is the plain quotient of the rates; ``scaling_of_what_was_left`` divides by the cores that the load left; ``scaling_by_cpu``
is what two full cores would give by the CPU time of a request, which hardly depends on who else uses the machine.

What it does not show: more than two cores, a network.

Run ``python -m benchmarks two_cores [--seconds S] [--rounds R] [--connections N]``; prints JSON. Needs ``wrk`` and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._cases import CLASSIFIER_SHAPE, Case, make_case
from benchmarks._processes import Child, free_port
from benchmarks._results import Spread, plain, ratio, spread
from benchmarks._side_by_side import Server, ServerError, role_command
from benchmarks._traffic import HttpTraffic, LoadError, missing_tool

MODELS = ("fixed", "open")
CORES = ("0", "0,1")


def case_of(kind: str, folder: Path) -> Case:
    """The classifier with an open batch, or with a batch of one."""
    folder.mkdir()
    case = make_case("classifier", folder)
    if kind == "open":
        return case
    from edgekit.converters import build

    bundle = folder / "fixed.edgekit"
    build(
        case.model, device="generic-x86", precision="fp32", output=str(bundle), name=case.name, shapes={case.input_name: CLASSIFIER_SHAPE}
    )
    return case._replace(bundle=bundle)


def serve_command(bundle: Path, cores: str, port: int) -> list[str]:
    """`edgekit serve` held to some cores."""
    command = [sys.executable, "-m", "edgekit.cli", "serve", str(bundle), "--http", f"127.0.0.1:{port}", "--grpc", "off", "--threads", "1"]
    return ["taskset", "-c", cores, *command]


def start(case: Case, cores: str, folder: Path) -> Server:
    port = free_port()
    server = Server(
        f"edgekit on {cores}", Child(serve_command(case.bundle, cores, port)), port, HttpTraffic(case, "v2 binary", folder), case.expected
    )
    server.child.pause()
    return server


def around(turn: Callable[[str, float], dict[str, float]], seconds: float) -> dict[str, dict[str, float]]:
    """A turn of each of `CORES`: half of one core's before that of two, and half after it."""
    one, two = CORES
    before, beside, after = turn(one, seconds / 2), turn(two, seconds), turn(one, seconds / 2)
    return {one: {name: (value + after[name]) / 2 for name, value in before.items()}, two: beside}


def bare_engines(case: Case, folder: Path, cores: str, seconds: float) -> dict[str, float]:
    """Runs a second of one process a core, one run after the other in each."""
    processes = []
    for core in cores.split(","):
        command = [*role_command(sys.executable, "http", "engine", case, folder, 0), "--core", core, "--seconds", str(seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    return {"requests_per_s": sum(json.loads(process.communicate()[0])["requests_per_s"] for process in processes)}


def run(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    case = case_of(kind, folder / kind)
    load_core = 2 if (os.cpu_count() or 1) > 2 else 1
    bare: dict[str, list[float]] = {cores: [] for cores in CORES}
    rounds: dict[str, list[dict[str, float]]] = {cores: [] for cores in CORES}
    servers: dict[str, Server] = {}
    try:
        for cores in CORES:
            servers[cores] = start(case, cores, folder / kind)
        for index in range(arguments.rounds):
            print(f"{kind}: round {index + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            engines = around(lambda cores, seconds: bare_engines(case, folder / kind, cores, seconds), arguments.seconds)
            found = around(lambda cores, seconds: servers[cores].turn(arguments.connections, seconds, load_core), arguments.seconds)
            for cores in CORES:
                bare[cores].append(engines[cores]["requests_per_s"])
                rounds[cores].append(found[cores])
    finally:
        for server in servers.values():
            server.child.stop()
    return summary(bare, rounds, shared=load_core == 1)


def summary(bare: dict[str, list[float]], rounds: dict[str, list[dict[str, float]]], *, shared: bool) -> dict[str, Any]:
    """Medians and scalings of the rounds; ``shared``: the load takes its time from the server on two cores."""
    one, two = (rounds[cores] for cores in CORES)

    def told(each: Spread) -> dict[str, float]:
        return each._asdict()

    def of(rows: list[dict[str, float]], name: str) -> list[float]:
        return [row[name] for row in rows]

    left = [len(CORES) - row["load_busy"] if shared else float(len(CORES)) for row in two]
    plainly = ratio(of(two, "requests_per_s"), of(one, "requests_per_s"))
    per_core = [rate / cores for rate, cores in zip(of(two, "requests_per_s"), left, strict=True)]
    twice = [rate / len(CORES) for rate in of(one, "requests_per_s")]
    of_left = ratio(per_core, twice)
    by_cpu = ratio([len(CORES) * each for each in of(one, "cpu_us")], of(two, "cpu_us"))
    return {
        "bare_engine_per_s": {cores: spread(bare[cores]).median for cores in CORES},
        "bare_engine_scaling": told(ratio(bare[CORES[1]], bare[CORES[0]])),
        "server": {cores: {name: spread(of(rounds[cores], name)).median for name in rounds[cores][0]} for cores in CORES},
        "of_the_bare_engine": {cores: told(ratio(of(rounds[cores], "requests_per_s"), bare[cores])) for cores in CORES},
        "scaling": told(plainly),
        "scaling_of_what_was_left": told(of_left),
        "scaling_by_cpu": told(by_cpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn, whole ones")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.models.split(",")) - set(MODELS):
        parser.error(f"--models {', '.join(sorted(unknown))}: unknown; there are {', '.join(MODELS)}")
    if why := missing_tool("http"):
        sys.exit(f"cannot run here: {why}")
    try:
        with tempfile.TemporaryDirectory() as name:
            models = {kind: run(kind, Path(name), arguments) for kind in arguments.models.split(",")}
    except (ServerError, LoadError) as exc:
        sys.exit(str(exc))
    options = {"connections": arguments.connections, "seconds": arguments.seconds, "rounds": arguments.rounds}
    print(json.dumps(plain({**options, "models": models}), indent=2))


if __name__ == "__main__":
    main()
