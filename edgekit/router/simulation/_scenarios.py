"""The scenarios: seeded traces, each with the source of its shape and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import UnknownNameError
from edgekit.router.simulation._draws import ar_steps, arrivals, bounded_pareto, lognormal, on_off, repeat
from edgekit.router.simulation._steps import Steps
from edgekit.router.simulation._trace import Endpoint, State, Trace

__all__ = ["COMMON", "SCENARIOS", "Scenario", "make_trace"]

WORK_S, WORK_SIGMA = 0.010, 0.1
RATE_PER_S = 150.0
PAYLOAD_BYTES = 10_000
SLA_S = 0.1
ROUND_TRIP_S, JITTER_SIGMA = 0.025, 0.25
UPLINK_BYTES_PER_S = 20e6 / 8
SERVICE_S, SERVICE_SIGMA = 0.010, 0.2
BENCH_RUNS = 8

# Common to all, unless a scenario says otherwise.
COMMON = """
A device with one worker and a model of 10 ms (EfficientNet-Lite0 on one thread takes 9.4 ms, our measurement), log-normal with sigma 0.1 (CPU time of
200 runs of the PP-OCRv4 detector on a busy machine: 0.094); 150 requests a second, which is 1.5 times what the device can do, so that about a third
must go to the cloud whoever decides; payloads of 10 kB (a JPEG of 224 x 224 pixels); an SLA of 100 ms. The cloud: a network round trip of 25 ms, each
log-normal with sigma 0.25, an uplink of 20 Mbit/s (mean upload over LTE in cars 25, in trains 17: BIPT's drive tests of 2021, Belgium), and 8 servers
with 10 ms of service, log-normal with sigma 0.2. Where no source is named, a figure is our choice.
"""

Generator = np.random.Generator
Change = dict[str, Any]


class Scenario(msgspec.Struct, frozen=True):
    """One kind of world.

    Attributes:
        about: one line.
        fault: something breaks in it.
        sources: where the shape and the figures come from.
        change: ``(source, requests, seconds) -> fields of the trace`` that differ from the common ones.
        rate: requests a second, over time, for a run of so many seconds.
        mean_rate_per_s: of that, over a long time; says how much world a number of requests needs.
        endpoints: servers of the cloud tier.
    """

    name: str
    fault: bool
    about: str
    sources: Sequence[str]
    change: Callable[[Generator, int, float], Change] = lambda _source, _count, _until: {}
    rate: Callable[[Generator, float], Steps] = lambda _source, _until: Steps.constant(RATE_PER_S)
    mean_rate_per_s: float = RATE_PER_S
    endpoints: int = 1


def make_trace(name: str, requests: int, seed: int) -> Trace:
    """The trace of a scenario: ``requests`` requests, the same ones for the same seed.

    Raises:
        UnknownNameError: there is no such scenario.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UnknownNameError("--scenario", name, SCENARIOS, "edgekit simulate --list shows them")
    # One stream a purpose, so that a scenario that draws more of one kind has the others' draws unchanged.
    world, times, device, network, *cloud = (np.random.default_rng([seed, stream]) for stream in range(4 + scenario.endpoints))
    until_s = 1.25 * requests / scenario.mean_rate_per_s + 30.0
    arrive_s = arrivals(times, requests, scenario.rate(world, until_s))
    until_s = max(until_s, arrive_s[-1] + 10.0)
    common: Change = {
        "work_s": lognormal(device, requests, WORK_S, WORK_SIGMA),
        "payload_bytes": [PAYLOAD_BYTES] * requests,
        "device": Steps.constant(1.0),
        "uplink": Steps.constant(UPLINK_BYTES_PER_S),
        "endpoints": [Endpoint(lognormal(source, requests, SERVICE_S, SERVICE_SIGMA), Steps.constant(ROUND_TRIP_S)) for source in cloud],
    }
    jitter, luck = lognormal(network, requests, 1.0, JITTER_SIGMA), [float(value) for value in network.random(requests)]
    fields = common | {"bench_s": lognormal(world, BENCH_RUNS, WORK_S, WORK_SIGMA)}
    fields |= _changes(scenario, common, world, requests, until_s)
    return Trace(name=name, fault=scenario.fault, arrive_s=arrive_s, sla_s=[SLA_S] * requests, jitter=jitter, luck=luck, **fields)


def _changes(scenario: Scenario, common: Change, world: Generator, requests: int, until_s: float) -> Change:
    """What the scenario does to the common fields; ``endpoint`` and ``endpoint 0`` change all endpoints or one."""
    changed = dict(scenario.change(world, requests, until_s))
    endpoints: list[Endpoint] = list(common["endpoints"])
    for index, endpoint in enumerate(endpoints):
        for key in ("endpoint", f"endpoint {index}"):
            endpoint = msgspec.structs.replace(endpoint, **changed.get(key, {}))  # noqa: PLW2901
        endpoints[index] = endpoint
    kept = {key: value for key, value in changed.items() if not key.startswith("endpoint")}
    return kept | {"endpoints": endpoints}


def _bursts(source: Generator, until_s: float) -> Steps:
    return on_off(source, until_s, (100.0, 280.0), (8.0, 2.0))


def _day(_source: Generator, until_s: float) -> Steps:
    day_s, slots = 60.0, 24
    hours = [(day_s * hour / slots, 135.0 - 85.0 * math.cos(2 * math.pi * (hour + 0.5) / slots)) for hour in range(slots)]
    return repeat(hours, day_s, until_s)


def _crowd(_source: Generator, until_s: float) -> Steps:
    base, peak, rise_s, stay_s, fall_s = 100.0, 280.0, 4, 10, 8.0
    pattern = [(0.0, base)]
    pattern += [(20.0 + second, base + (peak - base) * (second + 1) / rise_s) for second in range(rise_s)]
    fall_at = 20.0 + rise_s + stay_s
    pattern += [(fall_at + second, base + (peak - base) * math.exp(-(second + 0.5) / fall_s)) for second in range(25)]
    return repeat(pattern, 60.0, until_s)


def _thermal(_source: Generator, _requests: int, until_s: float) -> Change:
    return {"device": repeat([(0.0, 1.0), (15.0, 1000 / 1500), (27.0, 600 / 1500), (42.0, 1000 / 1500), (46.0, 1.0)], 60.0, until_s)}


def _contention(source: Generator, _requests: int, until_s: float) -> Change:
    return {"device": on_off(source, until_s, (1.0, 0.5), (6.0, 3.0))}


def _mobility(source: Generator, _requests: int, until_s: float) -> Change:
    rate = ar_steps(source, until_s, 1.0, UPLINK_BYTES_PER_S, 0.5, 0.8)
    gaps: list[tuple[float, float]] = []
    at = float(source.exponential(15.0))
    while at < until_s:
        gaps.append((at, 0.040 * math.exp(float(source.normal(0.0, 0.5)))))
        at += 1.0 + float(source.exponential(15.0))
    trip = ar_steps(source, until_s, 1.0, 0.035, 0.3, 0.8)
    return {"uplink": _with_gaps(rate, gaps), "endpoint": {"round_trip_s": trip}}


def _with_gaps(rate: Steps, gaps: Sequence[tuple[float, float]]) -> Steps:
    """Nothing passes for so long from those times on."""
    points = dict(zip(rate.times, rate.values, strict=True))
    for start, length in gaps:
        after = rate.at(start + length)
        for inside in rate.changes(start, start + length):
            points.pop(inside, None)
        points[start], points[start + length] = 0.0, after
    return Steps(sorted(points.items()))


def _lossy(source: Generator, _requests: int, until_s: float) -> Change:
    return {"loss": on_off(source, until_s, (0.01, 0.20), (6.0, 2.0))}


def _brown_out(_source: Generator, _requests: int, until_s: float) -> Change:
    return {"endpoint": {"speed": repeat([(0.0, 1.0), (20.0, 0.25), (30.0, 0.08), (40.0, 1.0)], 60.0, until_s)}}


def _down(_source: Generator, _requests: int, until_s: float) -> Change:
    states = [(0.0, State.WELL), (12.0, State.HANGS), (24.0, State.WELL), (40.0, State.REFUSES), (48.0, State.WELL)]
    return {"endpoint": {"state": repeat(states, 60.0, until_s)}}


def _storm(_source: Generator, _requests: int, until_s: float) -> Change:
    dead = repeat([(0.0, State.WELL), (20.0, State.HANGS), (40.0, State.WELL)], 60.0, until_s)
    crowded = repeat([(0.0, 1.0), (20.5, 0.35), (28.0, 1.0)], 60.0, until_s)
    return {"endpoint 0": {"state": dead}, "endpoint 1": {"speed": crowded}, "endpoint 2": {"speed": crowded}}


def _heavy(source: Generator, requests: int, _until_s: float) -> Change:
    return {"work_s": bounded_pareto(source, requests, 0.0053, 0.5, 2.1), "bench_s": bounded_pareto(source, BENCH_RUNS, 0.0053, 0.5, 2.1)}


_ALL = (
    Scenario("steady", False, "Poisson arrivals, 1.5 times what the device can do.", ["the common world (`COMMON`)"]),
    Scenario(
        "bursty",
        False,
        "Two-state Markov-modulated Poisson arrivals: 100/s for 8 s, 280/s for 2 s on average.",
        [
            "MMPP as the model of bursty inference load: MArk (Zhang et al., USENIX ATC 2019) and BATCH (Ali et al., SC 2020); rates are ours"
        ],
        rate=_bursts,
        mean_rate_per_s=136.0,
    ),
    Scenario(
        "diurnal",
        False,
        "A day of 60 s: 50/s at night, 220/s at noon, a cosine between.",
        ["daily waves of invocations: Shahrad et al., Serverless in the Wild (USENIX ATC 2020); amplitude and length are ours"],
        rate=_day,
        mean_rate_per_s=135.0,
    ),
    Scenario(
        "flash-crowd",
        False,
        "100/s, and once a minute a rise to 280/s within 4 s, 10 s there, an exponential fall.",
        ["rise, plateau and fall: Ari et al., Managing flash crowds on the Internet (MASCOTS 2003); rates and lengths are ours"],
        rate=_crowd,
        mean_rate_per_s=155.0,
    ),
    Scenario(
        "heavy-tail",
        False,
        "Service on the device from a bounded Pareto distribution: alpha 2.1, 5.3 ms to 0.5 s, mean 10 ms.",
        ["heavy-tailed job sizes: Harchol-Balter, The Effect of Heavy-Tailed Job Size Distributions (1999); alpha and bounds are ours"],
        change=_heavy,
    ),
    Scenario(
        "metered",
        False,
        "Steady, with a cloud budget that runs out before the end: 31 attempts an hour for each 100 requests, where a third is needed.",
        ["the budget as `edgekit route --policy` has it (docs/policy.md); the share is ours"],
        change=lambda _source, requests, _until: {"cloud_an_hour": requests * 31 // 100},
    ),
    Scenario(
        "thermal",
        True,
        "The device's clock falls from 1500 to 1000 and 600 MHz and recovers, every minute.",
        [
            "Raspberry Pi 4 without a fan: stages of 1500, 1000, 750 and 600 MHz (Longbottom, Pi 4 CPU MHz throttling), within seconds of CNN load (arXiv 2010.06291)"
        ],
        change=_thermal,
    ),
    Scenario(
        "contention",
        True,
        "A neighbour takes half of the device for 3 s of 9 s on average.",
        ["latency of inference on phones under CPU contention varies widely: Yang et al. (arXiv 2003.00138); factor and lengths are ours"],
        change=_contention,
    ),
    Scenario(
        "lte-mobility",
        True,
        "The uplink's rate and the round trip change every second; hand-overs stop it, every 16 s on average.",
        [
            "interruption of 40 ms at the median: 19,000 km of drive tests (Lauridsen et al., From LTE to 5G for Connected Mobility, 2017)",
            "mean upload of 17 to 25 Mbit/s: BIPT's drive tests of 2021; rate redrawn each second as the logs of van der Hooft et al. (Ghent, 2016) are; spread is ours",
        ],
        change=_mobility,
    ),
    Scenario(
        "lossy-wifi",
        True,
        "Requests are lost and sent again after 200 ms: 1 % of them for 6 s, 20 % for 2 s, on average.",
        ["two-state loss (Gilbert 1960, Elliott 1963); Linux' TCP_RTO_MIN of 200 ms, doubling (RFC 6298); shares and lengths are ours"],
        change=_lossy,
    ),
    Scenario(
        "brown-out",
        True,
        "The cloud's servers run at 25 % of their speed for 10 s of each minute, then at 8 % for 10 s.",
        ["a server that is slow instead of down: Dean and Barroso, The Tail at Scale (CACM 2013); factor and lengths are ours"],
        change=_brown_out,
    ),
    Scenario(
        "cloud-down",
        True,
        "The cloud hangs for 12 s, and refuses for 8 s, of each minute.",
        ["both kinds of outage as Envoy's outlier detection and gRPC's deadlines meet them; lengths are ours"],
        change=_down,
    ),
    Scenario(
        "failover-storm",
        True,
        "Three endpoints; one hangs for 20 s of each minute, and the others run at 35 % for 7.5 s while its clients come over.",
        [
            "cascading failures: Ulrich, Addressing Cascading Failures (Site Reliability Engineering, O'Reilly 2016, ch. 22); figures are ours"
        ],
        change=_storm,
        endpoints=3,
    ),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
