"""What clients notice of a hot swap: latency while new versions are installed, loaded, warmed and switched to, beside the same load in quiet.

The server is a process of its own that follows a repository; so is the load, our client with several connections, which sends half of what the server took
in the warm-up, on a schedule (a saturated machine has no room for a load, so it would show the load's share of the processor and nothing else). A third process is the operator: every
now and then it installs a version with the label ``stable``, removes the other, and waits. A request belongs to a swap when it was due between the operator's first step and a moment after the
first answer of the new version; all others are quiet. So both kinds come from the same seconds, and what else the machine does hits both.

What it does not show: a network; a device with one core, where loading takes turns with serving; engines that compile at load (TensorRT), which do so in
a child process or once.

Run ``python -m benchmarks swap [--model tiny|large] [--seconds S] [--rounds N] [--connections N] [--threads N]``; prints JSON. ``p99_ratio`` is the p99 of all requests
that met a swap by that of all quiet ones, with the interval that the bootstrap gives when swaps are drawn again, each with the quiet time after it; ``p99_ratios`` is the same for each round by itself.
``quiet_to_quiet`` compares the first half of every quiet time with the second in the same way: the noise. ``phases`` tells what of a swap requests met: the server at work
(``loading``, up to the end of the old version), else the operator (``installing``), or ``neither`` (the server looks for changes four times a second).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._swap_judgement import Answer, Swap, judge, sort_round
from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.runtime import EngineOptions, FolderStore, ModelRepository, RepositoryOptions, serve_bundles

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
    """Role of the server process: says where it listens; for each line of input, when it began and ended to take over what had changed in its repository since; ends when its input does."""
    options = EngineOptions(threads=threads)
    follows: list[tuple[float, float]] = []
    follow = ModelRepository.follow

    def timed(self: ModelRepository) -> None:
        began, before = time.monotonic(), self.store.stamp()
        changed = before != self._stamp
        follow(self)
        if changed:
            follows.append((began, time.monotonic()))

    ModelRepository.follow = timed  # type: ignore[method-assign]  # the one place that knows when it is at work
    with serve_bundles([], ("127.0.0.1", 0), None, options=options, repository=RepositoryOptions(folder=repository)) as server:
        print(server.http_port, flush=True)
        for _ in sys.stdin:
            print(json.dumps(follows), flush=True)
            follows.clear()


def run_load(url: str, connections: int, inputs: int) -> None:
    """Role of the load process: for each line of input (seconds and requests per second, 0 for as many as can be), for each request when it was due and answered
    (seconds of the monotonic clock) and by which version, as JSON. A request that is sent late counts from when it was due.
    """
    x = np.linspace(0, 1, inputs, dtype=np.float32)[None]
    clients = [connect(url) for _ in range(connections)]
    request = InferRequest("mlp", [Tensor("x", x)])
    for line in sys.stdin:
        seconds, rate = map(float, line.split())
        pace = connections / rate if rate else 0.0
        answers: list[list[tuple[float, float, str]]] = [[] for _ in clients]
        begin = time.monotonic()

        def work(client: Any, mine: list[tuple[float, float, str]], due: float, end: float = begin + seconds, pace: float = pace) -> None:
            while due < end:
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                started = due if pace else time.monotonic()
                version = client.infer(request, 10.0).model_version
                now = time.monotonic()
                mine.append((started, now, version))
                due = due + pace if pace else now

        threads = [
            threading.Thread(target=work, args=(client, mine, begin + pace * index / connections))
            for index, (client, mine) in enumerate(zip(clients, answers, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps([answer for mine in answers for answer in mine]), flush=True)


def run_installer(repository: str, every_s: float, *bundles: str) -> None:
    """Role of the operator: for each line of input (seconds), install versions in turn; says for each swap when it began, when it was done, and which version comes."""
    store = FolderStore(repository)
    turn = 0
    for line in sys.stdin:
        end = time.monotonic() + float(line)
        swaps: list[tuple[float, float, str]] = []
        time.sleep(every_s / 2)
        while (began := time.monotonic()) < end - every_s:
            turn += 1
            version = turn % 2
            store.install(bundles[version], ["stable"])
            store.remove("mlp", str(2 - version))  # so that the server really loads it again
            swaps.append((began, time.monotonic(), str(version + 1)))
            time.sleep(max(0.0, began + every_s - time.monotonic()))
        print(json.dumps(swaps), flush=True)


def role(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


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
        installer = role("--installer", repository, "--every", str(arguments.every), "--bundles", *bundles)
        processes += [load, installer]
        most = 0.0
        for _ in range(2):  # the first one warms the clients as well
            ask(load, f"{WARM_UP_S} 0")
            most = max(most, len(answer(load)) / WARM_UP_S)
        rate = most * arguments.utilisation
        rounds = []
        for _ in range(arguments.rounds):
            ask(load, f"{arguments.seconds} {rate}")
            ask(installer, str(arguments.seconds))
            answers, swaps = answer(load), answer(installer)
            end = time.monotonic()
            ask(server, "")
            rounds.append(sort_round([Answer(*one) for one in answers], [Swap(*one) for one in swaps], answer(server), end))
    finally:
        for process in processes:
            process.communicate()
    return {"most_requests_per_s": round(most), "requests_per_s": round(rate)} | judge(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each round")
    parser.add_argument("--every", type=float, default=0.75, help="seconds between two swaps")
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
        return run_installer(arguments.installer, arguments.every, *arguments.bundles)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    options = {"model": arguments.model, "seconds": arguments.seconds, "connections": arguments.connections, "threads": arguments.threads}
    print(json.dumps({**options, "results": results}, indent=2))
    return None


if __name__ == "__main__":
    main()
