"""What requests noticed of hot swaps: which of them met one, and how their p99 compares with that of the quiet time beside it. Pure.

Times are seconds on one monotonic clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

AFTER_S = 0.1  # from the first answer of the new version on, in which the version that went is unloaded
PHASES = ("installing", "loading", "neither")
DRAWS = 1000  # of the bootstrap
LEVEL = 95.0  # percent of them that the interval holds


class Answer(NamedTuple):
    """One request: when it was due and answered, and by which version."""

    due: float
    done: float
    version: str


class Swap(NamedTuple):
    """What the operator did: began to install ``version``, and was done with that and with the removal of the other."""

    began: float
    installed: float
    version: str


class Span(NamedTuple):
    """A swap as clients met it; ``end`` is a moment after the first answer of the new version."""

    began: float
    installed: float
    end: float


class Unit(NamedTuple):
    """One swap beside the quiet time that follows it, which is halved: latencies in ms."""

    swapping: list[float]
    quiet: tuple[list[float], list[float]]


class Round(NamedTuple):
    """One round: what each swap and the quiet time after it held, and latencies by phase (`PHASES`)."""

    units: list[Unit]
    phases: dict[str, list[float]]


def spans(answers: Sequence[Answer], swaps: Sequence[Swap]) -> list[Span]:
    """When each swap began and ended; one whose version never answered lasts until the next begins."""
    found = []
    following = [swap.began for swap in swaps[1:]] + [float("inf")]
    for swap, limit in zip(swaps, following, strict=True):
        first = (answer.done for answer in answers if answer.due >= swap.began and answer.version == swap.version)
        found.append(Span(swap.began, swap.installed, min(min(first, default=limit) + AFTER_S, limit)))
    return found


def sort_round(answers: Sequence[Answer], swaps: Sequence[Swap], follows: Sequence[tuple[float, float]], end: float) -> Round:
    """Give every request of a round to a swap or to the quiet time after one. What came before the first swap is left out.

    Args:
        follows: when the server began and ended to take over what had changed in its repository.
        end: of the round.
    """
    found = spans(answers, swaps)
    units = [Unit([], ([], [])) for _ in found]
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    middles = [(span.end + limit) / 2 for span, limit in zip(found, [span.began for span in found[1:]] + [end], strict=True)]
    for answer in answers:
        index = bisect.bisect([span.began for span in found], answer.due) - 1
        if index < 0:
            continue
        latency_ms = (answer.done - answer.due) * 1e3
        if answer.due <= found[index].end:
            units[index].swapping.append(latency_ms)
            phases[phase_of(answer, found[index], follows)].append(latency_ms)
        else:
            units[index].quiet[answer.due > middles[index]].append(latency_ms)
    return Round(units, phases)


def phase_of(answer: Answer, span: Span, follows: Iterable[tuple[float, float]]) -> str:
    """What of a swap a request met: the server at work (``loading``, up to the end of what it replaces), else the operator (``installing``), or ``neither``."""
    if any(answer.due <= ended and answer.done >= began for began, ended in follows):
        return "loading"
    return "installing" if answer.due <= span.installed else "neither"


def ratio(over: Sequence[float] | np.ndarray, under: Sequence[float] | np.ndarray) -> float:
    """Of two p99s."""
    return float(np.percentile(over, 99) / np.percentile(under, 99))


def pooled(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 1) -> dict[str, float]:
    """p99 of all first parts over p99 of all second parts, and the bootstrap's interval (`LEVEL` percent): whole pairs are drawn again with replacement, because
    requests of one swap are not independent of each other.
    """
    parts = [(np.asarray(over), np.asarray(under)) for over, under in pairs]
    rng = np.random.default_rng(seed)

    def of(chosen: Iterable[int]) -> float:
        drawn = [parts[index] for index in chosen]
        return ratio(np.concatenate([over for over, _ in drawn]), np.concatenate([under for _, under in drawn]))

    draws = [of(rng.integers(0, len(parts), len(parts))) for _ in range(DRAWS)]
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"ratio": round(of(range(len(parts))), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def latencies(values: Sequence[float]) -> dict[str, Any]:
    """Percentiles of some requests; their number alone where there are too few to speak of a p99."""
    if len(values) < 100:
        return {"requests": len(values)}
    told = {f"p{percent}_ms": round(float(np.percentile(values, percent)), 3) for percent in (50, 95, 99)}
    return told | {"max_ms": round(max(values), 3), "requests": len(values)}


def judge(rounds: Sequence[Round]) -> dict[str, Any]:
    """Everything that was measured, told. ``p99_ratio`` is of all rounds together; ``p99_ratios`` has each round's own."""
    units = [unit for one in rounds for unit in one.units]
    own = [(_all(unit.swapping for unit in one.units), _all(half for unit in one.units for half in unit.quiet)) for one in rounds]
    halves = [tuple(_all(unit.quiet[half] for unit in one.units) for half in (0, 1)) for one in rounds]
    return {
        "p99_ratio": pooled([(unit.swapping, unit.quiet[0] + unit.quiet[1]) for unit in units]),
        "quiet_to_quiet": pooled([unit.quiet for unit in units]),
        "p99_ratios": [round(ratio(during, quiet), 3) for during, quiet in own],
        "quiet_to_quiets": [round(ratio(first, second), 3) for first, second in halves],
        "swaps": len(units),
        "phases": {"quiet": latencies(_all(quiet for _, quiet in own))}
        | {name: latencies(_all(one.phases[name] for one in rounds)) for name in PHASES},
        "rounds": [{"quiet": latencies(quiet), "swapping": latencies(during)} for during, quiet in own],
    }


def _all(parts: Iterable[Sequence[float]]) -> list[float]:
    return [value for part in parts for value in part]
