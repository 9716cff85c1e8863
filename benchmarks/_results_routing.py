"""What `routing` and `loadgen` write, as the page reads it."""

from __future__ import annotations

import msgspec

from benchmarks._results import Rounds


class Predicted(msgspec.Struct):
    """What the simulator says of a policy: means over its seeds, and the standard deviation of the hit rate.

    Attributes:
        sla_hit_rate: share answered in time.
        cloud_share: share of the answers that came from the cloud.
        oracle: the bound of any policy.
    """

    sla_hit_rate: float
    sla_hit_rate_sd: float
    cloud_share: float
    oracle: float


class Row(msgspec.Struct, kw_only=True):
    """One policy in one scenario.

    Attributes:
        errors_in_fault: of `errors`, those of requests that were sent while the scenario was at its worst.
        predicted: before the run.
        predicted_with_drift: with the service times of the run.
        edge_drift, cloud_drift: how much longer the models ran than when they were measured alone; the device's in the state that the scenario is named for.
        cloud_runs: of the model at the cloud before, during and after that state, by its own statistics.
        waited_ms: how long a request had threads of the cloud and the router wait for the core that they share; None in results from before that was measured.
        noticed_s: from the return of a network that refused until the router had an answer from the cloud; None where that is not measured.
    """

    scenario: str
    policy: str
    requests: int
    sla_hit_rate: float
    cloud_share: float
    errors: int
    errors_in_fault: int
    p50_ms: float
    p99_ms: float
    predicted: Predicted
    predicted_with_drift: Predicted
    edge_drift: float
    cloud_drift: float
    cloud_runs: tuple[int, int, int]
    waited_ms: float | None = None
    noticed_s: float | None = None


class Routing(msgspec.Struct, kw_only=True):
    """The document of `routing`. ``*_ms`` are medians of each part alone; ``lines`` says what happens in each scenario."""

    seconds: float
    seeds: int
    sla_ms: float
    rate_per_s: float
    edge_ms: float
    cloud_ms: float
    router_ms: float
    lines: dict[str, str]
    rows: list[Row]


class LoadgenRun(msgspec.Struct, kw_only=True):
    """What LoadGen said of one run.

    Attributes:
        valid: by LoadGen's rules for this duration, and no request failed.
        seconds: least duration that it was asked for.
        percentile_ms: the one that the scenario is judged by: the 90th of SingleStream, the 99th of Server.
        per_s: completed samples a second (Server), or one over the mean latency (SingleStream).
        why: LoadGen's reasons when it is not valid.
    """

    scenario: str
    valid: bool
    queries: int
    failed: int
    seconds: float
    p50_ms: float
    percentile_ms: float
    p99_9_ms: float
    per_s: float
    why: str = ""


class Loadgen(msgspec.Struct, kw_only=True):
    """The document of `loadgen`: runs by where they were sent, then by scenario."""

    version: str
    seconds: float
    mlperf_seconds: float
    rate_per_s: float
    sla_ms: float
    runs: dict[str, dict[str, LoadgenRun]]


class Hop(msgspec.Struct, kw_only=True):
    """One way to the router and on to the edge server; medians of each round.

    Attributes:
        added_p50_us: median difference of neighbours, one direct, one routed.
        router_cpu_us: of a routed request.
        edge_cpu_added_us: what the edge server spends on a routed request more than on a direct one.
    """

    direct_p50_us: Rounds
    routed_p50_us: Rounds
    added_p50_us: Rounds
    router_cpu_us: Rounds
    edge_cpu_us: Rounds
    edge_cpu_added_us: Rounds


class RouterHop(msgspec.Struct, kw_only=True):
    """By model, then by way."""

    rounds: int
    pairs: int
    results: dict[str, dict[str, Hop]]
