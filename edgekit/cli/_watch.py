"""``edgekit route --watch``: a table of what the router does, drawn anew every second."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.cli._output import table

if TYPE_CHECKING:
    from edgekit.router import Tally, TallyRow

__all__ = ["EVERY_S", "draw", "lines_of", "watch"]

EVERY_S = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"
_COLUMNS = ("model", "reason", "tier", "requests", "share", "in time", "hedged", "p50 ms", "p99 ms")


def watch(tally: Tally, title: str, stop: threading.Event) -> None:
    """Draw until ``stop`` is set: over the whole screen of a terminal, one table below the other elsewhere."""
    while not stop.wait(EVERY_S):
        draw(lines_of(tally.explain(), tally.rows(time.monotonic()), title))


def draw(lines: Iterator[str]) -> None:
    """Write the lines in one go, cut to a terminal's width and height."""
    stream = sys.stdout
    if not stream.isatty():
        stream.write("\n".join(lines) + "\n\n")
    else:
        size = os.get_terminal_size(stream.fileno())
        stream.write(_HOME_AND_CLEAR + "\n".join([line[: size.columns] for line in lines][: size.lines - 1]) + "\n")
    stream.flush()


def lines_of(state: Mapping[str, Any], rows: Sequence[TallyRow], title: str) -> Iterator[str]:
    """The table for one moment.

    Args:
        state: what `Router.explain` told.
        rows: what ended within the last minute.
        title: the first line.
    """
    total = sum(row.requests for row in rows)
    met = sum(row.met for row in rows)
    cloud = sum(row.requests for row in rows if row.tier == "cloud")
    yield title
    if total:
        yield f"last minute: {total} requests ({total / 60:.1f}/s), {met / total:.1%} in time, {cloud / total:.1%} by the cloud; {state['open']} open"
    else:
        yield f"last minute: no request; {state['open']} open"
    yield ""
    yield from table([_row(row, total) for row in rows], _COLUMNS)
    yield ""
    yield from table(list(_tiers(state)), ("tier", "state", "load", "drift", "expected ms", "p95 ms", "in time"))
    yield ""
    yield f"hedges: {state['hedges_left']:g} left, {state['hedge_tokens']:g} tokens; retries: {state['retries_left']:g} left"
    yield from _policy(state["policy"])
    if "decision" in state:
        last = state["decision"]
        yield f"last decision: {' then '.join(last['tiers']) or 'refused'}, {last['reason']}{', late' if last['late'] else ''}"


def _row(row: TallyRow, total: int) -> tuple[str, ...]:
    shares = (f"{row.requests / total:.1%}", f"{row.met / row.requests:.1%}", f"{row.hedged / row.requests:.1%}")
    return (row.model, row.reason, row.tier, str(row.requests), *shares, f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}")


def _tiers(state: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The device and each endpoint; estimates are those of the last decision, of the endpoint that it looked at."""
    edge = state["edge"]
    drifts = [f"{value:.2f}" for value in edge["drift"].values()]
    load = f"{edge['running']}/{edge['workers']} run, {edge['waiting']} wait"
    yield ("edge", _breaker(edge["breaker"]), load, " ".join(drifts) or "-", *_estimate(state.get("edge_estimate")))
    chosen = state.get("decision", {}).get("endpoint", "")
    for endpoint in state["cloud"]:
        estimate = state.get("cloud_estimate") if endpoint["url"] == chosen else None
        load = f"{endpoint['in_flight']} of at most {endpoint['limit']:g}"
        yield (endpoint["url"], _breaker(endpoint["breaker"]), load, "-", *_estimate(estimate))


def _breaker(state: str) -> str:
    return {"closed": "well", "open": "left alone", "probing": "being tried"}.get(state, state)


def _estimate(estimate: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if estimate is None or not estimate["known"]:
        return "-", "-", "-"
    return f"{estimate['typical_ms']:.1f}", f"{estimate['slow_ms']:.1f}", f"{estimate['p_meet']:.1%}"


def _policy(policy: Mapping[str, Any]) -> Iterator[str]:
    """Budgets that have a limit, and what is wrong with the policy's file."""
    for window, budget in policy["budget"].items():
        for unit, limit in budget["limit"].items():
            if limit is not None:
                yield f"budget of the {window}: {budget['spent'][unit]:g} of {limit:g} {unit}"
    if policy["problem"]:
        yield f"policy: {policy['problem']}; the one before stays in force"
