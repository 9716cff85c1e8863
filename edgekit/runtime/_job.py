"""One request on its way through the scheduler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.runtime._admission import DEFAULT_LEVEL, Waiting

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PRIORITY_PARAMETER", "Done", "Job"]

PRIORITY_PARAMETER = "priority"
"""Of Triton's scheduling extension: 0 for the default, 1 for the highest, more for less."""

Done = Callable[[InferResponse | Exception], None]
_sequence = itertools.count()


class Job(Waiting):
    """A submitted request; also its `Ticket`.

    Attributes:
        request: as it came.
        done: called once with the answer, unless it was cancelled before it began.
        inputs: by name, checked and in the dtypes that the engine takes.
        queue: where it waits; ``None`` before it was offered to one.
        cancelled: nobody wants the answer.
        stepped: the thread that brought it comes back for what it left (`Dispatcher.step`).
    """

    __slots__ = ("cancelled", "done", "inputs", "model", "queue", "request", "stepped", "wanted")

    def __init__(self, request: InferRequest, done: Done) -> None:
        # Not through the base class: one call less on a path that counts its microseconds.
        self.request = request
        self.done = done
        self.sequence = next(_sequence)
        deadline_s = request.deadline_s
        self.deadline_s = math.inf if deadline_s is None else deadline_s
        self.level = DEFAULT_LEVEL
        self.arrived_s = 0.0
        self.rows = 1
        self.key = None
        self.model: Any = None
        self.queue: Any = None
        self.inputs: dict[str, np.ndarray] = {}
        self.wanted: list[str] | None = None
        self.cancelled = self.stepped = False

    def cancel(self) -> None:
        """See `Ticket.cancel`."""
        self.cancelled = True
        queue = self.queue
        if queue is not None:
            queue.withdraw(self)

    def read_priority(self) -> None:
        """Take the level from the request's parameter.

        Raises:
            RequestError: it is not a whole number of 0 or more.
        """
        asked = self.request.parameters.get(PRIORITY_PARAMETER, 0)
        if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < 1 << 64:
            raise RequestError(f"parameter {PRIORITY_PARAMETER!r}", str(asked)[:40], "0 (default), 1 (highest) or a larger whole number")
        if asked:
            self.level = asked
