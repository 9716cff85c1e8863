"""What the router costs: microseconds a decision, and what `Router.infer` adds to `Session.run`.

Decision: `Pilot.accept`, from the request to the first action, on a pilot that has seen 3,000 requests, while answers keep coming in (recording them is timed
apart).
Added latency: the same request in turns, directly and through the router; the figure is the median of the differences of neighbours, which a drift of the machine
leaves alone. The price is mostly the hand-over to the worker thread and back. `router_hop` has what the router as a server adds.

What it does not show: contention between clients, and networks.

Run ``python -m benchmarks router_decision [--decisions N] [--pairs N]``; prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import Bundle
from edgekit.converters import build
from edgekit.router import Pilot, PilotOptions, Router
from edgekit.router._events import Ask, Check, RunEdge, SendCloud
from edgekit.runtime import load, serve_bundles

SLA_S = 0.05
SIZES = (1_000, 5_000, 50_000)
ANY = ("127.0.0.1", 0)


def quantiles_us(nanoseconds: list[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)
    return {name: round(ordered[int(q * (len(ordered) - 1))] / 1000, 2) for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))}


def measure_decisions(count: int, endpoints: int) -> dict[str, dict[str, float]]:
    """Quantiles of accepting a request (estimates, decision, first action) and of recording its answer, on a pilot that has seen 3,000 requests."""
    source = random.Random(1)
    pilot = Pilot(PilotOptions(), endpoints, random.Random(2))
    pilot.seed_edge("m", SIZES[0], [0.007] * 5, 0.0)
    for check in pilot.tick(0.0):
        if isinstance(check, Check):
            pilot.checked(check.endpoint, True, 0.02, 0.0)
    now, decisions, records = 0.0, [], []
    for request in range(1, 3_000 + count):
        now += 0.06
        ask = Ask(request, "m", source.choice(SIZES), now, now + SLA_S, now + SLA_S + 1.0, SLA_S)
        started = time.perf_counter_ns()
        actions = pilot.accept(ask, now)
        decided = time.perf_counter_ns()
        for action in actions:
            if isinstance(action, RunEdge | SendCloud):
                took_s = (0.007 if isinstance(action, RunEdge) else 0.03) * math.exp(source.gauss(0, 0.2))
                before = time.perf_counter_ns()
                pilot.answered(action.attempt, now + took_s)
                records.append(time.perf_counter_ns() - before)
        decisions.append(decided - started)
        if pilot.next_at() <= now:
            for check in pilot.tick(now):
                if isinstance(check, Check):
                    pilot.checked(check.endpoint, True, 0.02, now)
    return {"decision_us": quantiles_us(decisions[3_000:]), "record_us": quantiles_us(records[3_000:])}


def in_turns(direct: Callable[[], object], routed: Callable[[], object], pairs: int) -> dict[str, float]:
    """Medians of both and of the differences of neighbours."""
    for call in (direct, routed) * max(20, pairs // 10):
        call()  # warm-up
    gc.collect()
    gc.disable()
    times: dict[Callable[[], object], list[int]] = {direct: [], routed: []}
    for turn in range(pairs):
        for call in (direct, routed) if turn % 2 else (routed, direct):
            started = time.perf_counter_ns()
            call()
            times[call].append(time.perf_counter_ns() - started)
    gc.enable()
    differences = [ours - bare for bare, ours in zip(times[direct], times[routed], strict=True)]
    return {
        "direct_p50_us": round(statistics.median(times[direct]) / 1000, 1),
        "routed_p50_us": round(statistics.median(times[routed]) / 1000, 1),
        "added_p50_us": round(statistics.median(differences) / 1000, 1),
    }


def measure_in_process(bundle: Bundle, cloud: str | None, pairs: int) -> dict[str, float]:
    inputs = bundle.golden()[0].inputs
    with load(bundle) as session, Router(session, cloud, sla_ms=1000) as router:
        return in_turns(lambda: session.run(inputs), lambda: router.infer(inputs), pairs)


def measure_bundle(bundle: Bundle, pairs: int) -> dict[str, dict[str, float]]:
    tier = serve_bundles([bundle.path], ANY, None)
    try:
        url = f"http://127.0.0.1:{tier.http_port}"
        return {
            "in_process_alone": measure_in_process(bundle, None, pairs),
            "in_process_with_cloud": measure_in_process(bundle, url, pairs),
        }
    finally:
        tier.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=50_000, help="decisions timed, for each number of endpoints")
    parser.add_argument("--pairs", type=int, default=2_000, help="calls of each contender")
    arguments = parser.parse_args()
    from benchmarks._cases import tiny_mlp
    from examples.models import SHAPES, fetch

    results: dict[str, object] = {
        f"decision_{endpoints}_endpoint{'s' * (endpoints > 1)}": measure_decisions(arguments.decisions, endpoints) for endpoints in (1, 3)
    }
    with tempfile.TemporaryDirectory() as folder:
        for path, shapes in ((tiny_mlp(Path(folder)), {}), (fetch("ppocr-cls"), SHAPES["ppocr-cls"])):
            bundle = build(path, device="generic-x86", precision="fp32", shapes=shapes, output=Path(folder) / f"{path.stem}.edgekit")
            results[path.stem] = measure_bundle(bundle, arguments.pairs)
    print(json.dumps({**vars(arguments), "results": results}, indent=2))


if __name__ == "__main__":
    main()
