"""The rollouts of a server: feeds `decide_rollout` with what was seen, and does what it says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edgekit.errors import EdgeKitError, NotFoundError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.runtime._compare import thresholds_for
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._result_cache import CACHE_PARAMETER
from edgekit.runtime._rollout import Rollout, RolloutDecision, decide_rollout
from edgekit.runtime._shadow import Shadow
from edgekit.runtime._store import PathStore
from edgekit.runtime._trial import Trial
from edgekit.runtime._versions import ModelState, end_rollout

__all__ = ["Rollouts"]

_log = logging.getLogger(__name__)
_INTERVAL_S = 0.25  # between looks at the counts and at the store: an operator waits for neither, and both cost microseconds
_KEEP_S = 10.0  # between two writings of a trial's counts: what a killed server loses of them, and one small file in that time for a device's flash
_EVENTS = {"promoted": "promote", "rolled_back": "rollback"}


class Rollouts:
    """Watches the trials of a repository in a thread of its own, and the store for what other processes change.

    Args:
        repository: whose rollouts.
        run: answers a shadow's copies.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, repository: ModelRepository, run: Callable[[InferRequest], InferResponse], clock: Callable[[], float] = time.time
    ) -> None:
        self._repository = repository
        self._run = run
        self._clock = clock
        self._shadows: dict[Trial, Shadow] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._follower: threading.Thread | None = None

    def start(self, *more: Callable[[], None]) -> None:
        """Begin to watch; ``more`` is called as often."""
        self._watcher = threading.Thread(target=self._loop, args=(self.check, *more), name="edgekit-rollouts", daemon=True)
        self._watcher.start()
        if not isinstance(self._repository.store, PathStore):
            # A load may take minutes; the guard must not wait for it.
            self._follower = threading.Thread(target=self._loop, args=(self._repository.follow,), name="edgekit-follow", daemon=True)
            self._follower.start()

    def close(self) -> None:
        """End the threads; shadows drop what waits."""
        self._stop.set()
        for thread in (self._watcher, self._follower):
            if thread is not None:
                thread.join()
        with self._lock:
            shadows, self._shadows = list(self._shadows.values()), {}
        for shadow in shadows:
            shadow.close()
        for trial in self._repository.trials.values():
            self._keep(trial, self._clock(), 0.0)

    def seen(self, trial: Trial, request: InferRequest, answer: InferResponse | Exception, seconds: float) -> None:
        """Count an answer to a request that took part in a trial; of a shadow, pass a copy on. An answer from the result cache says nothing new."""
        if isinstance(answer, InferResponse) and CACHE_PARAMETER in answer.parameters:
            return
        trial.record(request.model_version, answer, seconds)
        if isinstance(answer, InferResponse) and trial.shadows(request):
            shadow = self._shadows.get(trial) or self._shadow(trial)
            if shadow is not None:
                shadow.offer(request, answer)

    def check(self) -> None:
        """Decide every trial once."""
        now_s = self._clock()
        trials = self._repository.trials
        for trial in trials.values():
            self._note_missing(trial)
            decision = decide_rollout(trial.rollout, trial.seen(), now_s)
            if decision.action == "hold":
                trial.rollout = decision.rollout
                self._keep(trial, now_s, _KEEP_S)
            else:
                self._do(trial, decision, now_s)
        with self._lock:
            ended = [trial for trial in self._shadows if trial not in trials.values()]
            shadows = [self._shadows.pop(trial) for trial in ended]
        for shadow in shadows:
            shadow.close()

    def describe(self, name: str, state: ModelState) -> dict[str, Any]:
        """What a client may see of a model's rollout; empty without one, past or present."""
        told: dict[str, Any] = {}
        trial = self._repository.trials.get(name)
        if state.rollout is not None and trial is not None:
            seen = trial.seen()
            told["now"] = {
                "mode": trial.rollout.mode,
                "baseline": trial.rollout.baseline,
                "candidate": trial.rollout.candidate,
                "share": trial.rollout.share,
                "step": f"{trial.rollout.step + 1} of {len(trial.rollout.steps)}",
                "counts": {"baseline": seen.baseline._asdict(), "candidate": seen.candidate._asdict()},
            }
            if (shadow := self._shadows.get(trial)) is not None:
                told["now"]["agreement"] = msgspec.to_builtins(shadow.agreement)
        if state.last is not None:
            told["last"] = msgspec.to_builtins(state.last)
        return told

    def tell_end(self, name: str, before: ModelState, after: ModelState) -> None:
        """Report a rollout that ended between two states, or a rollback without one."""
        if after.last is not None and after.last != before.last and after.last.result in _EVENTS:
            self._repository.tell(_EVENTS[after.last.result], name, after.last.candidate, after.last.reason)

    def _do(self, trial: Trial, decision: RolloutDecision, now_s: float) -> None:
        name, rollout = trial.name, decision.rollout
        if decision.action == "rollback":
            trial.stopped = True  # at once, whatever becomes of the store
            _log.warning("model %s: rolled back from version %s to %s: %s", name, rollout.candidate, rollout.baseline, decision.reason)
        try:
            if decision.action == "advance":
                # The trial takes its step first, so that it recognises the state that is written.
                trial.step(rollout, rollout)
                self._repository.update(name, lambda model: _replaced(model, trial, rollout))
                _log.info(
                    "model %s: version %s takes %.0f%% of the requests: %s", name, rollout.candidate, 100 * rollout.share, decision.reason
                )
            else:
                result = "promoted" if decision.action == "promote" else "rolled_back"
                self._repository.update(name, lambda model: _ended(model, trial, result, decision.reason, now_s))
                _log.info("model %s: version %s %s: %s", name, rollout.candidate, result, decision.reason)
        except EdgeKitError as exc:  # a full disk, say: tried again at the next check
            _log.error("the rollout of model %s cannot be written down: %s", name, exc)
            return
        self._repository.tell(decision.action, name, rollout.candidate, decision.reason)

    def _keep(self, trial: Trial, now_s: float, interval_s: float) -> None:
        """Write down what was counted, for a process that goes on with this one's rollout."""
        if isinstance(self._repository.store, PathStore) or trial.stopped:
            return
        progress = trial.to_keep(now_s, interval_s)
        if progress is None:
            return
        try:
            self._repository.update(
                trial.name, lambda model: msgspec.structs.replace(model, progress=progress) if _same_trial(model, trial) else model
            )
        except EdgeKitError as exc:  # a full disk, say: the next writing has it all
            _log.error("what was counted of the rollout of model %s cannot be written down: %s", trial.name, exc)

    def _note_missing(self, trial: Trial) -> None:
        """A candidate that should be loaded and could not be."""
        if problem := self._repository.problem(trial.name, trial.rollout.candidate):
            trial.failed(problem)

    def _shadow(self, trial: Trial) -> Shadow | None:
        try:
            models = [self._repository.get(trial.name, version) for version in (trial.rollout.baseline, trial.rollout.candidate)]
        except NotFoundError:
            return None
        looser = max((thresholds_for(model.bundle.manifest.precision) for model in models), key=lambda limits: limits["max_rel"])
        with self._lock:
            if trial not in self._shadows and not self._stop.is_set():
                self._shadows[trial] = Shadow(trial.rollout.candidate, models[1].signature, looser, self._run, trial.record)
            return self._shadows.get(trial)

    def _loop(self, *jobs: Callable[[], None]) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                for job in jobs:
                    job()
            except EdgeKitError as exc:
                _log.error("the repository cannot be followed: %s", exc)
            except Exception:  # noqa: BLE001 - the thread's boundary: the next round may do better
                _log.exception("unexpected error while watching the repository")


def _same_trial(model: ModelState, trial: Trial) -> bool:
    """The state still has this trial's rollout: nobody ended it, or began another, in the meantime."""
    stored = model.rollout
    return stored is not None and (stored.candidate, stored.baseline, stored.mode) == (
        trial.rollout.candidate,
        trial.rollout.baseline,
        trial.rollout.mode,
    )


def _replaced(model: ModelState, trial: Trial, rollout: Rollout) -> ModelState:
    return msgspec.structs.replace(model, rollout=rollout, progress=None) if _same_trial(model, trial) else model


def _ended(model: ModelState, trial: Trial, result: str, reason: str, now_s: float) -> ModelState:
    return end_rollout(model, result, reason, now_s) if _same_trial(model, trial) else model
