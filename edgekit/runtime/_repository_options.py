"""Where a server's models come from, and what they may take."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from edgekit.errors import UsageError
from edgekit.runtime._events import EventObserver
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._scheduler import DEFAULT_MAX_BATCH, DEFAULT_QUEUE
from edgekit.runtime._store import FolderStore
from edgekit.runtime.engines import EngineOptions

__all__ = ["RepositoryOptions", "open_repository"]


class RepositoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How models are found and kept.

    Attributes:
        folder: of installed versions (`edgekit models`), which the server follows; empty for none.
        lazy: load a version when it is first asked for.
        memory_bytes: what loaded versions may take, 0 for no limit; see `ModelRepository`.
    """

    folder: str = ""
    lazy: bool = False
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.memory_bytes < 0:
            raise UsageError("memory quota", str(self.memory_bytes), "0 bytes or more")


def open_repository(
    paths: Sequence[str | os.PathLike[str]],
    repository: RepositoryOptions,
    *,
    options: EngineOptions | None = None,
    instances: int = 1,
    queue_capacity: int = DEFAULT_QUEUE,
    max_batch: int = DEFAULT_MAX_BATCH,
    on_event: EventObserver | None = None,
) -> ModelRepository:
    """The repository, with nothing loaded yet.

    Raises:
        UsageError: both paths and a folder, or neither.
        EdgeKitError: what is there cannot be read.
    """
    if bool(paths) == bool(repository.folder):
        found = "both paths and a repository folder" if paths else "neither paths nor a repository folder"
        raise UsageError("models to serve", found, "one of both", "name bundles, or give --repository DIR")
    return ModelRepository(
        FolderStore(repository.folder) if repository.folder else paths,
        options=options,
        instances=instances,
        queue_capacity=queue_capacity,
        max_batch=max_batch,
        lazy=repository.lazy,
        memory_bytes=repository.memory_bytes,
        on_event=on_event,
    )
