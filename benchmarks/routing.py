"""The router among real faults: a real edge server, a real Triton behind a bad network, real other work on the device; and what the simulator said of it.

Before each scenario every part is measured alone, one request after the other: the device with the scenario's other processes on its core, the cloud over the good network, the router before the
device. Then the same arrivals are sent through the router, to the device alone and to the cloud alone, each request with the deadline, at a rate that keeps the idle device a third busy at most.

The simulator plays the scenario with the same arrivals, service times drawn from those samples, and the network by the proxy's own rules, once a seed. It does so twice: with the samples as
they are, and scaled by how much longer the models really ran in the run, by the servers' own statistics. What that second prediction moves is drift of the machine; what is left is what the
simulator does not know, or chance.

When connections are refused and the network returns, `noticed_s` says after how long the router had an answer from the cloud again: a health check's, whether or not requests need it.

What it does not show: more than one endpoint or model; radio: the faults are the proxy's. The cloud, the proxy, the router and the load share one core here, which the simulator does not know; how long cloud and router
waited for it is in each row. So while the cloud works the device's answers, which the router reads and hands on, are late too.

Run ``python -m benchmarks routing [--seconds S] [--scenario NAME]…``; prints JSON. Needs Triton (`make setup`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from benchmarks._network_scenarios import FROM, SCENARIOS, UNTIL, Phase, Scenario
from benchmarks._results import plain
from benchmarks._results_routing import Predicted, Routing, Row
from benchmarks._site import WELL, Ran, Site, recogniser
from benchmarks._site_model import Drift, Load, Samples, predict
from edgekit.cli.demo._fleet import fitting_load
from edgekit.cli.demo._load import Answer, Event, arrivals, drive, summarise
from edgekit.cli.demo._stage import Contention
from edgekit.protocol import InferRequest, InferResponse, Tensor, connect
from edgekit.router.faults import State

CALIBRATION = 24
COLD = 3  # requests that meet cold code
GAP_S = 0.03  # before two of three, which find the device idle
TURN = 3  # the third follows at once, as under the load, which keeps the device a third busy; beside one other process such runs took 36 ms, after a pause 26
CALIBRATION_LIMIT_S = 30.0
CALIBRATION_SLA_MS = 10_000.0  # nobody is late there
WARM_UP_S = 2.0
POLL_S = 0.01
FEW = 8  # runs of a model; fewer say nothing of how long they take
POLICIES = {"edgekit": "router", "local-only": "edge", "cloud-only": "cloud"}


class Real(msgspec.Struct):
    """What a run gave: the answers, how the servers' statistics stood at each change and at the end, when the cloud was heard again, and `Site.waited_s`."""

    answers: list[Answer]
    ran: list[tuple[Ran, Ran]]
    noticed_s: float | None
    waited_s: float


class Bench:
    """The site, and what is measured of it."""

    def __init__(self, site: Site, array: np.ndarray, seed: int) -> None:
        self.site, self.array, self.seed = site, array, seed
        counts = {phase.burners for scenario in SCENARIOS.values() for phase in (scenario.usual, scenario.worse)}
        self._burners = {count: site.contention(count) for count in sorted(counts) if count}
        self._burning: Contention | None = None

    def calibrate(self, scenario: Scenario) -> tuple[Samples, Drift]:
        """Each part alone, now; and the mean time of a run of the models meanwhile, as a `Drift` of seconds instead of factors."""
        site, edge_s, means = self.site, {}, {}
        with site.router(CALIBRATION_SLA_MS) as url:
            direct, routed = self._alone(site.edge_url), self._alone(url)
        for burners in sorted({scenario.usual.burners, scenario.worse.burners}):
            with self._busy(burners):
                before = site.ran()[0]
                edge_s[burners] = self._alone(site.edge_url)
                means[burners] = _mean_s(before, site.ran()[0])
        before = site.ran()[1]
        cloud_s = self._alone(site.cloud_url)
        cloud_mean_s = _mean_s(before, site.ran()[1])
        added_s = max(0.0, statistics.median(routed) - statistics.median(direct))
        return Samples(edge_s, cloud_s, added_s, self._answer_bytes), Drift(means, cloud_mean_s)

    def _alone(self, url: str) -> list[float]:
        """Latencies in seconds of one request after the other."""
        request = InferRequest(self.site.model, [Tensor("x", self.array)])
        latencies = []
        with contextlib.closing(connect(url)) as client:
            for number in range(CALIBRATION + COLD):
                if number % TURN:
                    time.sleep(GAP_S)
                began = time.perf_counter()
                answer = client.infer(request, CALIBRATION_LIMIT_S)
                latencies.append(time.perf_counter() - began)
        self._answer_bytes = _bytes_of(answer)
        return latencies[COLD:]

    @contextlib.contextmanager
    def _busy(self, count: int) -> Iterator[None]:
        self._burn(count)
        try:
            yield
        finally:
            self._burn(0)

    def _burn(self, count: int) -> None:
        if self._burning is not None:
            self._burning.close()
        self._burning = self._burners.get(count)
        if self._burning is not None:
            self._burning.begin()

    def real(self, scenario: Scenario, policy: str, load: Load) -> Real:
        """Send the load while the scenario plays."""
        site, sla_ms = self.site, load.sla_s * 1e3
        ran: list[tuple[Ran, Ran]] = []
        return_ = _Return(site)

        def change(phase: Phase) -> None:
            ran.append(site.ran())
            was = site.network.faults
            site.network.set(phase.faults)
            self._burn(phase.burners)
            if was.state is State.DOWN:
                return_.begin()

        first, *later = scenario.changes(load.seconds)
        try:
            with contextlib.ExitStack() as ends:
                url = {"edge": site.edge_url, "cloud": site.cloud_url}.get(POLICIES[policy]) or ends.enter_context(site.router(sla_ms))
                client = ends.enter_context(contextlib.closing(connect(url)))
                drive(client, site.model, [self.array], arrivals(4.0, WARM_UP_S, self.seed), sla_ms, "", [])
                change(first[1])
                events = [Event(at, scenario.line, lambda phase=phase: change(phase)) for at, phase in later]  # type: ignore[misc]
                tier = "" if policy == "edgekit" else POLICIES[policy]
                waited_s = site.waited_s()
                answers = drive(client, site.model, [self.array], load.arrivals, sla_ms, tier, events)
                waited_s = site.waited_s() - waited_s
                noticed_s = return_.end() if policy == "edgekit" else None
                return Real(answers, [*ran, site.ran()], noticed_s, waited_s)
        finally:
            return_.end()
            site.network.set(WELL)
            self._burn(0)


class _Return:
    """Watches for the first bytes that come back through a network that has just returned."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._noticed_s: float | None = None

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="return", daemon=True)
        self._thread.start()

    def end(self) -> float | None:
        """Seconds from `begin`; None when nothing came, or nothing was awaited. May be called twice."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        return self._noticed_s

    def _watch(self) -> None:
        began, before = time.monotonic(), self._site.network.counts.down_bytes
        while not self._over.wait(POLL_S):
            if self._site.network.counts.down_bytes > before:
                self._noticed_s = time.monotonic() - began
                return


def _bytes_of(answer: InferResponse) -> int:
    return sum(tensor.data.nbytes for tensor in answer.outputs)


def _mean_s(before: Ran, after: Ran) -> float:
    """Of the runs between; 0 for too few."""
    count = after.runs - before.runs
    return (after.seconds - before.seconds) / count if count >= FEW else 0.0


def _runs(stood: Sequence[Ran]) -> tuple[int, int, int]:
    """Between the four times at which the statistics were read."""
    first, worse, after, end = (each.runs for each in stood)
    return worse - first, after - worse, end - after


def drift(scenario: Scenario, ran: Sequence[tuple[Ran, Ran]], alone: Drift) -> Drift:
    """How much longer the models ran in a run than when they were measured alone.

    Args:
        scenario: that was played.
        ran: statistics of device and cloud at the beginning of each of its phases, and at the end.
        alone: seconds of a run when measured alone.
    """
    usual_1, worse, usual_2, end = ran
    if scenario.usual.burners == scenario.worse.burners:
        edge = {scenario.usual.burners: _mean_s(usual_1[0], end[0])}
    else:
        before, after = (
            usual_1[0],
            Ran(worse[0].runs + end[0].runs - usual_2[0].runs, worse[0].seconds + end[0].seconds - usual_2[0].seconds),
        )
        edge = {scenario.usual.burners: _mean_s(before, after), scenario.worse.burners: _mean_s(worse[0], usual_2[0])}
    cloud_s = _mean_s(usual_1[1], end[1])
    factors = {burners: _factor(mean_s, alone.edge[burners]) for burners, mean_s in edge.items()}
    return Drift(factors, _factor(cloud_s, alone.cloud))


def _factor(now_s: float, before_s: float) -> float:
    return now_s / before_s if now_s and before_s else 1.0


def row(name: str, policy: str, real: Real, predicted: Predicted, with_drift: Predicted, moved: Drift, load: Load) -> Row:
    """One run beside what was said of it."""
    found = summarise(policy, real.answers, load.sla_s * 1e3)
    worst = [answer for answer in real.answers if FROM * load.seconds <= answer.at_s < UNTIL * load.seconds]
    return Row(
        scenario=name,
        policy=policy,
        requests=found.requests,
        sla_hit_rate=found.sla_hit_rate,
        cloud_share=found.cloud_share,
        errors=found.errors,
        errors_in_fault=sum(1 for answer in worst if answer.error),
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        predicted=predicted,
        predicted_with_drift=with_drift,
        edge_drift=moved.edge[SCENARIOS[name].worse.burners],
        cloud_drift=moved.cloud,
        cloud_runs=_runs([cloud for _, cloud in real.ran]),
        waited_ms=1e3 * real.waited_s / found.requests,
        noticed_s=real.noticed_s,
    )


def said(found: Row) -> str:
    """A line for a terminal."""
    before, after = found.predicted, found.predicted_with_drift
    return (
        f"{found.scenario:13}{found.policy:11} in time {found.sla_hit_rate:.3f}, predicted {before.sla_hit_rate:.3f} (sd {before.sla_hit_rate_sd:.3f}), "
        f"with drift {after.sla_hit_rate:.3f}, oracle {after.oracle:.3f}; cloud {found.cloud_share:.2f}, predicted {before.cloud_share:.2f}, {after.cloud_share:.2f}; "
        f"drift {found.edge_drift:.2f} {found.cloud_drift:.2f}; errors {found.errors}, {found.errors_in_fault} in the fault; waited {found.waited_ms:.1f} ms"
        + ("" if found.noticed_s is None else f"; return noticed after {found.noticed_s:.2f} s")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="all by default")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="all by default")
    parser.add_argument("--seeds", type=int, default=20, help="simulations of each")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        bundle, array = recogniser(Path(name))
        with Site(bundle, Path(name)) as site:
            bench = Bench(site, array, options.seed)
            samples, _ = bench.calibrate(SCENARIOS["steady"])
            edge_ms, cloud_ms = (1e3 * statistics.median(values) for values in (samples.edge_s[0], samples.cloud_s))
            fitting = fitting_load(edge_ms, cloud_ms)
            schedule = arrivals(fitting.rate_per_s, options.seconds, options.seed)
            load = Load(schedule, options.seconds, fitting.sla_ms / 1e3, array.nbytes)
            for scenario in options.scenario or SCENARIOS:
                rows += run(bench, scenario, options.policy or [*POLICIES], load, options.seeds)
    document = Routing(
        seconds=options.seconds,
        seeds=options.seeds,
        sla_ms=fitting.sla_ms,
        rate_per_s=fitting.rate_per_s,
        edge_ms=edge_ms,
        cloud_ms=cloud_ms,
        router_ms=samples.router_s * 1e3,
        lines={found.scenario: SCENARIOS[found.scenario].line for found in rows},
        rows=rows,
    )
    print(json.dumps(plain(document), indent=2))
    return 0


def run(bench: Bench, name: str, policies: Sequence[str], load: Load, seeds: int) -> list[Row]:
    """All policies in one scenario."""
    scenario, rows = SCENARIOS[name], []
    samples, alone = bench.calibrate(scenario)
    for policy in policies:
        real = bench.real(scenario, policy, load)
        moved = drift(scenario, real.ran, alone)
        before, after = (predict(policy, scenario, samples, load, seeds, each) for each in (Drift(), moved))
        rows.append(row(name, policy, real, before, after, moved, load))
        print(said(rows[-1]), file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
