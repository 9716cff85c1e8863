"""A rollout at work: who gets which version, and what was seen of each."""

from __future__ import annotations

import hashlib
import itertools
import threading

from edgekit.errors import DeadlineError, OverloadedError, RequestError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.runtime._rollout import Counts, Observations, Progress, Rollout, progress_of, resume_rollout

__all__ = ["SPLIT_KEY", "Trial", "split_position"]

_SEQUENCE = "sequence_id"  # Triton's parameter
SPLIT_KEY = "split_key"  # request parameter; requests of one key get one version


def split_position(key: str, salt: str) -> float:
    """Where a key falls between 0 and 1: the same in every process, another for every rollout, spread evenly (64 bits of BLAKE2b, RFC 7693)."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Trial:
    """The rollout of one model in this process. Safe from several threads.

    Args:
        name: of the model.
        rollout: as the repository's state has it.
        now_s: seconds since the Unix epoch.
        progress: of the step, as an earlier process wrote it down.

    Attributes:
        rollout: with what the guard has spent so far.
        stopped: no request goes to the candidate any more; set before the decision is written down.
    """

    def __init__(self, name: str, rollout: Rollout, now_s: float, progress: Progress | None = None) -> None:
        self.name = name
        self.begun = rollout
        self.rollout, seen = resume_rollout(rollout, now_s, progress)
        self.stopped = False
        self._salt = f"{name}\0{rollout.candidate}"
        self._unnamed = itertools.count()
        self._lock = threading.Lock()
        self._counts = {rollout.baseline: [*seen.baseline], rollout.candidate: [*seen.candidate]}
        self._kept = seen
        self._kept_s = now_s
        self._problem = ""

    def choose(self, request: InferRequest) -> str:
        """The version that answers a request that names none. One key (the parameter ``split_key``, a sequence's id, or the request's) always gets the same."""
        rollout = self.rollout
        if rollout.mode == "shadow" or self.stopped:
            return rollout.baseline
        return rollout.candidate if self._position(request) < rollout.share else rollout.baseline

    def shadows(self, request: InferRequest) -> bool:
        """The candidate gets a copy of this request. Sequences have none: their answers depend on state that a copy would not find."""
        if self.rollout.mode != "shadow" or self.stopped or request.parameters.get(_SEQUENCE):
            return False
        return self._position(request) < self.rollout.share

    def record(self, version: str, answer: InferResponse | Exception, seconds: float) -> None:
        """Count an answer. What the client did wrong counts for nobody."""
        slow = error = 0
        if isinstance(answer, (DeadlineError, OverloadedError)):
            slow = 1
        elif isinstance(answer, RequestError):
            return
        elif isinstance(answer, Exception):
            error = 1
        elif self.rollout.limits.slo_ms and seconds * 1e3 > self.rollout.limits.slo_ms:
            slow = 1
        counts = self._counts.get(version)
        if counts is not None:
            with self._lock:
                counts[0] += 1
                counts[1] += error
                counts[2] += slow

    def failed(self, problem: str) -> None:
        """The candidate cannot be loaded."""
        self._problem = problem

    def seen(self) -> Observations:
        """What was counted in this step."""
        with self._lock:
            baseline, candidate = (Counts(*self._counts[version]) for version in (self.rollout.baseline, self.rollout.candidate))
        return Observations(baseline, candidate, self._problem)

    def to_keep(self, now_s: float, interval_s: float) -> Progress | None:
        """The step's progress, where that changed and was not asked for within ``interval_s``."""
        seen = self.seen()
        if now_s - self._kept_s < interval_s or seen == self._kept:
            return None
        self._kept, self._kept_s = seen, now_s
        return progress_of(self.rollout, seen, now_s)

    def step(self, rollout: Rollout, begun: Rollout) -> None:
        """Go on with the next step; ``begun`` is how the state has it."""
        with self._lock:
            for counts in self._counts.values():
                counts[:] = [0, 0, 0]
            self.rollout, self.begun = rollout, begun

    def _position(self, request: InferRequest) -> float:
        asked = request.parameters
        key = asked.get(SPLIT_KEY) or asked.get(_SEQUENCE) or request.id or next(self._unnamed)
        return split_position(str(key), self._salt)
