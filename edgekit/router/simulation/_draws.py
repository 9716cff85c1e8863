"""Seeded draws of arrivals, service times and network states."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.router.simulation._steps import Steps

__all__ = ["ar_steps", "arrivals", "bounded_pareto", "lognormal", "on_off", "repeat"]

Generator = np.random.Generator


def arrivals(source: Generator, count: int, rate: Steps) -> list[float]:
    """``count`` times of a Poisson process whose rate (requests a second) changes in steps: unit-rate arrivals on the clock of the expected number."""
    expected = np.cumsum(source.exponential(1.0, count)).tolist()
    times, now, done = [], 0.0, 0.0
    for target in expected:
        now = rate.when(now, target - done)
        done = target
        times.append(now)
    return times


def lognormal(source: Generator, count: int, median: float, sigma: float) -> list[float]:
    """Log-normal draws around a median."""
    return [float(value) for value in median * np.exp(source.normal(0.0, sigma, count))]


def bounded_pareto(source: Generator, count: int, least: float, most: float, alpha: float) -> list[float]:
    """Draws from a Pareto distribution cut off at ``most``, by inversion."""
    uniform = source.random(count)
    share = 1.0 - (least / most) ** alpha
    return [float(value) for value in least * (1.0 - uniform * share) ** (-1.0 / alpha)]


def repeat(pattern: Sequence[tuple[float, float]], period_s: float, until_s: float) -> Steps:
    """A pattern of ``(offset, value)`` that comes again every ``period_s``."""
    rounds = max(1, math.ceil(until_s / period_s))
    return Steps([(turn * period_s + offset, value) for turn in range(rounds) for offset, value in pattern])


def on_off(source: Generator, until_s: float, values: tuple[float, float], means_s: tuple[float, float]) -> Steps:
    """A two-state Markov chain in continuous time, which begins in the first state."""
    points, now, state = [], 0.0, 0
    while now < until_s:
        points.append((now, values[state]))
        now += float(source.exponential(means_s[state]))
        state = 1 - state
    return Steps(points)


def ar_steps(source: Generator, until_s: float, every_s: float, median: float, sigma: float, keep: float) -> Steps:
    """A value redrawn every ``every_s``: log-normal around ``median``, each logarithm ``keep`` times the one before plus what keeps the variance."""
    points, now, level = [], 0.0, float(source.normal(0.0, sigma))
    while now < until_s:
        points.append((now, median * math.exp(level)))
        level = keep * level + math.sqrt(1.0 - keep * keep) * float(source.normal(0.0, sigma))
        now += every_s
    return Steps(points)
