"""The router among real faults: a real edge server, a real Triton behind a bad network, real other work on the device; and what the simulator said of it.

First each tier is measured alone: the device with and without other processes on its core, the cloud over the good network. The simulator then plays the scenario with the same arrivals
and service times drawn from those samples, once a seed. Then the same arrivals are sent for real: through the router, to the device alone, to the cloud
alone, each with the deadline, at a rate that keeps the idle device a third busy. The table has the share answered in time, and the share that the cloud answered.

What it does not show: more than one endpoint or model; radio: the faults are the proxy's, and the simulator is told them. The cloud, the router and the load
share one core here, which the simulator does not know; that is one reason for a difference.

Run ``python -m benchmarks routing [--seconds S] [--scenario NAME]…``; prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from benchmarks._network_scenarios import SCENARIOS, Samples, Scenario, trace_of
from benchmarks._site import WELL, Site, recogniser
from edgekit.cli.demo._fleet import fitting_load
from edgekit.cli.demo._load import Event, arrivals, drive, summarise
from edgekit.cli.demo._stage import Contention
from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.router.simulation import World, clairvoyant
from edgekit.router.simulation._run import steering
from edgekit.router.simulation._score import score, score_oracle

CALIBRATION = 40
COLD = 4  # requests that meet cold code
CALIBRATION_LIMIT_S = 30.0
WARM_UP_S = 2.0
POLICIES = {"edgekit": "router", "local-only": "edge", "cloud-only": "cloud"}


class Predicted(msgspec.Struct):
    """Means over the simulator's seeds, with the standard deviation of the hit rate."""

    sla_hit_rate: float
    sla_hit_rate_sd: float
    cloud_share: float


class Row(msgspec.Struct):
    """One policy in one scenario.

    Attributes:
        difference: real less predicted hit rate.
    """

    scenario: str
    policy: str
    requests: int
    sla_hit_rate: float
    cloud_share: float
    errors: int
    p50_ms: float
    p99_ms: float
    predicted: Predicted
    oracle: float
    difference: float


class Bench:
    """The site with what was measured of it."""

    def __init__(self, site: Site, array: np.ndarray, seed: int) -> None:
        self.site, self.array, self.seed = site, array, seed
        self._burners = {
            count: site.contention(count) for count in sorted({p.burners for s in SCENARIOS.values() for p in (s.usual, s.worse)}) if count
        }
        self._burning: Contention | None = None
        self.samples = Samples({0: self._alone(site.edge_url)}, self._alone(site.cloud_url))
        for count in self._burners:
            with self._busy(count):
                self.samples.edge_s[count] = self._alone(site.edge_url)

    def _alone(self, url: str) -> list[float]:
        """Latencies in seconds of one request after the other."""
        request = InferRequest(self.site.model, [Tensor("x", self.array)])
        latencies = []
        with contextlib.closing(connect(url)) as client:
            for _ in range(CALIBRATION + COLD):
                began = time.perf_counter()
                client.infer(request, CALIBRATION_LIMIT_S)
                latencies.append(time.perf_counter() - began)
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

    def real(self, scenario: Scenario, policy: str, schedule: list[float], seconds: float, sla_ms: float):
        """Send the schedule while the scenario plays."""
        site = self.site

        def change(phase):
            site.network.set(phase.faults)
            self._burn(phase.burners)

        changes = scenario.changes(seconds)
        try:
            change(scenario.usual)
            with contextlib.ExitStack() as ends:
                url = {"edge": site.edge_url, "cloud": site.cloud_url}.get(POLICIES[policy]) or ends.enter_context(site.router(sla_ms))
                client = ends.enter_context(contextlib.closing(connect(url)))
                warm = arrivals(4.0, WARM_UP_S, self.seed)
                drive(client, site.model, [self.array], warm, sla_ms, "", [])
                events = [Event(at, "", lambda phase=phase: change(phase)) for at, phase in changes[1:]]
                tier = "" if policy == "edgekit" else POLICIES[policy]
                return drive(client, site.model, [self.array], schedule, sla_ms, tier, events)
        finally:
            site.network.set(WELL)
            self._burn(0)


def predict(
    scenario: Scenario, name: str, policy: str, samples: Samples, schedule: list[float], seconds: float, sla_s: float, size: int, seeds: int
):
    """What the simulator says of a policy, and the oracle's bound."""
    runs, bounds = [], []
    for seed in range(seeds):
        trace = trace_of(scenario, name, samples, schedule, seconds, sla_s, size, seed)
        oracle = clairvoyant(trace)
        runs.append(score(trace, World(trace, steering(policy, trace, seed), timed=False).run(), oracle))
        bounds.append(score_oracle(trace, oracle).sla_hit_rate)
    rates = [run.sla_hit_rate for run in runs]
    return Predicted(
        statistics.fmean(rates), statistics.pstdev(rates), statistics.fmean(run.cloud_share for run in runs)
    ), statistics.fmean(bounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="all by default")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="all by default")
    parser.add_argument("--seeds", type=int, default=20, help="simulations of each")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bundle, array = recogniser(Path(name))
        with Site(bundle, Path(name)) as site:
            bench = Bench(site, array, options.seed)
            edge_ms, cloud_ms = (1e3 * statistics.median(values) for values in (bench.samples.edge_s[0], bench.samples.cloud_s))
            load = fitting_load(edge_ms, cloud_ms)
            schedule = arrivals(load.rate_per_s, options.seconds, options.seed)
            for scenario in options.scenario or SCENARIOS:
                for policy in options.policy or POLICIES:
                    arguments = (
                        SCENARIOS[scenario],
                        scenario,
                        policy,
                        bench.samples,
                        schedule,
                        options.seconds,
                        load.sla_ms / 1e3,
                        array.nbytes,
                        options.seeds,
                    )
                    predicted, bound = predict(*arguments)
                    found = summarise(policy, bench.real(SCENARIOS[scenario], policy, schedule, options.seconds, load.sla_ms), load.sla_ms)
                    row = Row(
                        scenario, policy, found.requests, found.sla_hit_rate, found.cloud_share, found.errors, found.p50_ms, found.p99_ms,
                        predicted, bound, found.sla_hit_rate - predicted.sla_hit_rate,
                    )  # fmt: skip
                    rows.append(row)
                    print(
                        f"{scenario:13} {policy:11} real {row.sla_hit_rate:.3f} predicted {predicted.sla_hit_rate:.3f} sd {predicted.sla_hit_rate_sd:.3f} "
                        f"oracle {bound:.3f}   cloud {row.cloud_share:.2f} predicted {predicted.cloud_share:.2f}   errors {row.errors}",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
    medians = {str(count): 1e3 * statistics.median(values) for count, values in bench.samples.edge_s.items()}
    document = {
        "seconds": options.seconds,
        "sla_ms": load.sla_ms,
        "rate_per_s": load.rate_per_s,
        "edge_ms_by_burners": medians,
        "cloud_ms": cloud_ms,
        "rows": msgspec.to_builtins(rows),
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
