"""Sections of docs/benchmarks.md about the router."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._plots import number
from benchmarks._results import Record, spread
from benchmarks._results_routing import Loadgen, Predicted, RouterHop, Routing, Row
from benchmarks._sections import Aim, Section, at_most, document, markdown, told
from edgekit.router._breaker import BreakerPolicy

ROUTER, DEVICE = "edgekit", "local-only"
HOP_AIM_MS = 1.0
# Of the router's log of three runs of half-open and one of brown-out, at commits 678dd83 and 24c19a9.
MISSES = (
    "Nine misses of the router were read one by one, in three runs of half-open and one of brown-out. Three requests had gone to a cloud that was not yet known to be silent: the device was busy then, and when "
    "it was free again, 100 ms before the deadline, they were not looked at once more (looking more often won nothing in the simulator, where what such a second try gains is taken from others). Four were in bursts while the device ran slowly: three of them had been handed to the "
    "cloud together, whose one server took them in turn, one had stayed with the device. Two the router had answered 2 and 5 ms before their deadline; the client, on the shared core, read them after it."
)


def hop(record: Record) -> Section:
    """What the router as a server adds."""
    found = document(record, RouterHop)
    rows, aims = [], []
    for model, ways in found.results.items():
        for way, each in ways.items():
            figures = [told(spread(getattr(each, name))) for name in each.__struct_fields__]
            rows.append([f"{model}, {way}", *figures])
            added = spread([value / 1e3 for value in each.added_p50_us])
            aims.append(at_most(f"The router adds to the edge server, {model}, {way}, p50", HOP_AIM_MS, added, " ms"))
    head = [
        "model, way",
        "directly, p50 us",
        "routed, p50 us",
        "added, us (median of pairs)",
        "router's CPU, us a request",
        "edge server's CPU, us a request",
        "of a routed one more",
    ]
    return Section(markdown(head, rows), aims=aims)


def routing(record: Record) -> Section:
    """Real runs beside what the simulator said of them."""
    found = document(record, Routing)
    cells = [
        [
            f"**{row.scenario}**" if row.policy == found.rows[0].policy else "",
            row.policy,
            *(f"{value:.3f}" for value in (row.sla_hit_rate, row.predicted.sla_hit_rate, row.predicted_with_drift.sla_hit_rate)),
            f"{row.sla_hit_rate - row.predicted_with_drift.sla_hit_rate:+.3f}",
            f"{row.predicted_with_drift.oracle:.3f}",
            f"{row.cloud_share:.2f} / {row.predicted_with_drift.cloud_share:.2f}",
            str(row.errors),
            why(row),
        ]
        for row in found.rows
    ]
    head = [
        "scenario",
        "policy",
        "in time",
        "predicted",
        "with drift",
        "left",
        "oracle",
        "by the cloud: real / predicted",
        "errors",
        "why it differs",
    ]
    lines = [
        (
            f"{number(found.rate_per_s)} requests a second for {number(found.seconds)} s each, {number(found.sla_ms)} ms each. Alone, the device takes {number(found.edge_ms)} ms, "
            f"the cloud {number(found.cloud_ms)} ms over its 20 ms of network, the router adds {number(found.router_ms)} ms to messages of this size."
        ),
        "",
        *[f"- **{name}**: {line}." for name, line in found.lines.items()],
        "",
        *markdown(head, cells),
        "",
        MISSES,
        "",
        *told_aims(found.rows),
    ]
    return Section(lines, aims=aims(found.rows))


def near(real: float, said: Predicted, requests: int) -> bool:
    """What chance gives: two standard deviations of the simulator's seeds, and two requests at least."""
    return abs(real - said.sla_hit_rate) <= max(2 * said.sla_hit_rate_sd, 2 / requests)


def why(row: Row) -> str:
    """What moves a real run away from what was predicted of it, as far as it was measured."""
    drift = f"the models ran {row.edge_drift:.2f}x (device) and {row.cloud_drift:.2f}x (cloud) as long as alone"
    if near(row.sla_hit_rate, row.predicted, row.requests):
        return "as predicted"
    if near(row.sla_hit_rate, row.predicted_with_drift, row.requests):
        return f"drift: {drift}"
    found, runs = ["more than drift", drift], sum(row.cloud_runs)
    if (for_nobody := runs - round(row.cloud_share * (row.requests - row.errors))) > 0:
        found.append(f"{for_nobody} of the cloud's {runs} runs were for nobody")
    if row.waited_ms is not None:
        who = "cloud" if row.policy != ROUTER else "cloud and router"
        found.append(f"{who} waited {number(row.waited_ms)} ms a request for the core that all but the device share")
    return "; ".join(found)


def aims(rows: Sequence[Row]) -> list[Aim]:
    """Errors when the cloud dies, and how soon its return is noticed."""
    found = {row.policy: row for row in rows if row.scenario == "cloud-down"}
    if ROUTER not in found:
        return []
    mine, made = found[ROUTER], []
    if DEVICE in found:
        alone = found[DEVICE].errors_in_fault
        made.append(
            Aim(
                "for real, the cloud dies: errors that the device alone has not",
                "0",
                f"{mine.errors_in_fault} (device alone: {alone})",
                mine.errors_in_fault <= alone,
            )
        )
    if mine.noticed_s is not None:
        made.append(
            Aim(
                "for real, the cloud returns: noticed after",
                f"<= {number(probe_interval_s())} s",
                f"{number(mine.noticed_s)} s",
                mine.noticed_s <= probe_interval_s(),
            )
        )
    return made


def probe_interval_s() -> float:
    """The longest that the router waits between two health checks of an endpoint that is down."""
    policy = BreakerPolicy()
    return policy.max_check_wait_s * (1 + policy.jitter)


def told_aims(rows: Sequence[Row]) -> list[str]:
    return [f"{aim.what}: {aim.found}, aim {aim.aim}." for aim in aims(rows)]


def loadgen(record: Record) -> Section:
    """MLPerf LoadGen's own verdicts."""
    found = document(record, Loadgen)
    cells = [
        [
            where,
            name,
            "valid" if run.valid else f"**not valid**: {run.why}",
            f"{run.queries:,}",
            *(number(value) for value in (run.p50_ms, run.percentile_ms, run.p99_9_ms, run.per_s)),
        ]
        for where, runs in found.runs.items()
        for name, run in runs.items()
    ]
    valid = [run.valid for runs in found.runs.values() for run in runs.values()]
    lines = [
        (
            f"LoadGen {found.version}, at least {number(found.seconds)} s a run, where MLPerf asks for {number(found.mlperf_seconds)} s: valid by LoadGen's rules for that duration, and no MLPerf "
            f"result. Server: Poisson arrivals at {number(found.rate_per_s)} a second, 99 % within {number(found.sla_ms)} ms."
        ),
        "",
        *markdown(["sent to", "scenario", "LoadGen says", "queries", "p50, ms", "judged percentile, ms", "p99.9, ms", "a second"], cells),
    ]
    return Section(
        lines, aims=[Aim("LoadGen through the router: valid runs", f"{len(valid)} of {len(valid)}", str(sum(valid)), all(valid))]
    )
