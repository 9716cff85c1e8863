"""One version of a model, in memory and warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Bundle, Signature
from edgekit.runtime._allocator import give_back_free_memory
from edgekit.runtime._background import run_behind
from edgekit.runtime._fallback import steps
from edgekit.runtime._holds import Holds
from edgekit.runtime._request_plan import RequestPlan
from edgekit.runtime._scheduler import DEFAULT_MAX_BATCH, InstanceQueue
from edgekit.runtime._session import Session
from edgekit.runtime._states import States
from edgekit.runtime._statistics import ModelStatistics
from edgekit.runtime.engines import EngineOptions, engine_class
from edgekit.runtime.engines._base import usable_cpus

__all__ = ["LoadedModel"]

_log = logging.getLogger(__name__)


class LoadedModel:
    """One version of a model, in memory and warm.

    Args:
        bundle: opened.
        options: for the engine.
        instances: how many batches run at once; 0 learns it, up to one for each CPU, where the engine runs them side by side.
        queue_capacity: how many requests may wait.
        max_batch: most rows that run together; 1 keeps requests apart.
        behind: load and warm it behind threads that serve (`run_behind`).

    Attributes:
        class_labels: of the bundle.
        states: of the signature.
        holds: sequences that stay on it.
        used: grows with each use; kept by repositories that unload what was not used.
        memory_bytes: what it takes, as the repository measured it.

    Raises:
        EngineError, EnvironmentMissingError: as `Session`; also when the warm-up run fails.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions,
        instances: int,
        queue_capacity: int,
        max_batch: int = DEFAULT_MAX_BATCH,
        *,
        behind: bool = False,
    ) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.name
        self.version = bundle.manifest.version
        self.signature: Signature = bundle.signature
        self.class_labels = bundle.class_labels()
        self.statistics = ModelStatistics()
        self.states = States(self.signature)
        self.holds = Holds()
        self.used = 0
        self.memory_bytes = 0
        options = msgspec.structs.replace(options, side_by_side=instances or usable_cpus())
        inputs = self._first_inputs()
        self._sessions: list[Session] = []
        try:
            if behind:
                run_behind(lambda: self._open(options, instances, inputs), starts_threads=_starts_threads(bundle, options))
            else:
                self._open(options, instances, inputs)
        except BaseException:
            self._close_sessions()
            raise
        first = self._sessions[0]
        self.engine = first.artifact.engine
        self.running = first.describe()  # what really runs, and what was passed over for it
        self.plan = RequestPlan(self.name, self.signature, max_batch, first.artifact.precision, [inputs] if inputs else [])
        slots = [
            self._sessions[index % len(self._sessions)] for index in range(instances or (usable_cpus() if first.engine.concurrent else 1))
        ]
        threads = 1 if first.engine.options.accelerator not in ("", "cpu") else first.engine.threads()
        self.queue: InstanceQueue[Session] = InstanceQueue(
            self.name, slots, queue_capacity, max_batch=self.plan.max_rows, threads=threads, adaptive=not instances
        )

    def retire(self) -> None:
        """It was replaced: close it, or leave that to the last sequence that is on it."""
        if self.holds.retire(time.monotonic()):
            self.close()

    def close(self) -> None:
        """Let requests under way finish, then release the engine and its memory."""
        self.holds.close()
        self.queue.close()
        self._close_sessions()
        give_back_free_memory()

    def _first_inputs(self) -> dict[str, np.ndarray]:
        """What warms it. Read before anything runs behind: unpacking arrays is Python code."""
        with storage_errors(self.bundle.path):
            inputs = self.bundle.first_inputs()
        if not inputs:
            _log.warning("model %s version %s has no golden sample: its first request will be slower", self.name, self.version)
        return inputs

    def _open(self, options: EngineOptions, instances: int, inputs: Mapping[str, np.ndarray]) -> None:
        """Load the sessions, and run a golden sample through each."""
        first = Session(self.bundle, options)
        self._sessions.append(first)
        # An engine that runs requests side by side is shared; others get an instance each.
        for _ in range(0 if first.engine.concurrent else instances - 1):
            self._sessions.append(Session(self.bundle, options))
        if inputs:
            for session in self._sessions:
                session.run(inputs)

    def _close_sessions(self) -> None:
        for session in self._sessions:
            session.close()


def _starts_threads(bundle: Bundle, options: EngineOptions) -> bool:
    """Some way to run the bundle starts threads that stay."""
    return any(
        engine_class(step.artifact.engine).starts_threads(step.artifact, msgspec.structs.replace(options, accelerator=step.accelerator))
        for step in steps(bundle.manifest, options)
    )
