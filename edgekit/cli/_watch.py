"""``edgekit route --watch``: a table of what the router does, drawn anew every second."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.cli._output import size, table

if TYPE_CHECKING:
    from edgekit.router import Tally, TallyRow

__all__ = ["EVERY_S", "draw", "lines_of", "watch"]

EVERY_S = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"
# Names come last: what a narrow terminal cuts off is the end of a long name, and no figure.
_ROWS = ("reason", "tier", "requests", "in time", "hedged", "p50 ms", "p99 ms", "model")
_TIERS = ("state", "in flight", "drift", "p50 ms", "p95 ms", "in time", "tier")


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
        state: what `Router.explain` told; its tiers and budgets come first, since there are always as many.
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
    yield from table(list(_tiers(state)), _TIERS)
    yield ""
    yield f"hedges: {state['hedges_left']:g} left, {state['hedge_tokens']:g} tokens; retries: {state['retries_left']:g} left"
    yield from _policy(state["policy"])
    if "decision" in state:
        last = state["decision"]
        yield f"last decision: {' then '.join(last['tiers']) or 'refused'}, {last['reason']}{', late' if last['late'] else ''}"
    yield ""
    # Last, and the most frequent first: what a low terminal cuts off is the rarest.
    yield from table([_row(row) for row in rows], _ROWS)


def _row(row: TallyRow) -> tuple[object, ...]:
    shares = (f"{row.met / row.requests:6.1%}", f"{row.hedged / row.requests:6.1%}")
    return (row.reason, row.tier, row.requests, *shares, round(row.p50_ms, 1), round(row.p99_ms, 1), row.model)


def _tiers(state: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The device and each endpoint; estimates are those of the last decision, of the endpoint that it looked at."""
    edge = state["edge"]
    drifts = [f"{value:.2f}" for value in edge["drift"].values()]
    load = f"{edge['running']} of {edge['workers']}, {edge['waiting']} wait"
    yield (_breaker(edge["breaker"]), load, " ".join(drifts) or "-", *_estimate(state.get("edge_estimate")), "edge")
    chosen = state.get("decision", {}).get("endpoint", "")
    for endpoint in state["cloud"]:
        estimate = state.get("cloud_estimate") if endpoint["url"] == chosen else None
        load = f"{endpoint['in_flight']} of {endpoint['limit']:.0f}"
        yield (_breaker(endpoint["breaker"]), load, "-", *_estimate(estimate), endpoint["url"].removeprefix("http://"))


def _breaker(state: str) -> str:
    return {"closed": "well", "open": "left alone", "probing": "being tried"}.get(state, state)


def _estimate(estimate: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if estimate is None or not estimate["known"]:
        return "-", "-", "-"
    return f"{estimate['typical_ms']:6.1f}", f"{estimate['slow_ms']:6.1f}", f"{estimate['p_meet']:6.1%}"


_SPENT: Mapping[str, Callable[[float, float], str]] = {
    "requests": lambda spent, limit: f"{spent:,.0f} of {limit:,.0f} requests",
    "bytes": lambda spent, limit: f"{size(spent)} of {size(limit)}",
    "dollars": lambda spent, limit: f"${spent:,.4f} of ${limit:,.2f}",
}


def _policy(policy: Mapping[str, Any]) -> Iterator[str]:
    """Budgets that have a limit, and what is wrong with the policy's file."""
    for window, budget in policy["budget"].items():
        parts = [_SPENT[unit](budget["spent"][unit], limit) for unit, limit in budget["limit"].items() if limit is not None]
        if parts:
            yield f"budget of the {window}: {', '.join(parts)}"
    if policy["problem"]:
        yield f"policy: {policy['problem']}; the one before stays in force"
