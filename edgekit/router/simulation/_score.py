"""From what became of the requests to the figures of the report, with confidence intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from edgekit.router.simulation._oracle import HOUR_S, Oracle
from edgekit.router.simulation._outcome import Outcome
from edgekit.router.simulation._trace import Trace

__all__ = ["Interval", "Row", "Run", "difference", "hits", "score", "score_oracle", "summarise"]

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (any table); beyond, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z95 = 1.960


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one trace.

    Attributes:
        sla_hit_rate: share of the requests that were answered by the deadline.
        attainment_vs_oracle: that share over the oracle's bound; ``None`` where the bound is 0.
        cloud_share: attempts sent to the cloud a request.
        cloud_share_vs_oracle_least: that over the least with which the oracle's hits can be had; ``None`` where that is 0.
        cloud_share_vs_blind_least: that over the least, in expectation, of one who does not know how long a request will run on the device.
        duplicates: attempts begun beyond the first that did not fail, a request.
        refused: share that got no answer at all.
        budget_overruns: attempts beyond the operator's cloud budget, of all requests; 0 where there is none.
        p50_ms, p99_ms: latency of those that were answered.
        p95_coverage: share of first attempts that ended by their predicted 95th percentile; ``None`` for policies that predict nothing.
        decision_us_p50, decision_us_p99: processor time of accepting a request, on the machine that ran the simulation.
    """

    sla_hit_rate: float
    attainment_vs_oracle: float | None
    cloud_share: float
    cloud_share_vs_oracle_least: float | None
    cloud_share_vs_blind_least: float | None
    duplicates: float
    refused: float
    budget_overruns: float
    p50_ms: float | None
    p99_ms: float | None
    p95_coverage: float | None
    decision_us_p50: float | None
    decision_us_p99: float | None


class Interval(msgspec.Struct, frozen=True):
    """Half widths of 95 % confidence intervals of the means over seeds (Student's t); ``None`` for a single seed."""

    sla_hit_rate: float | None
    attainment_vs_oracle: float | None
    cloud_share: float | None
    cloud_share_vs_oracle_least: float | None
    duplicates: float | None


class Row(Run, frozen=True, kw_only=True):
    """One policy in one scenario: a `Run` of means over seeds.

    Attributes:
        requests: of all seeds together.
        half_width: of 95 % intervals.
        parameters: what the policy was set to, where that was chosen for the scenario.
    """

    scenario: str
    policy: str
    fault: bool
    requests: int
    seeds: int
    half_width: Interval
    parameters: dict[str, int] = {}


def hits(trace: Trace, outcome: Outcome) -> int:
    """Requests that were answered by their deadline."""
    return sum(at <= arrive + sla for at, arrive, sla in zip(outcome.answered_s, trace.arrive_s, trace.sla_s, strict=True))


def score(trace: Trace, outcome: Outcome, oracle: Oracle) -> Run:
    """Figures of one run."""
    count = len(trace)
    latencies = sorted(at - arrive for at, arrive in zip(outcome.answered_s, trace.arrive_s, strict=True) if at == at)  # noqa: PLR0124 - not NaN
    in_time = hits(trace, outcome)
    sent = sum(outcome.cloud_sends)
    begun = zip(outcome.edge_runs, outcome.cloud_sends, outcome.failed_attempts, strict=True)
    decisions = sorted(outcome.decision_ns)
    coverage = outcome.coverage()
    return Run(
        sla_hit_rate=in_time / count,
        attainment_vs_oracle=in_time / oracle.hits if oracle.hits else None,
        cloud_share=sent / count,
        cloud_share_vs_oracle_least=sent / oracle.least_cloud if oracle.least_cloud else None,
        cloud_share_vs_blind_least=sent / oracle.blind_least_cloud if oracle.blind_least_cloud else None,
        duplicates=sum(max(0, edge + cloud - failed - 1) for edge, cloud, failed in begun) / count,
        refused=sum(outcome.refused) / count,
        budget_overruns=_overruns(outcome.sent_s, trace.cloud_an_hour) / count,
        p50_ms=_scaled(latencies, 0.5, 1e3),
        p99_ms=_scaled(latencies, 0.99, 1e3),
        p95_coverage=None if math.isnan(coverage) else coverage,
        decision_us_p50=_scaled(decisions, 0.5, 1e-3),
        decision_us_p99=_scaled(decisions, 0.99, 1e-3),
    )


def score_oracle(trace: Trace, oracle: Oracle) -> Run:
    """The bounds as a row; the latencies are of the schedule that gives the device as much as it can do in time."""
    count, latencies = len(trace), sorted(oracle.latencies_s)
    return Run(
        sla_hit_rate=oracle.hits / count,
        attainment_vs_oracle=1.0 if oracle.hits else None,
        cloud_share=oracle.least_cloud / count,
        cloud_share_vs_oracle_least=1.0 if oracle.least_cloud else None,
        cloud_share_vs_blind_least=oracle.least_cloud / oracle.blind_least_cloud if oracle.blind_least_cloud else None,
        duplicates=0.0,
        refused=1.0 - oracle.hits / count,
        budget_overruns=0.0,
        p50_ms=_scaled(latencies, 0.5, 1e3),
        p99_ms=_scaled(latencies, 0.99, 1e3),
        p95_coverage=None,
        decision_us_p50=None,
        decision_us_p99=None,
    )


def _overruns(sent_s: Sequence[float], an_hour: int | None) -> int:
    """How far the fullest hour is over the budget."""
    if an_hour is None:
        return 0
    first, most = 0, 0
    for last, at in enumerate(sent_s):
        while sent_s[first] <= at - HOUR_S:
            first += 1
        most = max(most, last - first + 1)
    return max(0, most - an_hour)


def summarise(scenario: str, policy: str, fault: bool, requests: int, runs: Sequence[Run], parameters: dict[str, int]) -> Row:
    """Means over the runs of different seeds, with intervals where there are several."""
    means = {name: _mean([getattr(run, name) for run in runs]) for name in Run.__struct_fields__}
    widths = {name: _half_width([getattr(run, name) for run in runs]) for name in Interval.__struct_fields__}
    return Row(
        scenario=scenario,
        policy=policy,
        fault=fault,
        requests=requests,
        seeds=len(runs),
        half_width=Interval(**widths),
        parameters=parameters,
        **means,  # type: ignore[arg-type]
    )


def difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of first less second, and the half width of its 95 % interval; 0 for a single pair."""
    differences = [first - second for first, second in pairs]
    return statistics.fmean(differences), _half_width(differences) or 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _half_width(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    degrees = len(known) - 1
    quantile = _T95[degrees - 1] if degrees <= len(_T95) else _Z95
    return quantile * statistics.stdev(known) / math.sqrt(len(known))


def _scaled(ordered: Sequence[float], q: float, scale: float) -> float | None:
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] * scale if ordered else None
