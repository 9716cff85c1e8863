"""When a candidate version takes more requests, takes over, or goes: the rule of rollouts. Pure; the time is an argument.

A canary takes a growing share of the requests (its *steps*); a split keeps one share; a shadow gets copies whose answers are thrown away. All are
guarded alike. The guard looks at the counts of the running step when the candidate has answered 20, 40, 80, … requests, not all the time: a test
that is repeated until it fails always fails in the end. Look *k* may err with probability ``risk / (k (k + 1))``, which sums to ``risk`` over all
looks, so a candidate that is as good as the limits, or as the baseline beside it, is rolled back with probability ``risk`` at most, however long
the rollout runs. The bounds are exact for independent requests (`edgekit.runtime._binomial`). A burst of slow requests is not independent; that it
hits the baseline too is why a candidate goes only when it is beyond its limit *and* worse than the baseline in the same time.

A canary goes up when it is *shown* to keep the limits: enough requests, enough time, and an upper bound below the limit. Not having failed yet
is not enough: without a failure, 1 % takes about 370 requests to show.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import msgspec

from edgekit.errors import UsageError
from edgekit.runtime._binomial import at_least, more_than_beside, upper_bound

__all__ = [
    "Counts",
    "Observations",
    "Progress",
    "Rollout",
    "RolloutDecision",
    "RolloutLimits",
    "decide_rollout",
    "progress_of",
    "resume_rollout",
    "start_rollout",
]

Mode = Literal["canary", "split", "shadow"]
Action = Literal["hold", "advance", "promote", "rollback"]

CANARY_STEPS = (0.05, 0.25, 0.5, 1.0)
FIRST_LOOK = 20  # with a limit of 1 %, three failures of 20 are significant; of fewer, hardly any count is
_GATE_RISK = 0.05  # that a step is taken though the candidate is just beyond a limit; the next step's guard still stands


class RolloutLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a candidate is held to.

    Attributes:
        max_error_rate: share of requests that the engine may fail.
        slo_ms: milliseconds, queue included, within which an answer counts as in time; 0 for no limit but the requests' own deadlines.
        max_slow_rate: share of requests that may be slower, or be refused for want of time or place.
        min_requests: of the candidate in a step before the canary may go up.
        min_step_s: seconds of a step, at least.
        risk: probability of rolling back a candidate that keeps its limits, over the whole rollout.
    """

    max_error_rate: float = 0.01
    slo_ms: float = 0.0
    max_slow_rate: float = 0.01
    min_requests: int = 400
    min_step_s: float = 10.0
    risk: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that no rollout could work with."""
        for name, value in (("max_error_rate", self.max_error_rate), ("max_slow_rate", self.max_slow_rate), ("risk", self.risk)):
            if not 0.0 < value < 1.0:
                raise UsageError(name, f"{value:g}", "a share between 0 and 1, both excluded")
        for name, value in (("slo_ms", self.slo_ms), ("min_step_s", self.min_step_s), ("min_requests", self.min_requests)):
            if not 0.0 <= value < float("inf"):
                raise UsageError(name, f"{value:g}", "0 or more")


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout under way.

    Attributes:
        mode: canary, split or shadow.
        baseline: the version that answers the rest, and stays if this goes wrong: the last good.
        candidate: the version on trial.
        steps: shares of the requests; the last of a canary is 1.
        step: index of the present one.
        step_since_s: when it began, seconds since the Unix epoch.
        looks, next_look: how often the guard has looked, and at how many requests it looks again.
        gates, next_gate: the same for going up, in this step.
    """

    mode: Mode
    baseline: str
    candidate: str
    steps: tuple[float, ...]
    limits: RolloutLimits
    step: int = 0
    step_since_s: float = 0.0
    looks: int = 0
    next_look: int = FIRST_LOOK
    gates: int = 0
    next_gate: int = 0

    @property
    def share(self) -> float:
        """Share of the requests that the candidate takes now (of a shadow: that it gets a copy of)."""
        return self.steps[self.step]


class Counts(NamedTuple):
    """Requests of one version in the present step. ``slow`` holds those that were refused for want of time or place; a request is in one of both."""

    requests: int = 0
    errors: int = 0
    slow: int = 0


class Observations(NamedTuple):
    """What was seen in the present step. ``problem`` is why the candidate cannot answer at all; empty when it can."""

    baseline: Counts = Counts()
    candidate: Counts = Counts()
    problem: str = ""


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The running step as a server wrote it down, for the process after it.

    Attributes:
        rollout: with what the guard had spent.
        elapsed_s: of the step.
        baseline, candidate: what was counted in it.
    """

    rollout: Rollout
    elapsed_s: float
    baseline: Counts
    candidate: Counts


class RolloutDecision(NamedTuple):
    """What happens, the state after it, and why in one sentence."""

    action: Action
    rollout: Rollout
    reason: str


def start_rollout(
    mode: str, baseline: str, candidate: str, now_s: float, limits: RolloutLimits | None = None, share: float | None = None
) -> Rollout:
    """A rollout that begins at ``now_s`` (seconds since the Unix epoch).

    Args:
        mode: ``canary``, ``split`` or ``shadow``.
        baseline, candidate: versions.
        limits: what the candidate is held to.
        share: of a split (0.5) or shadow (1), or the first step of a canary (0.05).

    Raises:
        UsageError: an unknown mode, a share outside 0 to 1, or a candidate that is the baseline.
    """
    known = next((one for one in get_args(Mode) if one == mode), None)
    if known is None:
        raise UsageError("rollout", f"{mode[:96]!r}", "canary, split or shadow")
    if candidate == baseline:
        raise UsageError("candidate", f"version {candidate} is what answers now", "another version", "install the new version first")
    if share is not None and not 0.0 < share <= 1.0:
        raise UsageError("share", f"{share:g}", "more than 0 and at most 1")
    limits = limits or RolloutLimits()
    steps: tuple[float, ...]
    if mode == "canary":
        first = CANARY_STEPS[0] if share is None else share
        steps = (first, *(step for step in CANARY_STEPS if step > first))
    else:
        steps = ((0.5 if mode == "split" else 1.0) if share is None else share,)
    return _at_step(Rollout(known, baseline, candidate, steps, limits), 0, now_s)


def progress_of(rollout: Rollout, seen: Observations, now_s: float) -> Progress:
    """What to write down of the running step."""
    return Progress(rollout, now_s - rollout.step_since_s, seen.baseline, seen.candidate)


def resume_rollout(rollout: Rollout, now_s: float, progress: Progress | None = None) -> tuple[Rollout, Observations]:
    """The rollout in a process that begins at ``now_s``, and what counts as seen.

    Without ``progress`` of this very step the step begins again; what risk was spent stays spent. The time in between counts for nothing.
    """
    if progress is None or _identity(progress.rollout) != _identity(rollout):
        return _at_step(rollout, rollout.step, now_s), Observations()
    resumed = msgspec.structs.replace(progress.rollout, step_since_s=now_s - progress.elapsed_s)
    return resumed, Observations(progress.baseline, progress.candidate)


def _identity(rollout: Rollout) -> Rollout:
    """What stays the same throughout a step."""
    return msgspec.structs.replace(rollout, step_since_s=0.0, looks=0, next_look=0, gates=0, next_gate=0)


def decide_rollout(rollout: Rollout, seen: Observations, now_s: float) -> RolloutDecision:
    """What becomes of the rollout at ``now_s``, given what was seen since its step began."""
    if seen.problem:
        return RolloutDecision("rollback", rollout, f"version {rollout.candidate} cannot answer: {seen.problem}")
    if seen.candidate.requests >= rollout.next_look:
        rollout = msgspec.structs.replace(rollout, looks=rollout.looks + 1, next_look=_next_power(FIRST_LOOK, seen.candidate.requests))
        if breach := _breach(rollout, seen):
            return RolloutDecision("rollback", rollout, breach)
    waits_s = rollout.step_since_s + rollout.limits.min_step_s - now_s
    if rollout.mode != "canary" or seen.candidate.requests < rollout.next_gate or waits_s > 0:
        return RolloutDecision("hold", rollout, "")
    gates = rollout.gates + 1
    rollout = msgspec.structs.replace(rollout, gates=gates, next_gate=2 * seen.candidate.requests)
    if doubt := _doubt(rollout, seen):
        return RolloutDecision("hold", rollout, doubt)
    kept = f"{seen.candidate.requests} requests at {rollout.share:.0%} kept the limits"
    if rollout.step + 1 == len(rollout.steps):
        return RolloutDecision("promote", rollout, kept)
    return RolloutDecision("advance", _at_step(rollout, rollout.step + 1, now_s), kept)


def _at_step(rollout: Rollout, step: int, now_s: float) -> Rollout:
    return msgspec.structs.replace(
        rollout, step=step, step_since_s=now_s, next_look=FIRST_LOOK, gates=0, next_gate=max(1, rollout.limits.min_requests)
    )


def _next_power(first: int, reached: int) -> int:
    """The first of ``first``, ``2 first``, ``4 first``, … that is above ``reached``."""
    while first <= reached:
        first *= 2
    return first


def _measures(limits: RolloutLimits, counts: Counts) -> tuple[tuple[str, int, float], ...]:
    """Name, events and limit of what is held."""
    late = f"slower than {limits.slo_ms:g} ms or refused" if limits.slo_ms else "late or refused"
    return ("failed", counts.errors, limits.max_error_rate), (late, counts.slow, limits.max_slow_rate)


def _breach(rollout: Rollout, seen: Observations) -> str:
    """Which limit the candidate breaks, significantly and worse than the baseline; empty when none."""
    # A look's risk covers two measures. Who keeps the limit goes with the first probability, who is as good as the baseline with the second.
    risk = rollout.limits.risk / (rollout.looks * (rollout.looks + 1)) / 2
    baseline, candidate = seen.baseline, seen.candidate
    alone = rollout.mode != "shadow" and rollout.share >= 1.0  # the baseline has no requests to compare with
    pairs = zip(_measures(rollout.limits, candidate), _measures(rollout.limits, baseline), strict=True)
    for (what, events, limit), (_, beside, _) in pairs:
        if at_least(events, candidate.requests, limit) > risk:
            continue
        if alone or more_than_beside(events, candidate.requests, beside, baseline.requests) <= risk:
            return (
                f"{events} of {candidate.requests} requests to version {rollout.candidate} were {what}; "
                f"the limit is {limit:.2%}, and version {rollout.baseline} had {beside} of {baseline.requests}"
            ).replace("were failed", "failed")
    return ""


def _doubt(rollout: Rollout, seen: Observations) -> str:
    """Which limit the candidate is not shown to keep; empty when all are."""
    risk = _GATE_RISK / (rollout.gates * (rollout.gates + 1))
    baseline, candidate = seen.baseline, seen.candidate
    pairs = zip(_measures(rollout.limits, candidate), _measures(rollout.limits, baseline), strict=True)
    for (what, events, limit), (_, beside, _) in pairs:
        allowed = max(limit, beside / baseline.requests if baseline.requests >= rollout.limits.min_requests else 0.0)
        bound = upper_bound(events, candidate.requests, risk)
        if bound > allowed:
            return f"{what}: {events} of {candidate.requests}, so {bound:.2%} at most, which does not show {allowed:.2%} yet"
    return ""
