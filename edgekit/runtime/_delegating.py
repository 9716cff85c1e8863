"""What a core that stands in front of another one leaves to it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from edgekit.protocol import InferRequest, InferResponse, ModelMetadata, Parameters, RepositoryEntry, ServerMetadata, SteppingCore, Ticket
from edgekit.runtime._job import Done

__all__ = ["DelegatingCore"]


class DelegatingCore:
    """A `SteppingCore` that answers as another one does. Subclasses replace what they do themselves.

    Args:
        core: closed by whoever made it.
    """

    def __init__(self, core: SteppingCore) -> None:
        self._core = core

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        return self._core.submit(request, done)

    def turn(self) -> None:
        self._core.turn()

    def step(self) -> bool:
        return self._core.step()

    def class_labels(self, name: str, version: str = "") -> Sequence[str]:
        return self._core.class_labels(name, version)

    def infer(self, request: InferRequest) -> InferResponse:
        return self._core.infer(request)

    def _submit_and_wait(self, request: InferRequest) -> InferResponse:
        """For subclasses whose `submit` does more than the other core's: the answer to ``request``, or its error raised."""
        answered: Future[InferResponse | Exception] = Future()
        self.submit(request, answered.set_result)
        self.turn()
        answer = answered.result()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def live(self) -> bool:
        return self._core.live()

    def ready(self) -> bool:
        return self._core.ready()

    def server_metadata(self) -> ServerMetadata:
        return self._core.server_metadata()

    def model_ready(self, name: str, version: str = "") -> bool:
        return self._core.model_ready(name, version)

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        return self._core.model_metadata(name, version)

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        return self._core.model_config(name, version)

    def repository_index(self, ready_only: bool = False) -> list[RepositoryEntry]:
        return self._core.repository_index(ready_only)

    def repository_load(self, name: str, parameters: Parameters) -> None:
        self._core.repository_load(name, parameters)

    def repository_unload(self, name: str, parameters: Parameters) -> None:
        self._core.repository_unload(name, parameters)

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        return self._core.statistics(name, version)
