"""Following the policy file while the router runs. A thread of its own does what must not be on a request's way: reading, and leasing budgets ahead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit._storage_errors import storage_errors
from edgekit.errors import EdgeKitError
from edgekit.router._budgets import Book, Budgets, amount_told
from edgekit.router._budgets_file import default_ledger_path, keep_budgets
from edgekit.router._cascade import ConfidenceRule
from edgekit.router._opinions import Opinions
from edgekit.router._policy import NO_POLICY, Policy
from edgekit.router._policy_file import read_policy
from edgekit.router._policy_metrics import PolicyMetrics

__all__ = ["Operator"]

_log = logging.getLogger(__name__)
EVERY_S = 1.0
SETTLE_S = 0.05  # a changed file must look the same this much later


class Operator:
    """The policy in force and its budgets.

    A changed file takes effect as a whole within a second. One that is wrong changes nothing: the policy in force stays, one line in the log says what is wrong,
    and the gauge ``edgekit.route.policy.valid`` is 0 until the file is right again. What was spent stays spent. The file is compared by its content, since times
    of modification are too coarse to notice a second change at once.

    Args:
        path: the policy file; ``None`` for no policy, which costs no thread.
        metrics: told of reloads and budgets.
        ledger: where budgets are kept across restarts; by default in EdgeKit's state folder. Only opened once there is a limit.
        on_change: called with every new policy, from the watching thread.

    Raises:
        UsageError: the file is wrong.
        StorageError: it cannot be read, or the ledger is damaged or another process's.

    Attributes:
        policy: in force now; read it once a request.
        budgets: for the whole life of the router.
        opinions: answers of both tiers, which the thread compares.
    """

    def __init__(
        self,
        path: Path | None,
        metrics: PolicyMetrics,
        ledger: Path | None = None,
        on_change: Callable[[Policy], None] | None = None,
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._on_change = on_change or (lambda _policy: None)
        self._problem = ""
        self._models: frozenset[str] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self.policy = NO_POLICY
        self.budgets = Budgets(Book())
        self.opinions = Opinions(metrics, self._rule_of)
        if path is None:
            return
        self._ledger = ledger or default_ledger_path(path)
        self._seen: bytes | None = _content(path)
        self.policy = read_policy(path)
        self._limit(self.policy, time.monotonic())

    def start(self, models: frozenset[str] | None = None) -> None:
        """Begin to follow the file; ``models`` are those that the device has, where that is known."""
        self._models = models
        if self._path is not None:
            self._name_unknown(self.policy)
            self._thread = threading.Thread(target=self._loop, name="edgekit-router-policy", daemon=True)
            self._thread.start()

    def turn(self) -> None:
        """What the thread does every second, and when a lease runs short."""
        now = time.monotonic()
        try:
            self._follow(now)
            self.budgets.renew(now)
            self.opinions.compare()
        except Exception:  # noqa: BLE001 - the thread's boundary: the policy in force must go on to hold
            _log.exception("the policy could not be followed")
        self._metrics.state(not self._problem, self.budgets.limits, self.budgets.spent(now))

    @property
    def problem(self) -> str:
        """What is wrong with the file as it is now; empty when nothing is."""
        return self._problem

    def told(self, now: float) -> dict[str, Any]:
        """The state of policy and budgets, JSON-able; a limit that is not there is ``None``."""
        limits, spent = self.budgets.limits, self.budgets.spent(now)
        return {
            "file": str(self._path) if self._path is not None else "",
            "problem": self._problem,
            "budget": {
                window: {"spent": amount_told(amount), "limit": amount_told(limit.amount)}
                for window, limit, amount in (("hour", limits.hour, spent[0]), ("day", limits.day, spent[1]))
            },
            "compared": self._metrics.told(),
        }

    def close(self) -> None:
        """End the thread and write down what was spent. May be called twice."""
        self._closed = True
        self.budgets.short.set()
        if self._thread is not None:
            self._thread.join()
        self.opinions.compare()
        self.budgets.close(time.monotonic())

    def _loop(self) -> None:
        while not self._closed:
            self.turn()
            self.budgets.short.wait(EVERY_S)
            self.budgets.short.clear()

    def _follow(self, now: float) -> None:
        path = self._path
        if path is None:
            return
        seen = _content(path)
        if seen == self._seen:
            self._problem = ""
            return
        time.sleep(SETTLE_S)
        if _content(path) != seen:
            return  # it is being written: half a file may be a valid policy, and an empty one forbids nothing
        try:
            policy = read_policy(path)
            self._limit(policy, now)
        except EdgeKitError as exc:
            if str(exc) != self._problem:
                _log.error("the policy file is wrong, the one before stays in force: %s", exc)
                self._metrics.reloaded(accepted=False)
            self._problem = str(exc)  # tried again every time: what stands in the way may be another process
            return
        self._seen, self._problem = seen, ""
        self.policy = policy
        self._name_unknown(policy)
        self._on_change(policy)
        self._metrics.reloaded(accepted=True)
        _log.info("the policy file was read again")

    def _name_unknown(self, policy: Policy) -> None:
        """A model of the file that the device does not have may be the cloud's, or a slip of the pen that keeps no data on the device."""
        for model in sorted(set(policy.file.models) - (self._models or set(policy.file.models))):
            _log.warning("the policy names model %r, which the device does not have", model)

    def _rule_of(self, model: str) -> ConfidenceRule | None:
        return self.policy.confidence_rule(model)

    def _limit(self, policy: Policy, now: float) -> None:
        """Bound the budgets as the policy says. The ledger is opened when there is something to keep in it, and before anything is bounded by it."""
        if policy.limits.any and not self.budgets.kept:
            keep_budgets(self.budgets, self._ledger)
        self.budgets.set_limits(policy.limits, now)


def _content(path: Path) -> bytes | None:
    """What the file holds now; ``None`` when it cannot be read."""
    try:
        with storage_errors(path):
            return path.read_bytes()
    except EdgeKitError:
        return None
