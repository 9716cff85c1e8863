"""What the scheduler costs, and what its choices are worth.

- ``path``: a turn of 1, 4 and 16 requests through `RuntimeCore.submit` and `turn`, beside the bare engine on the same rows at once; calls alternate. Processor time of
  the thread, so that neighbours on the machine count little. ``mlp`` (768 float32 in, 10 out) takes rows together; ``fixed`` is the same with a batch of one.
- ``hand_over``: one request at a time, run in the thread that brought it and by a worker: what `INLINE_S` weighs. Wall time.
- ``concurrency``: PP-OCR's angle classifier with one engine thread, 16 requests under way, with 1 instance, as many as there are CPUs, and as many as are learned; in turns.
- ``wait``: a simulated queue with the run times measured under ``path`` and Poisson arrivals: what it would bring to hold a batch back for more to arrive. ``best`` knows the load and
  picks the best wait for it, which no learned wait can beat.
- ``overload``: simulated too: requests with deadlines at one and a half times what can be served, through the real queue with a simulated clock (earliest deadline
  first, admission), and first come first served without admission. The share answered in time.

What it does not show: the network, and threads that compete for the interpreter (``benchmarks/serve.py`` has both).

Run ``python -m benchmarks scheduler [--seconds S]``; prints JSON.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._cases import make_case, mlp
from edgekit.converters import build
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime import EngineOptions, ModelRepository, RuntimeCore
from edgekit.runtime._job import Job
from edgekit.runtime._scheduler import InstanceQueue
from edgekit.runtime.engines._base import usable_cpus

TURNS = (1, 4, 16)
WAITS_S = (0.0, 50e-6, 100e-6, 250e-6, 1e-3)
LOADS = (0.1, 0.3, 0.5, 0.8, 0.95)  # of what full batches can serve
MAX_BATCH = 32
SIMULATED = 40_000  # requests
ALL_INLINE_S = 1.0  # longer than any batch here: nothing is left to the workers


def open_core(folder: Path, name: str, **options: Any) -> RuntimeCore:
    bundle = folder / f"{name}.edgekit"
    if not bundle.exists():
        shapes = {"x": (1, 768)} if name == "fixed" else {}
        build(mlp(folder), device="generic-x86", precision="fp32", output=str(bundle), name=name, shapes=shapes)
    repository = ModelRepository([bundle], options=EngineOptions(threads=1), **options)
    repository.load_all()
    return RuntimeCore(repository)


class Client:
    """Sends turns of requests and waits until all are answered."""

    def __init__(self, core: RuntimeCore, name: str) -> None:
        self.core, self.name = core, name
        seeded = np.random.default_rng(0)
        self.rows = [seeded.random((1, 768), dtype=np.float32) for _ in range(MAX_BATCH)]
        self.left = 0
        self.answered = threading.Event()

    def done(self, answer: Any) -> None:
        if isinstance(answer, Exception):
            raise SystemExit(f"an answer is an error: {answer}")
        self.left -= 1
        if not self.left:
            self.answered.set()

    def turn(self, count: int) -> None:
        self.left = count
        self.answered.clear()
        for row in self.rows[:count]:
            self.core.submit(InferRequest(self.name, [Tensor("x", row)]), self.done)
        self.core.turn()
        self.answered.wait()


def alternate(calls: dict[str, Callable[[], object]], seconds: float, clock: Callable[[], int]) -> dict[str, float]:
    """Median of each call in microseconds, over blocks of 20 calls in turns."""
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, call in calls.items():
            started = clock()
            for _ in range(20):
                call()
            blocks[name].append((clock() - started) / 20e3)
    return {name: round(statistics.median(values), 2) for name, values in blocks.items()}


def bare_engine(session: Any, rows: list[np.ndarray], together: bool) -> Callable[[], object]:
    if together:
        stacked = np.concatenate(rows)
        return lambda: session.run(["y"], {"x": stacked})
    return lambda: [session.run(["y"], {"x": row}) for row in rows]


def path(folder: Path, seconds: float) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in ("mlp", "fixed"):
        core = open_core(folder, name)
        model = core._repository.get(name)
        client = Client(core, name)
        # On several cores a batch is left to the workers above a quarter of a millisecond; here the path is what is measured.
        core._dispatcher._inline_s = ALL_INLINE_S
        for _ in range(400):
            client.turn(16)
        if name == "mlp" and not (model.plan.proof is not None and model.plan.proof.state):
            raise SystemExit("rows were not proven independent")
        session = model._sessions[0].engine._session  # type: ignore[attr-defined] # ONNX Runtime's
        rows: dict[str, Any] = {}
        for count in TURNS:
            model.queue.times.limit = MAX_BATCH if name == "mlp" else 1
            calls: dict[str, Callable[[], object]] = {
                "turn_us": functools.partial(client.turn, count),
                "bare_us": bare_engine(session, client.rows[:count], name == "mlp"),
            }
            found = alternate(calls, seconds, time.thread_time_ns)
            found["added_us_a_request"] = round((found["turn_us"] - found["bare_us"]) / count, 2)
            rows[f"{count} a turn"] = {**found, "requests_per_s": round(1e6 * count / found["turn_us"])}
        results[name] = {**rows, "batch_limit_learned": model.queue.times.limit}
        core.close()
    return results


def hand_over(folder: Path, seconds: float) -> dict[str, float]:
    core = open_core(folder, "fixed")
    client = Client(core, "fixed")

    def run(inline_s: float) -> None:
        core._dispatcher._inline_s = inline_s
        client.turn(1)

    for _ in range(50):
        run(0.0)
    found = alternate({"inline_us": lambda: run(ALL_INLINE_S), "worker_us": lambda: run(0.0)}, 2 * seconds, time.perf_counter_ns)
    core.close()
    return {**found, "added_us": round(found["worker_us"] - found["inline_us"], 1)}


def saturate(core: RuntimeCore, name: str, tensor: Tensor, seconds: float, under_way: int = 16) -> float:
    """Answers a second while so many requests are always under way."""
    answered = threading.Semaphore(0)

    def done(answer: Any) -> None:
        if isinstance(answer, Exception):
            raise SystemExit(f"an answer is an error: {answer}")
        answered.release()

    def send(count: int) -> None:
        for _ in range(count):
            core.submit(InferRequest(name, [tensor]), done)
        core.turn()

    send(under_way)
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        answered.acquire()
        arrived = 1
        while answered.acquire(blocking=False):
            arrived += 1
        count += arrived
        send(arrived)
    for _ in range(under_way):
        answered.acquire()
    return count / seconds


def concurrency(folder: Path, seconds: float, rounds: int = 5) -> dict[str, Any]:
    case = make_case("classifier", folder)
    cores = {}
    for name, instances in (("1", 1), ("all CPUs", usable_cpus()), ("learned", 0)):
        repository = ModelRepository([case.bundle], options=EngineOptions(threads=1), instances=instances)
        repository.load_all()
        cores[name] = RuntimeCore(repository)
    model = cores["learned"]._repository.get(case.name)
    tensor = Tensor(model.signature.inputs[0].name, case.array)
    rates: dict[str, list[float]] = {name: [] for name in cores}
    for _ in range(rounds):
        for name, core in cores.items():
            rates[name].append(saturate(core, case.name, tensor, seconds))
    found = {f"{name}, requests_per_s": round(statistics.median(values)) for name, values in rates.items()}
    found |= {"learned_instances": model.queue.limit, "learned_batch": model.queue.times.limit}
    for core in cores.values():
        core.close()
    return found


def full_turn(model: Any, client: Client, size: int) -> None:
    model.queue.times.limit = MAX_BATCH
    client.turn(size)


def run_times(folder: Path, seconds: float) -> Callable[[int], float]:
    """Seconds of a batch by rows, on the way through the core; linear between the sizes that were measured."""
    core = open_core(folder, "mlp")
    client, model = Client(core, "mlp"), core._repository.get("mlp")
    core._dispatcher._inline_s = ALL_INLINE_S
    for _ in range(100):
        client.turn(16)
    sizes = [1, 2, 4, 8, 16, 32]
    times = []
    for size in sizes:
        found = alternate(
            {"turn": functools.partial(full_turn, model, client, size)},
            seconds / 2,
            time.thread_time_ns,
        )
        times.append(found["turn"] / 1e6)
    core.close()
    return lambda rows: float(np.interp(rows, sizes, times))


def simulate_wait(predict: Callable[[int], float], rate: float, wait_s: float) -> list[float]:
    """Latencies of one instance that begins a batch when it is free and the oldest request has waited ``wait_s``, or the batch is full."""
    seeded = random.Random(7)
    arrivals, at_s = [], 0.0
    for _ in range(SIMULATED):
        at_s += seeded.expovariate(rate)
        arrivals.append(at_s)
    latencies: list[float] = []
    begin, free_s = 0, 0.0
    while begin < len(arrivals):
        start_s = max(free_s, arrivals[begin] + wait_s)
        if begin + MAX_BATCH <= len(arrivals):
            start_s = min(start_s, max(free_s, arrivals[begin + MAX_BATCH - 1]))
        end = begin + 1
        while end < len(arrivals) and end - begin < MAX_BATCH and arrivals[end] <= start_s:
            end += 1
        free_s = start_s + predict(end - begin)
        latencies += [free_s - arrived_s for arrived_s in arrivals[begin:end]]
        begin = end
    return latencies


def waits(predict: Callable[[int], float]) -> dict[str, Any]:
    capacity = MAX_BATCH / predict(MAX_BATCH)
    results: dict[str, Any] = {"capacity_per_s": round(capacity)}
    for load in LOADS:
        means, row = {}, {}
        for wait_s in WAITS_S:
            latencies = simulate_wait(predict, load * capacity, wait_s)
            means[wait_s] = statistics.fmean(latencies)
            row[f"wait {wait_s * 1e6:g} us"] = {
                "mean_us": round(means[wait_s] * 1e6, 1),
                "p99_us": round(float(np.percentile(latencies, 99)) * 1e6, 1),
            }
        best = min(means, key=lambda wait_s: means[wait_s])
        results[f"load {load:g}"] = {
            **row,
            "best": f"wait {best * 1e6:g} us",
            "best_saves_percent": round(100 * (1 - means[best] / means[0.0]), 1),
        }
    return results


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def arrivals_with_deadlines(rate: float, count: int, least_s: float, most_s: float) -> list[tuple[float, float]]:
    seeded = random.Random(3)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += seeded.expovariate(rate)
        arrivals.append((at_s, at_s + seeded.uniform(least_s, most_s)))
    return arrivals


def through_queue(arrivals: list[tuple[float, float]], run_s: float) -> tuple[int, int]:
    """In time, and refused, through the real queue; every run takes ``run_s``."""
    clock = Clock()
    queue = InstanceQueue("m", [0], len(arrivals), clock)
    for _ in range(9):
        queue.times.add(1, run_s)
    ends: list[tuple[float, int, Any]] = []
    in_time = refused = 0
    for index, (at_s, deadline_s) in enumerate([*arrivals, (math.inf, math.inf)]):
        while ends and ends[0][0] <= at_s:
            clock.now_s, _, batch = heapq.heappop(ends)
            queue.finish(batch)
            in_time += sum(clock.now_s <= job.deadline_s + 1e-9 for job in batch.jobs)
            following, gone = queue.take()
            refused += len(gone)
            if following is not None:
                heapq.heappush(ends, (clock.now_s + run_s, -index, following))
        if at_s == math.inf:
            break
        clock.now_s = at_s
        batch_now, gone = queue.start([Job(InferRequest("m", [], deadline_s=deadline_s), lambda _: None)], math.inf)
        refused += len(gone)
        if batch_now is not None:
            heapq.heappush(ends, (at_s + run_s, index, batch_now))
    return in_time, refused


def first_come(arrivals: list[tuple[float, float]], run_s: float, capacity: int = 256) -> int:
    waiting: deque[tuple[float, float]] = deque()
    free_s, in_time = 0.0, 0
    for at_s, deadline_s in [*arrivals, (math.inf, math.inf)]:
        while waiting and free_s <= at_s:
            arrived_s, due_s = waiting.popleft()
            free_s = max(free_s, arrived_s) + run_s
            in_time += free_s <= due_s
        if len(waiting) < capacity:
            waiting.append((at_s, deadline_s))
    return in_time


def overload() -> dict[str, Any]:
    run_s, count = 0.005, 5000
    results = {}
    for load in (0.8, 1.0, 1.5, 3.0):
        arrivals = arrivals_with_deadlines(load / run_s, count, 4 * run_s, 20 * run_s)
        in_time, refused = through_queue(arrivals, run_s)
        results[f"load {load:g}"] = {
            "in_time": round(in_time / count, 3),
            "refused": round(refused / count, 3),
            "late": round(1 - (in_time + refused) / count, 3),
            "possible_at_most": round(min(1.0, 1 / load), 3),
            "in_time_first_come": round(first_come(arrivals, run_s) / count, 3),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring for each figure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "path": path(folder, arguments.seconds),
            "hand_over": hand_over(folder, arguments.seconds),
            "concurrency": concurrency(folder, arguments.seconds),
            "wait": waits(run_times(folder, arguments.seconds)),
            "overload": overload(),
        }
    print(json.dumps({**vars(arguments), "results": results}, indent=2))


if __name__ == "__main__":
    main()
