"""A trace: everything that happens to the requests of one run and does not depend on who steers them.

All chance is drawn before the run, per request and tier, so that every policy meets the same requests, the same device and the same network, and so that
an oracle can know them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from edgekit.router.simulation._steps import Steps

__all__ = ["Endpoint", "State", "Trace"]

# Linux' least retransmission timeout (TCP_RTO_MIN, include/net/tcp.h); it doubles with every loss of the same segment (RFC 6298, 5.5).
RETRANSMIT_S = 0.2
MAX_LOSSES = 6


class State(enum.IntEnum):
    """What an endpoint does with a request that reaches it."""

    WELL = 0
    REFUSES = 1
    """It answers at once that it cannot (503, or a reset connection)."""
    HANGS = 2
    """It never answers."""


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """One server of the cloud tier, and the way to it.

    Attributes:
        work_s: service time of each request at speed 1.
        round_trip_s: of the network without payload.
        speed: of each of its servers; 1 is well.
        state: a `State` over time.
        servers: requests that it runs at the same time; more wait, first come first served.
    """

    work_s: Sequence[float]
    round_trip_s: Steps
    speed: Steps = Steps.constant(1.0)
    state: Steps = Steps.constant(State.WELL)
    servers: int = 8


class Trace(msgspec.Struct, frozen=True, eq=False):
    """One run's requests and world. Lists are by request, in order of arrival.

    Attributes:
        name: of the scenario or file.
        fault: something is broken in it.
        arrive_s: ascending, from 0.
        sla_s: an answer later than that has missed its deadline.
        grace_s: how long after its deadline an answer is still worth something.
        work_s: service time on the device at speed 1.
        payload_bytes: size of the inputs.
        jitter: factor of the round trip.
        luck: uniform in (0, 1); against the loss rate it says how often the request is sent before it gets through.
        device: the device's speed over time.
        workers: requests that the device runs at the same time.
        uplink: bytes a second from the device to the network, which its requests share, first come first served.
        loss: share of requests that are lost on the way and sent again after a timeout.
        endpoints: the cloud tier; empty for none.
        cloud_an_hour: attempts that the operator lets go to the cloud in any hour; ``None`` for no limit.
        bench_s: service times that were measured on the idle device before the run, as a bundle's own bench has them.
    """

    name: str
    fault: bool
    arrive_s: Sequence[float]
    sla_s: Sequence[float]
    work_s: Sequence[float]
    payload_bytes: Sequence[int]
    jitter: Sequence[float]
    luck: Sequence[float]
    device: Steps
    uplink: Steps
    endpoints: Sequence[Endpoint]
    loss: Steps = Steps.constant(0.0)
    workers: int = 1
    grace_s: float = 1.0
    cloud_an_hour: int | None = None
    bench_s: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.arrive_s)

    def stall_s(self, request: int, time_s: float) -> float:
        """How long retransmissions hold up a request that is sent at ``time_s``: 0.2, 0.6, 1.4 s and so on after one, two, three losses."""
        share = self.loss.at(time_s)
        if share <= 0.0:
            return 0.0
        luck, losses, bound = self.luck[request], 0, share
        while luck < bound and losses < MAX_LOSSES:
            losses += 1
            bound *= share
        return RETRANSMIT_S * (2.0**losses - 1.0)
