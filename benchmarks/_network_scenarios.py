"""What goes wrong in the real runs of `routing`, and the same as a trace for the simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from benchmarks._site import WELL
from edgekit.router.faults import DOWN, Direction, Faults, State
from edgekit.router.faults._shape import SEGMENT_BYTES
from edgekit.router.simulation import Endpoint, Steps, Trace
from edgekit.router.simulation import State as EndpointState

__all__ = ["SCENARIOS", "Phase", "Samples", "Scenario", "trace_of"]

FROM, UNTIL = 0.25, 0.65  # of a run; before and after all is as at the beginning


class Phase(msgspec.Struct, frozen=True):
    """A state of the site.

    Attributes:
        burners: other processes that compute on the device's core.
        faults: of the network.
    """

    burners: int = 0
    faults: Faults = WELL


class Scenario(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        line: what happens, for a person.
        usual: the state before and after.
        worse: the state between `FROM` and `UNTIL`.
    """

    line: str
    usual: Phase
    worse: Phase

    def changes(self, seconds: float) -> list[tuple[float, Phase]]:
        """``(from when, state)``, in order."""
        return [(0.0, self.usual), (FROM * seconds, self.worse), (UNTIL * seconds, self.usual)]


def _network(delay_s: float = WELL.up.delay_s, **more: float) -> Faults:
    return Faults.both(Direction(delay_s=delay_s, **more))  # type: ignore[arg-type]


# The device shares its core with one process where the network is what breaks: it keeps half of its speed, so that the cloud matters.
_HALF = Phase(burners=1)
SCENARIOS: Mapping[str, Scenario] = {
    "steady": Scenario("nothing goes wrong", Phase(), Phase()),
    "contention": Scenario("four processes compute on the device's core", Phase(), Phase(burners=4)),
    "mobility": Scenario("round trip 20 to 60-140 ms, 8 Mbit/s", _HALF, Phase(1, _network(0.03, jitter_s=0.04, bytes_per_s=1e6))),
    "lossy": Scenario("1 % of the segments are lost, 0.2 s each", _HALF, Phase(1, _network(loss=0.01))),
    "brown-out": Scenario("the cloud answers 0.4 s later", _HALF, Phase(1, Faults(WELL.up, Direction(delay_s=0.41)))),
    "cloud-silent": Scenario("no byte comes through, nothing is reset", _HALF, Phase(1, Faults(WELL.up, WELL.down, State.SILENT))),
    "cloud-down": Scenario("connections are reset and refused", _HALF, Phase(1, DOWN)),
    "half-open": Scenario("requests arrive, answers do not", _HALF, Phase(1, Faults(WELL.up, Direction(silent=True)))),
}


class Samples(msgspec.Struct):
    """What was measured of each tier alone, in seconds: of the device by number of burners, of the cloud over the good network."""

    edge_s: dict[int, list[float]]
    cloud_s: list[float]


def trace_of(
    scenario: Scenario, name: str, samples: Samples, arrivals: Sequence[float], seconds: float, sla_s: float, size: int, seed: int
) -> Trace:
    """The run as the simulator has it: the same arrivals, service times drawn from the samples, the state of device and network over time.

    Args:
        scenario, name: which.
        samples: of the tiers alone.
        arrivals: seconds from the start.
        seconds: of the run.
        sla_s: of every request.
        size: bytes of one request.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    count, round_trip_s = len(arrivals), WELL.up.delay_s + WELL.down.delay_s
    states = [(at, phase) for at, phase in scenario.changes(seconds) if at == 0 or scenario.usual != scenario.worse]
    at_server = [max(0.0005, value - round_trip_s) for value in samples.cloud_s]
    endpoint = Endpoint(
        work_s=random.choice(at_server, count).tolist(),
        round_trip_s=Steps([(at, _round_trip_s(phase.faults)) for at, phase in states]),
        state=Steps([(at, float(_endpoint_state(phase.faults))) for at, phase in states]),
        servers=1,
    )
    return Trace(
        name=name,
        fault=scenario.usual != scenario.worse,
        arrive_s=list(arrivals),
        sla_s=[sla_s] * count,
        work_s=[float(random.choice(samples.edge_s[_at(states, arrival).burners])) for arrival in arrivals],
        payload_bytes=[size] * count,
        jitter=[1.0] * count,
        luck=random.random(count).tolist(),
        device=Steps.constant(1.0),
        uplink=Steps([(at, min(phase.faults.up.bytes_per_s, 1e12)) for at, phase in states]),
        endpoints=[endpoint],
        loss=Steps([(at, _loss(phase.faults, size)) for at, phase in states]),
        bench_s=samples.edge_s[scenario.usual.burners][:8],
    )


def _at(states: Sequence[tuple[float, Phase]], time_s: float) -> Phase:
    return next(phase for at, phase in reversed(states) if at <= time_s)


def _round_trip_s(faults: Faults) -> float:
    """With half of the jitter, its mean."""
    return sum(way.delay_s + way.jitter_s / 2 for way in (faults.up, faults.down))


def _endpoint_state(faults: Faults) -> EndpointState:
    if faults.state is State.DOWN:
        return EndpointState.REFUSES
    silent = faults.state is State.SILENT or faults.up.silent or faults.down.silent
    return EndpointState.HANGS if silent else EndpointState.WELL


def _loss(faults: Faults, size: int) -> float:
    """Share of requests of which at least one segment is lost; the proxy draws once a chunk, in both directions."""
    segments = max(1, math.ceil(size / SEGMENT_BYTES))
    return float(1.0 - (1.0 - faults.up.loss) ** segments * (1.0 - faults.down.loss))
