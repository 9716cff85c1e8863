"""Policies over traces: `simulate`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import msgspec

from edgekit.errors import UnknownNameError, UsageError
from edgekit.router._budgets import Book, BudgetLimits, Budgets, Limit
from edgekit.router._events import Steering
from edgekit.router._pilot import Pilot, PilotOptions
from edgekit.router.simulation._aims import Aim, judge
from edgekit.router.simulation._baselines import AlwaysHedge, CloudOnly, LeastExpected, LocalOnly, RandomTier, StaticThreshold
from edgekit.router.simulation._oracle import clairvoyant
from edgekit.router.simulation._recorded import read_trace
from edgekit.router.simulation._scenarios import SCENARIOS, make_trace
from edgekit.router.simulation._score import Row, Run, hits, score, score_oracle, summarise
from edgekit.router.simulation._trace import Trace
from edgekit.router.simulation._world import MODEL, World

__all__ = ["DEFAULT_REQUESTS", "DEFAULT_SEEDS", "POLICIES", "THRESHOLDS", "Report", "play", "simulate", "steering"]

EDGEKIT, ORACLE, STATIC = "edgekit", "oracle", "static-threshold"
POLICIES = (EDGEKIT, ORACLE, "local-only", "cloud-only", STATIC, "least-expected", "always-hedge", "random")
# The static threshold is the best of these for the scenario, found on a trace of another seed: an operator would have tuned it on last week's traffic.
THRESHOLDS = (1, 2, 3, 4, 5, 6, 8, 10, 14)
TUNING_SEED, TUNING_REQUESTS = 1_000_003, 4000
DEFAULT_REQUESTS, DEFAULT_SEEDS = 7500, 3

_Unit = tuple[str, int, tuple[str, ...], int]  # scenario, seed, policies, requests


class Report(msgspec.Struct, frozen=True):
    """What a simulation found.

    Attributes:
        scenarios: one row per scenario and policy.
        aims: what the router aims at, and whether it was met.
    """

    seed: int
    seeds: int
    scenarios: list[Row]
    aims: list[Aim]


def simulate(
    *,
    scenarios: Sequence[str] = (),
    policies: Sequence[str] = (),
    trace: str | Path | None = None,
    seed: int = 1,
    seeds: int = DEFAULT_SEEDS,
    requests: int = DEFAULT_REQUESTS,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Drive policies over traces in virtual time.

    Args:
        scenarios: names; all when empty.
        policies: names; all when empty. The oracle is computed in any case.
        trace: a recorded trace (CSV) instead of scenarios; the seed then only moves the policies' own chance.
        seed: of the first trace; the next ones count up.
        seeds: traces a scenario.
        requests: a trace; of a recorded one, at most so many.
        jobs: processes; 0 for one a core. With more than one, a script calls this below ``if __name__ == "__main__"``.
        progress: told the name of each scenario that is done.

    Raises:
        UsageError: a name or number that cannot be.
        RequestError: the trace's file is wrong.
    """
    _refuse(scenarios, policies, seeds, requests, trace)
    chosen = tuple(policies) or POLICIES
    names = [str(trace)] if trace is not None else [*(scenarios or SCENARIOS)]
    units: list[_Unit] = [(name, seed + turn, chosen, requests) for name in names for turn in range(seeds)]
    work = _run_recorded if trace is not None else _run_scenario
    found: dict[str, list[_Found]] = {name: [] for name in names}
    jobs = min(jobs or os.cpu_count() or 1, len(units))
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            _collect(units, pool.map(work, units), found, seeds, progress)
    else:
        _collect(units, map(work, units), found, seeds, progress)
    rows = [row for name in names for row in _rows(name, found[name], chosen)]
    runs = {(name, policy): [result.runs[policy] for result in found[name]] for name in names for policy in chosen}
    return Report(seed, seeds, rows, judge(rows, EDGEKIT, runs))


class _Found(msgspec.Struct):
    """What one trace gave: the runs by policy."""

    fault: bool
    requests: int
    runs: dict[str, Run]
    parameters: dict[str, dict[str, int]]


def play(trace: Trace, policies: Sequence[str], seed: int, threshold: int = 0) -> dict[str, Run]:
    """What some policies reach on one trace.

    Args:
        trace: what happens.
        policies: some of `POLICIES`.
        seed: of the policies' own chance.
        threshold: of ``static-threshold``.
    """
    oracle = clairvoyant(trace)
    return {
        policy: score_oracle(trace, oracle)
        if policy == ORACLE
        else score(trace, World(trace, steering(policy, trace, seed, threshold)).run(), oracle)
        for policy in policies
    }


def steering(policy: str, trace: Trace, seed: int, threshold: int = 0) -> Steering:
    """A new policy of this name for a trace.

    Args:
        policy: one of `POLICIES`, not the oracle.
        trace: tells workers, endpoints and the bench.
        seed: of the policy's own chance.
        threshold: of ``static-threshold``.
    """
    workers, endpoints, budgets = trace.workers, len(trace.endpoints), _budgets(trace)
    source = random.Random(seed)
    if policy == EDGEKIT:
        pilot = Pilot(PilotOptions(workers=workers), endpoints, source, budgets)
        pilot.seed_edge(MODEL, trace.payload_bytes[0], trace.bench_s, 0.0)
        return pilot
    if policy == "random":
        return RandomTier(workers, endpoints, source, budgets)
    if policy == STATIC:
        return StaticThreshold(workers, endpoints, threshold, budgets)
    if policy == "least-expected":
        return LeastExpected(workers, endpoints, median(trace.bench_s) if trace.bench_s else 0.0, budgets)
    simple = {"local-only": LocalOnly, "cloud-only": CloudOnly, "always-hedge": AlwaysHedge}
    return simple[policy](workers, endpoints, budgets)


def _budgets(trace: Trace) -> Budgets | None:
    """The operator's, of one run."""
    return None if trace.cloud_an_hour is None else Budgets(Book(BudgetLimits(hour=Limit(requests=trace.cloud_an_hour))))


def _refuse(scenarios: Sequence[str], policies: Sequence[str], seeds: int, requests: int, trace: str | Path | None) -> None:
    for name in scenarios:
        if name not in SCENARIOS:
            raise UnknownNameError("--scenario", name, SCENARIOS, "edgekit simulate --list shows them")
    for name in policies:
        if name not in POLICIES:
            raise UnknownNameError("--policy", name, POLICIES, "edgekit simulate --list shows them")
    for flag, value in (("--seeds", seeds), ("--requests", requests)):
        if value < 1:
            raise UsageError(flag, str(value), "1 or more")
    if trace is not None and scenarios:
        raise UsageError("--trace", "both a file and scenarios", "one of them", "leave --scenario out")


def _collect(
    units: Sequence[_Unit], results: Iterable[_Found], found: dict[str, list[_Found]], seeds: int, progress: Callable[[str], None] | None
) -> None:
    for (name, *_), result in zip(units, results, strict=True):
        found[name].append(result)
        if progress is not None and len(found[name]) == seeds:
            progress(name)


def _run_scenario(unit: _Unit) -> _Found:
    name, seed, policies, requests = unit
    return _found(make_trace(name, requests, seed), policies, seed, _tuned_threshold(name) if STATIC in policies else 0)


def _run_recorded(unit: _Unit) -> _Found:
    path, seed, policies, requests = unit
    trace = read_trace(Path(path), requests)
    return _found(trace, policies, seed, _best_threshold(trace) if STATIC in policies else 0)


def _found(trace: Trace, policies: Sequence[str], seed: int, threshold: int) -> _Found:
    parameters = {STATIC: {"threshold": threshold}} if STATIC in policies else {}
    return _Found(trace.fault, len(trace), play(trace, policies, seed, threshold), parameters)


@lru_cache
def _tuned_threshold(name: str) -> int:
    return _best_threshold(make_trace(name, TUNING_REQUESTS, TUNING_SEED))


def _best_threshold(trace: Trace) -> int:
    """The one with the most hits, of those the one that sends least to the cloud."""

    def merit(threshold: int) -> tuple[int, int]:
        outcome = World(trace, steering(STATIC, trace, 0, threshold), timed=False).run()
        return hits(trace, outcome), -sum(outcome.cloud_sends)

    return max(THRESHOLDS, key=merit)


def _rows(name: str, found: Sequence[_Found], policies: Sequence[str]) -> list[Row]:
    first = found[0]
    requests = sum(result.requests for result in found)
    return [
        summarise(name, policy, first.fault, requests, [result.runs[policy] for result in found], first.parameters.get(policy, {}))
        for policy in policies
    ]
