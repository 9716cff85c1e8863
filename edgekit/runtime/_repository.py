"""The models that a server has: bundles found under the given paths, loaded and unloaded by name."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgeKitError, NotFoundError
from edgekit.protocol import RepositoryEntry
from edgekit.runtime._found import FoundBundle, find_bundles, version_key
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime.engines import EngineOptions

__all__ = ["ModelRepository"]

_log = logging.getLogger(__name__)


class ModelRepository:
    """Bundles by name and version, and which of them are loaded. Safe from several threads; reading takes no lock.

    Args:
        paths: bundles, or folders that contain them at any depth.
        options: for every engine.
        instances: requests that each model version runs at once.
        queue_capacity: requests that may wait for each model version.

    Raises:
        BundleError, UsageError, StorageError: as `find_bundles`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        options: EngineOptions | None = None,
        instances: int = 1,
        queue_capacity: int = 32,
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._open: Callable[[Bundle], LoadedModel] = lambda bundle: LoadedModel(
            bundle, options or EngineOptions(), instances, queue_capacity
        )
        self._changing = threading.RLock()
        self._starting = False
        # name -> version -> model, versions in order; replaced as a whole, never changed.
        self._loaded: Mapping[str, Mapping[str, LoadedModel]] = {}
        self._problems: dict[tuple[str, str], str] = {}
        self._names = {found.name for found in find_bundles(self._paths) if not found.problem}

    def load_all(self) -> None:
        """Load every model that is not loaded yet.

        Raises:
            EdgeKitError: the first that cannot be loaded; those before it stay.
        """
        with self._changing:
            self._starting = True
            try:
                for found in find_bundles(self._paths):
                    if found.problem:
                        raise BundleError(str(found.path), found.problem, "", "build or copy the bundle again, or move it away")
                    if found.name not in self._loaded:
                        self.load(found.name)
            finally:
                self._starting = False

    def load(self, name: str) -> None:
        """Load all versions of a model from disk, or load them again. Requests keep their answers throughout: new versions take over once they are
        warm, old ones finish what they have. When one version cannot be loaded, what was loaded stays.

        Raises:
            NotFoundError: no bundle of that name.
            EdgeKitError: why a version cannot be loaded; the index repeats it.
        """
        with self._changing:
            found = [bundle for bundle in find_bundles(self._paths) if bundle.name == name and not bundle.problem]
            if not found:
                raise NotFoundError(f"model {name[:96]!r}", "not in the repository", f"one of {', '.join(sorted(self._names)) or 'none'}")
            opened: dict[str, LoadedModel] = {}
            try:
                for bundle in found:
                    opened[bundle.version] = self._open_one(bundle)
            except BaseException:
                for model in opened.values():
                    model.close()
                raise
            self._names.add(name)
            self._replace(name, opened)

    def unload(self, name: str) -> None:
        """Unload all versions of a model; returns once requests under way are done.

        Raises:
            NotFoundError: no such model.
        """
        with self._changing:
            if name not in self._loaded and name not in self._names:
                raise NotFoundError(f"model {name[:96]!r}", "not in the repository", f"one of {', '.join(sorted(self._names)) or 'none'}")
            self._replace(name, {})

    def close(self) -> None:
        """Unload everything."""
        with self._changing:
            for name in list(self._loaded):
                self._replace(name, {})

    def get(self, name: str, version: str = "") -> LoadedModel:
        """A loaded model; the highest version when none is given.

        Raises:
            NotFoundError: no such model or version, or it is not loaded.
        """
        versions = self._loaded.get(name)
        if not versions:
            if name in self._names:
                raise NotFoundError(f"model {name!r}", "not loaded", "a loaded model", "load it with the repository API")
            known = ", ".join(sorted(self._loaded)) or "none is loaded"
            raise NotFoundError(f"model {name[:96]!r}", "no such model", f"one of {known}")
        if not version:
            return list(versions.values())[-1]
        model = versions.get(version)
        if model is None:
            raise NotFoundError(f"model {name!r}", f"no version {version[:96]!r}", f"one of {', '.join(versions)}")
        return model

    def loaded(self, name: str = "") -> list[LoadedModel]:
        """All loaded versions, of one model or of all, in order."""
        chosen = self._loaded.values() if not name else [self._loaded.get(name, {})]
        return [model for versions in chosen for model in versions.values()]

    def complete(self) -> bool:
        """A model is loaded and `load_all` is not under way. (Models that were unloaded on purpose do not make a server unready.)"""
        return bool(self._loaded) and not self._starting

    def index(self) -> list[RepositoryEntry]:
        """Every bundle on disk and every loaded model, with state and, where it is not ready, the reason."""
        rows: dict[tuple[str, str], RepositoryEntry] = {}
        try:
            present = find_bundles(self._paths)
        except EdgeKitError as exc:  # the folder was moved away under a running server; what is loaded still answers
            _log.warning("the index shows loaded models only: %s", exc)
            present = []
        for found in present:
            key = found.name, found.version
            rows[key] = RepositoryEntry(*key, "UNAVAILABLE", found.problem or self._problems.get(key, "unloaded"))
        for model in self.loaded():
            rows[model.name, model.version] = RepositoryEntry(model.name, model.version, "READY")
        return [rows[key] for key in sorted(rows, key=lambda key: (key[0], version_key(key[1])))]

    def _open_one(self, found: FoundBundle) -> LoadedModel:
        key = found.name, found.version
        try:
            model = self._open(Bundle.open(found.path))
        except EdgeKitError as exc:
            self._problems[key] = str(exc)
            raise
        self._problems.pop(key, None)
        return model

    def _replace(self, name: str, versions: Mapping[str, LoadedModel]) -> None:
        old = self._loaded.get(name, {})
        kept = {other: models for other, models in self._loaded.items() if other != name}
        if versions:
            kept[name] = {version: versions[version] for version in sorted(versions, key=version_key)}
        self._loaded = {key: kept[key] for key in sorted(kept)}
        for model in old.values():
            model.close()
