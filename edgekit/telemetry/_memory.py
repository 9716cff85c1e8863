"""A transport that keeps what it is given; for tests and for embedding a receiver in the same process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from edgekit.telemetry._http import Response
from edgekit.telemetry._otlp import Batch, Signal

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """Answers with ``script`` in turn (statuses or whole responses), then 200.

    Attributes:
        accepted: batches that were answered with a 2xx, in order.
        attempts: calls of `send`.
    """

    def __init__(self, script: Iterable[int | Response] = ()) -> None:
        self._script = list(script)
        self.accepted: list[Batch] = []
        self.attempts = 0

    def send(self, batch: Batch, timeout_s: float) -> Response:  # noqa: ARG002 - answers at once
        """The next answer of the script."""
        self.attempts += 1
        answer = self._script.pop(0) if self._script else 200
        response = answer if isinstance(answer, Response) else Response(answer)
        if 200 <= response.status < 300:
            self.accepted.append(batch)
        return response

    def abort(self) -> None:
        """Nothing is ever in progress."""

    def close(self) -> None:
        """Nothing is held."""

    def documents(self, signal: Signal) -> list[dict[str, Any]]:
        """Accepted bodies of one signal, decoded."""
        return [json.loads(batch.body) for batch in self.accepted if batch.signal == signal]
