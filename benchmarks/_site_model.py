"""The real site of `routing` as a world of the simulator: the same arrivals, service times drawn from what was measured of each part alone, the network from the proxy's own rules. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks._network_scenarios import Phase, Scenario
from benchmarks._results_routing import Predicted
from benchmarks._site import WELL
from edgekit.router.faults import Faults, State, crossing_s
from edgekit.router.simulation import Endpoint, Steps, Trace, World, clairvoyant, steering
from edgekit.router.simulation import State as EndpointState

__all__ = ["Drift", "Load", "Samples", "predict", "trace_of"]

LEAST_S = 0.0005


class Samples(msgspec.Struct):
    """What was measured of each part alone, one request after the other.

    Attributes:
        edge_s: latencies of the device in seconds, by number of burners.
        cloud_s: of the cloud over the good network.
        router_s: what the router adds, at the median.
        answer_bytes: of one answer.
    """

    edge_s: dict[int, list[float]]
    cloud_s: list[float]
    router_s: float
    answer_bytes: int


class Drift(msgspec.Struct, frozen=True):
    """How much longer the models ran in the run itself than when the samples were taken, by the servers' own statistics.

    Attributes:
        edge: factor by number of burners.
        cloud: factor.
    """

    edge: Mapping[int, float] = {}
    cloud: float = 1.0


class Load(NamedTuple):
    """What is asked of the site: arrivals in seconds from the start of a run that lasts ``seconds``, each with the same deadline and size."""

    arrivals: Sequence[float]
    seconds: float
    sla_s: float
    request_bytes: int


def predict(policy: str, scenario: Scenario, samples: Samples, load: Load, seeds: int, drift: Drift) -> Predicted:
    """Play the scenario once a seed."""
    rates, shares, bounds = [], [], []
    # The router takes its share of the deadline on the way in and out; the others are asked directly.
    sla_s = load.sla_s - (samples.router_s if policy == "edgekit" else 0.0)
    for seed in range(seeds):
        trace = trace_of(scenario, samples, load._replace(sla_s=sla_s), seed, drift)
        outcome = World(trace, steering(policy, trace, seed), timed=False).run()
        in_time = [at <= arrive + sla_s for at, arrive in zip(outcome.answered_s, trace.arrive_s, strict=True)]
        rates.append(statistics.fmean(in_time))
        shares.append(sum(outcome.by_cloud) / max(1, sum(not refused for refused in outcome.refused)))
        bounds.append(clairvoyant(trace).hits / len(trace))
    return Predicted(statistics.fmean(rates), statistics.pstdev(rates), statistics.fmean(shares), statistics.fmean(bounds))


def trace_of(scenario: Scenario, samples: Samples, load: Load, seed: int, drift: Drift) -> Trace:
    """One run as the simulator has it; ``seed`` is that of the draws."""
    draws, source = np.random.default_rng(seed), random.Random(seed)
    states = [(at, phase) for at, phase in scenario.changes(load.seconds) if at == 0 or scenario.usual != scenario.worse]
    phases = [_at(states, arrival) for arrival in load.arrivals]
    at_server = np.maximum(LEAST_S, np.array(samples.cloud_s) - WELL.up.delay_s - WELL.down.delay_s) * drift.cloud
    edge = {burners: np.array(values) * drift.edge.get(burners, 1.0) for burners, values in samples.edge_s.items()}
    # The server and the way back are two queues in a row, through which the slower one's pace goes: that one is the simulator's server, the other a delay.
    steps = [(float(draws.choice(at_server)), samples.answer_bytes / phase.faults.down.bytes_per_s) for phase in phases]
    ways = [_network_s(phase.faults, load.request_bytes, samples.answer_bytes, source) for phase in phases]
    endpoint = Endpoint(
        work_s=[max(both) for both in steps],
        round_trip_s=Steps([(at, _delays_s(phase.faults)) for at, phase in states]),
        state=Steps([(at, float(_endpoint_state(phase.faults))) for at, phase in states]),
        servers=1,
    )
    return Trace(
        name=scenario.line,
        fault=scenario.usual != scenario.worse,
        arrive_s=list(load.arrivals),
        sla_s=[load.sla_s] * len(phases),
        grace_s=0.0,  # the client hangs up at its deadline
        work_s=[float(draws.choice(edge[phase.burners])) for phase in phases],
        payload_bytes=[load.request_bytes] * len(phases),
        jitter=[(way + min(both)) / _delays_s(phase.faults) for way, both, phase in zip(ways, steps, phases, strict=True)],
        luck=[1.0] * len(phases),
        device=Steps.constant(1.0),
        uplink=Steps([(at, min(phase.faults.up.bytes_per_s, 1e12)) for at, phase in states]),
        endpoints=[endpoint],
        bench_s=samples.edge_s[scenario.usual.burners][:8],
    )


def _at(states: Sequence[tuple[float, Phase]], time_s: float) -> Phase:
    return next(phase for at, phase in reversed(states) if at <= time_s)


def _delays_s(faults: Faults) -> float:
    """What even an empty message takes there and back."""
    return max(LEAST_S, faults.up.delay_s + faults.down.delay_s)


def _network_s(faults: Faults, request_bytes: int, answer_bytes: int, source: random.Random) -> float:
    """There and back, drawn as the proxy would, over links without a limit: for those the simulator has requests queue."""
    up, down = (msgspec.structs.replace(way, bytes_per_s=math.inf) for way in (faults.up, faults.down))
    return crossing_s(up, request_bytes, source) + crossing_s(down, answer_bytes, source)


def _endpoint_state(faults: Faults) -> EndpointState:
    if faults.state is State.DOWN:
        return EndpointState.REFUSES
    silent = faults.state is State.SILENT or faults.up.silent or faults.down.silent
    return EndpointState.HANGS if silent else EndpointState.WELL
