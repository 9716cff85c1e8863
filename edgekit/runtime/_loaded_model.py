"""One version of a model, in memory and warm."""

from __future__ import annotations

import logging

from edgekit.bundle import Bundle, Signature, storage_errors
from edgekit.runtime._scheduler import InstanceQueue
from edgekit.runtime._session import Session
from edgekit.runtime._statistics import ModelStatistics
from edgekit.runtime.engines import EngineOptions

__all__ = ["LoadedModel"]

_log = logging.getLogger(__name__)


class LoadedModel:
    """One version of a model, in memory and warm.

    Args:
        bundle: opened.
        options: for the engine.
        instances: how many requests run at once.
        queue_capacity: how many more may wait.

    Raises:
        EngineError, EnvironmentMissingError: as `Session`; also when the warm-up run fails.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, instances: int, queue_capacity: int) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.name
        self.version = bundle.manifest.version
        self.signature: Signature = bundle.signature
        self.statistics = ModelStatistics()
        first = Session(bundle, options)
        # An engine that runs requests side by side is shared; others get an instance each.
        self._sessions = [first] if first.engine.concurrent else [first, *(Session(bundle, options) for _ in range(instances - 1))]
        self.engine = first.artifact.engine
        self.running = first.describe()  # what really runs, and what was passed over for it
        try:
            self._warm()
        except BaseException:
            self._close_sessions()
            raise
        slots = [self._sessions[index % len(self._sessions)] for index in range(instances)]
        self.queue: InstanceQueue[Session] = InstanceQueue(self.name, slots, queue_capacity)

    def close(self) -> None:
        """Let requests under way finish, then release the engine."""
        self.queue.close()
        self._close_sessions()

    def _warm(self) -> None:
        with storage_errors(self.bundle.path):
            samples = self.bundle.golden()
        if not samples:
            _log.warning("model %s version %s has no golden sample: its first request will be slower", self.name, self.version)
            return
        for session in self._sessions:
            session.run(samples[0].inputs)

    def _close_sessions(self) -> None:
        for session in self._sessions:
            session.close()
