"""What the router aims at, row by row, and whether it was met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgekit.router.simulation._score import Row, Run, difference

__all__ = ["Aim", "judge"]

STEADY_ATTAINMENT, FAULT_ATTAINMENT = 0.97, 0.93
MOST_CLOUD = 1.15
MOST_DUPLICATES = 0.02
COVERAGE = (0.93, 0.97)
DECISION_P50_US, DECISION_P99_US = 20.0, 50.0


class Aim(msgspec.Struct, frozen=True):
    """One aim in one scenario.

    Attributes:
        aim: what is wanted, in words.
        measured: the figure, or the names of the policies that stand against it.
        met: whether it holds.
    """

    scenario: str
    aim: str
    measured: float | list[str]
    met: bool


def judge(rows: Sequence[Row], policy: str, runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[Aim]:
    """The aims of ``policy`` in every scenario that it was run in; what cannot be said (no oracle's hits, no prediction) is left out.

    Args:
        rows: of all policies.
        policy: whose aims.
        runs: by scenario and policy, in the order of the seeds, for differences trace by trace.
    """
    aims: list[Aim] = []
    for row in rows:
        if row.policy == policy:
            others = [other.policy for other in rows if other.scenario == row.scenario and other.policy not in (policy, "oracle")]
            aims += _figures(row)
            if others:
                aims += _comparisons(row.scenario, runs[row.scenario, policy], {name: runs[row.scenario, name] for name in others})
    return aims


def _figures(row: Row) -> list[Aim]:
    attainment = FAULT_ATTAINMENT if row.fault else STEADY_ATTAINMENT
    wanted = (
        (f"SLA hits at least {attainment:g} of the oracle's", row.attainment_vs_oracle, attainment, None),
        (f"cloud share at most {MOST_CLOUD:g} of the oracle's least", row.cloud_share_vs_oracle_least, None, MOST_CLOUD),
        (f"duplicates at most {MOST_DUPLICATES:g}", row.duplicates, None, MOST_DUPLICATES),
        ("no attempt beyond the cloud budget", row.budget_overruns, None, 0.0),
        (f"predicted p95 covers {COVERAGE[0]:g} to {COVERAGE[1]:g}", row.p95_coverage, *COVERAGE),
        (f"decision p50 at most {DECISION_P50_US:g} us", row.decision_us_p50, None, DECISION_P50_US),
        (f"decision p99 at most {DECISION_P99_US:g} us", row.decision_us_p99, None, DECISION_P99_US),
    )
    return [
        Aim(row.scenario, words, value, (least is None or value >= least) and (most is None or value <= most))
        for words, value, least, most in wanted
        if value is not None
    ]


def _comparisons(scenario: str, ours: Sequence[Run], others: Mapping[str, Sequence[Run]]) -> list[Aim]:
    """Trace by trace: a difference counts when its 95 % interval over seeds leaves 0 out; of a single trace any difference does."""
    more, cheaper = [], []
    for name, theirs in others.items():
        hits, hits_width = difference([(run.sla_hit_rate, mine.sla_hit_rate) for run, mine in zip(theirs, ours, strict=True)])
        cloud, cloud_width = difference([(run.cloud_share, mine.cloud_share) for run, mine in zip(theirs, ours, strict=True)])
        if hits > hits_width:
            more.append(name)
        if hits >= -hits_width and cloud < -cloud_width:
            cheaper.append(name)
    return [
        Aim(scenario, "no baseline hits more often, at any cost", more, not more),
        Aim(scenario, "no baseline hits as often with less cloud", cheaper, not cheaper),
    ]
