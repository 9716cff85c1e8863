"""What goes wrong in the real runs of `routing`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from benchmarks._site import WELL
from edgekit.router.faults import DOWN, Direction, Faults, State

__all__ = ["FROM", "SCENARIOS", "UNTIL", "Phase", "Scenario"]

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
    return Faults.both(Direction(delay_s=delay_s, **more))  # type: ignore[arg-type] # the other fields are no floats, and not given


# One process beside the model leaves the device half of its speed, at which it can still answer nearly all; with two it needs the cloud.
_HALF, _THIRD = 1, 2
SCENARIOS: Mapping[str, Scenario] = {
    "steady": Scenario("nothing goes wrong", Phase(), Phase()),
    "contention": Scenario("four processes compute on the device's core", Phase(), Phase(burners=4)),
    "mobility": Scenario(
        "round trip 20 to 30-70 ms, 200 Mbit/s each way", Phase(_THIRD), Phase(_THIRD, _network(0.015, jitter_s=0.02, bytes_per_s=25e6))
    ),
    "lossy": Scenario(
        "0.05 % of the segments are lost, each holds its connection up for 0.2 s", Phase(_THIRD), Phase(_THIRD, _network(loss=0.0005))
    ),
    "brown-out": Scenario("the cloud answers 0.4 s later", Phase(_HALF), Phase(_HALF, Faults(WELL.up, Direction(delay_s=0.41)))),
    "cloud-silent": Scenario(
        "no byte comes through, nothing is reset", Phase(_HALF), Phase(_HALF, Faults(WELL.up, WELL.down, State.SILENT))
    ),
    "cloud-down": Scenario("connections are reset and refused", Phase(_HALF), Phase(_HALF, DOWN)),
    "half-open": Scenario("requests arrive, answers do not", Phase(_HALF), Phase(_HALF, Faults(WELL.up, Direction(silent=True)))),
}
