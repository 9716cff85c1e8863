"""What clients notice of a hot swap: latency while new versions are installed, loaded, warmed and switched to, beside the same load in quiet.

The server is a process of its own that follows a repository; so is the load, our client with several connections, which sends half of what the server took
in the warm-up, on a schedule (a saturated machine has no room for a load, so it would show the load's share of the processor and nothing else). Quiet and swapping phases take turns, so that what else the machine does hits both. In a swapping phase, a version is installed with the
label ``stable`` as often as the server follows, from a third process, as an operator would. Every answer is checked to be that of an installed version.

What it does not show: a network; a device with one core, where loading takes turns with serving; engines that compile at load (TensorRT), which do so in
a child process or once.

Run ``python -m benchmarks swap [--model tiny|large] [--seconds S] [--rounds N] [--connections N] [--threads N]``; prints JSON. ``p99_ratio`` is the median over rounds of
swapping p99 by the p99 of the quiet phases around it.
"""

from __future__ import annotations

import argparse
import itertools
import json
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

from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.runtime import EngineOptions, FolderStore, RepositoryOptions, serve_bundles

WARM_UP_S = 1.0
SIZES = {"tiny": (8, 64), "large": (768, 2048)}  # inputs and hidden width: 5 kB and 20 MB of weights


def write_models(folder: Path, kind: str) -> list[str]:
    """Two versions of one MLP with different weights, as bundles."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.converters import build

    inputs, hidden = SIZES[kind]
    made = []
    for version in ("1", "2"):
        rng = np.random.default_rng(int(version))
        shapes = {"w1": (inputs, hidden), "w2": (hidden, hidden if kind == "large" else 4), "w3": (hidden if kind == "large" else 4, 10)}
        weights = [numpy_helper.from_array(rng.normal(0, 0.05, shape).astype(np.float32), name) for name, shape in shapes.items()]
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "w3"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "mlp",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
            weights,
        )
        path = folder / f"mlp{version}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        made.append(
            str(build(path, device="generic-x86", precision="fp32", name="mlp", model_version=version, output=folder / version).path)
        )
    return made


def run_server(repository: str, threads: int) -> None:
    """Role of the server process: says where it listens, ends when its input does."""
    options = EngineOptions(threads=threads)
    with serve_bundles([], ("127.0.0.1", 0), None, options=options, repository=RepositoryOptions(folder=repository)) as server:
        print(server.http_port, flush=True)
        sys.stdin.read()


def run_load(url: str, connections: int, inputs: int) -> None:
    """Role of the load process: for each line of input (seconds and requests per second, 0 for as many as can be), latencies as JSON with the versions that
    answered. A request that is sent late counts from when it was due.
    """
    x = np.linspace(0, 1, inputs, dtype=np.float32)[None]
    clients = [connect(url) for _ in range(connections)]
    request = InferRequest("mlp", [Tensor("x", x)])
    for line in sys.stdin:
        seconds, rate = map(float, line.split())
        pace = connections / rate if rate else 0.0
        latencies: list[list[float]] = [[] for _ in clients]
        versions: set[str] = set()
        end = time.perf_counter() + seconds

        def work(client: Any, mine: list[float], due: float, end: float = end, versions: set[str] = versions, pace: float = pace) -> None:
            while due < end:
                if (early := due - time.perf_counter()) > 0:
                    time.sleep(early)
                started = due if pace else time.perf_counter()
                versions.add(client.infer(request, 10.0).model_version)
                now = time.perf_counter()
                mine.append(now - started)
                due = due + pace if pace else now

        begin = time.perf_counter()
        threads = [
            threading.Thread(target=work, args=(client, mine, begin + pace * index / connections))
            for index, (client, mine) in enumerate(zip(clients, latencies, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"latencies": [value for mine in latencies for value in mine], "versions": sorted(versions)}), flush=True)


def run_installer(repository: str, *bundles: str) -> None:
    """Role of the operator: for each line of input (seconds), install versions in turn; says how many."""
    store = FolderStore(repository)
    turn = 0
    for line in sys.stdin:
        end = time.monotonic() + float(line)
        done = 0
        while time.monotonic() < end:
            turn += 1
            # Away with the other version, so that the server really loads it again.
            version = turn % 2
            store.install(bundles[version], ["stable"])
            name = "mlp"
            store.remove(name, str(2 - version))
            done += 1
            time.sleep(max(0.0, min(0.5, end - time.monotonic())))  # the server looks every 0.25 s
        print(done, flush=True)


def role(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def phase(load: subprocess.Popen[str], installer: subprocess.Popen[str] | None, seconds: float, rate: float) -> dict[str, Any]:
    ask(load, f"{seconds} {rate}")
    if installer is not None:
        ask(installer, str(seconds - 0.3))
    found = answer(load)
    latencies = found["latencies"]
    row = {f"p{p}_ms": round(float(np.percentile(latencies, p)) * 1e3, 3) for p in (50, 95, 99)}
    row |= {"max_ms": round(max(latencies) * 1e3, 3), "requests": len(latencies), "versions": found["versions"]}
    if installer is not None:
        row["swaps"] = answer(installer)
    return row


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bundles = write_models(folder, arguments.model)
    repository = str(folder / "repository")
    FolderStore(repository).install(bundles[0], ["stable"])
    server = role("--server", repository, "--threads", str(arguments.threads))
    assert server.stdout is not None
    processes = [server]
    try:
        port = int(server.stdout.readline())
        load = role(
            "--load", f"http://127.0.0.1:{port}", "--connections", str(arguments.connections), "--inputs", str(SIZES[arguments.model][0])
        )
        installer = role("--installer", repository, "--bundles", *bundles)
        processes += [load, installer]
        most = phase(load, None, WARM_UP_S, 0.0)["requests"] / WARM_UP_S
        rate = most * arguments.utilisation
        rounds = [
            {"quiet": phase(load, None, arguments.seconds, rate), "swapping": phase(load, installer, arguments.seconds, rate)}
            for _ in range(arguments.rounds)
        ]
        last = phase(load, None, arguments.seconds, rate)
    finally:
        for process in processes:
            process.communicate()
    quiet = [one["quiet"]["p99_ms"] for one in rounds] + [last["p99_ms"]]
    ratios = [one["swapping"]["p99_ms"] / ((quiet[index] + quiet[index + 1]) / 2) for index, one in enumerate(rounds)]
    return {
        "most_requests_per_s": round(most),
        "requests_per_s": round(rate),
        "p99_ratio": round(statistics.median(ratios), 3),
        "p99_ratios": [round(ratio, 3) for ratio in ratios],
        "quiet_to_quiet": [round(after / before, 3) for before, after in itertools.pairwise(quiet)],
        "swaps": sum(one["swapping"]["swaps"] for one in rounds),
        "rounds": rounds,
        "last_quiet": last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument(
        "--utilisation", type=float, default=0.5, help="requests sent, as a share of what the server takes at most; 0: as many as it takes"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the engine; 0 lets it choose")
    for hidden in ("--server", "--load", "--installer"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--bundles", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        return run_server(arguments.server, arguments.threads)
    if arguments.load:
        return run_load(arguments.load, arguments.connections, arguments.inputs)
    if arguments.installer:
        return run_installer(arguments.installer, *arguments.bundles)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    options = {"model": arguments.model, "seconds": arguments.seconds, "connections": arguments.connections, "threads": arguments.threads}
    print(json.dumps({**options, "results": results}, indent=2))
    return None


if __name__ == "__main__":
    main()
