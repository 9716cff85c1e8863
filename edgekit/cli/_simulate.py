"""``edgekit simulate``: router policies against the oracle, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli._output import say, show, table

if TYPE_CHECKING:
    from edgekit.router.simulation import Report

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate", short_help="Try routing policies on traces, in virtual time.")(simulate)


def simulate(
    scenario: Annotated[list[str], typer.Option(metavar="NAME", help="A scenario; repeat for several; all when left out.")] = [],  # noqa: B006
    policy: Annotated[list[str], typer.Option(metavar="NAME", help="A policy; repeat for several; all when left out.")] = [],  # noqa: B006
    trace: Annotated[str, typer.Option(metavar="FILE", help="A recorded trace (CSV, docs/simulation.md) instead of scenarios.")] = "",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the first trace; the next ones count up.")] = 1,
    seeds: Annotated[int, typer.Option(min=0, metavar="N", help="Traces a scenario; 0 for three.")] = 0,
    requests: Annotated[int, typer.Option(min=0, metavar="N", help="Requests a trace; 0 for 7500.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, metavar="N", help="Processes; 0 takes one per core.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="Show scenarios and policies, and run nothing.")] = False,
) -> None:
    """Drive the router's own decisions and simpler policies over traces in virtual time, against what one could reach who knew the future."""
    from edgekit.router.simulation import DEFAULT_REQUESTS, DEFAULT_SEEDS
    from edgekit.router.simulation import simulate as run

    if list_:
        _list()
        return
    report = run(
        scenarios=scenario,
        policies=policy,
        trace=trace or None,
        seed=seed,
        seeds=seeds or DEFAULT_SEEDS,
        requests=requests or DEFAULT_REQUESTS,
        jobs=jobs,
        progress=lambda name: say(f"{name}: done"),
    )
    show(report, _lines(report))


def _list() -> None:
    from edgekit.router.simulation import POLICIES, SCENARIOS

    lines = table([(entry.name, "fault" if entry.fault else "", entry.about) for entry in SCENARIOS.values()], ("scenario", "", "what"))
    document = {
        "scenarios": [
            {"scenario": entry.name, "fault": entry.fault, "about": entry.about, "sources": entry.sources} for entry in SCENARIOS.values()
        ],
        "policies": POLICIES,
    }
    show(document, [*lines, "", f"policies: {', '.join(POLICIES)}"])


def _lines(report: Report) -> list[str]:
    header = ("scenario", "policy", "in SLA", "of oracle", "cloud", "of least", "twice", "p50 ms", "p99 ms", "p95 holds", "decision us")
    rows = [
        (
            row.scenario,
            row.policy,
            _share(row.sla_hit_rate, row.half_width.sla_hit_rate),
            _number(row.attainment_vs_oracle, ".3f"),
            _share(row.cloud_share, row.half_width.cloud_share),
            _number(row.cloud_share_vs_oracle_least, ".2f"),
            f"{row.duplicates:.2%}",
            _number(row.p50_ms, ".1f"),
            _number(row.p99_ms, ".1f"),
            _number(row.p95_coverage, ".1%"),
            f"{_number(row.decision_us_p50, '.0f')} / {_number(row.decision_us_p99, '.0f')}",
        )
        for row in report.scenarios
    ]
    missed = [f"  {aim.scenario}: {aim.aim}: {_measured(aim.measured)}" for aim in report.aims if not aim.met]
    verdict = [f"{sum(aim.met for aim in report.aims)} of {len(report.aims)} aims met{'; not met:' if missed else ''}", *missed]
    return [*table(rows, header), *(["", *verdict] if report.aims else [])]


def _share(value: float, half_width: float | None) -> str:
    return f"{value:.2%}" if half_width is None else f"{value:.2%} ±{half_width:.2%}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _measured(value: float | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:.4g}"
