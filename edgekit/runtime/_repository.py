"""The models that a server has: which versions are loaded, what they are called, and which one answers."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgeKitError, IntegrityError, NotFoundError, OverloadedError
from edgekit.protocol import RepositoryEntry
from edgekit.runtime._background import run_behind
from edgekit.runtime._bench import resident_bytes
from edgekit.runtime._events import EventObserver, RepositoryEvent
from edgekit.runtime._found import FoundBundle, version_key
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._quotas import Resident, choose_evictions
from edgekit.runtime._scheduler import DEFAULT_MAX_BATCH, DEFAULT_QUEUE
from edgekit.runtime._store import PathStore, VersionStore
from edgekit.runtime._trial import Trial
from edgekit.runtime._versions import ModelState, default_version, with_model
from edgekit.runtime.engines import EngineOptions

__all__ = ["ModelRepository"]

_log = logging.getLogger(__name__)

Catalogue = Mapping[str, Mapping[str, FoundBundle]]


class ModelRepository:
    """Bundles by name and version, and which of them are loaded. Safe from several threads; reading takes no lock.

    A request that names no version gets the default: see `edgekit.runtime._versions`.

    Args:
        paths: bundles, or folders that contain them at any depth; or a store.
        options: for every engine.
        instances: batches that each model version runs at once; 0 learns it.
        queue_capacity: requests that may wait for each model version.
        max_batch: rows of each model version that run together, at most.
        lazy: load a version when it is first asked for (`ensure`), not with `load_all`.
        memory_bytes: what loaded versions may take; the least recently used go when another needs the room, and come back when asked for. 0 for no
            limit. A version counts with what the process grew by while it was loaded, or with its files' bytes where that is more.
        on_event: told what changes.

    Raises:
        BundleError, UsageError, StorageError: as `find_bundles`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]] | VersionStore,
        *,
        options: EngineOptions | None = None,
        instances: int = 1,
        queue_capacity: int = DEFAULT_QUEUE,
        max_batch: int = DEFAULT_MAX_BATCH,
        lazy: bool = False,
        memory_bytes: int = 0,
        on_event: EventObserver | None = None,
    ) -> None:
        self.store: VersionStore = PathStore(paths) if isinstance(paths, Sequence) else paths
        self.lazy = lazy or memory_bytes > 0
        self._load_at_start = not lazy
        self._memory_bytes = memory_bytes
        self._on_event = on_event
        self._open: Callable[[Bundle, bool], LoadedModel] = lambda bundle, behind: LoadedModel(
            bundle, options or EngineOptions(), instances, queue_capacity, max_batch, behind=behind
        )
        self._changing = threading.RLock()  # one load or unload at a time; may be held for minutes
        self._switching = threading.RLock()  # what requests see; held for moments
        self._starting = False
        self._uses = itertools.count(1)
        self._sizes: dict[str, int] = {}  # digest -> bytes in memory, as measured
        # All of these are replaced as a whole, never changed. name -> version -> model, versions in order:
        self._loaded: Mapping[str, Mapping[str, LoadedModel]] = {}
        # name -> version, label or "" for the default -> model:
        self._routes: Mapping[str, Mapping[str, LoadedModel]] = {}
        self.trials: Mapping[str, Trial] = {}
        self._states: Mapping[str, ModelState] = {}  # as of the last switch
        self._problems: dict[tuple[str, str], str] = {}
        self._unloaded: set[str] = set()  # by name, on purpose: not loaded again because somebody asks
        self._stamp = self.store.stamp()
        self._catalogue: Catalogue = _by_name(self.store.found())
        self._switch()

    # What requests ask

    def get(self, name: str, version: str = "") -> LoadedModel:
        """A loaded model by version or label; the default version when none is given.

        Raises:
            NotFoundError: no such model or version, or it is not loaded.
        """
        try:
            return self._routes[name][version]
        except KeyError:
            raise self._missing(name, version) from None

    def use(self, name: str, version: str = "") -> bool:
        """Note that a version is in use now; false when `ensure` would have to load it first. For repositories that load lazily."""
        model = self._routes.get(name, {}).get(version)
        if model is not None:
            model.used = next(self._uses)
            return True
        return name in self._unloaded or self._resolve(name, version) is None

    def loaded(self, name: str = "") -> list[LoadedModel]:
        """All loaded versions, of one model or of all, in order."""
        chosen = self._loaded.values() if not name else [self._loaded.get(name, {})]
        return [model for versions in chosen for model in versions.values()]

    def defaults(self) -> list[LoadedModel]:
        """The version of each model that answers by default, where it is loaded."""
        return [route[""] for route in self._routes.values() if "" in route]

    def complete(self) -> bool:
        """Requests will be answered: a model is loaded, or will be when it is asked for, and `load_all` is not under way. (Models that were unloaded on
        purpose do not make a server unready.)
        """
        return bool(self._loaded or (self.lazy and self._catalogue)) and not self._starting

    def state(self, name: str) -> ModelState:
        """Labels and rollout of a model."""
        return self.store.state().models.get(name, ModelState())

    def index(self) -> list[RepositoryEntry]:
        """Every bundle on disk and every loaded model, with state and, where it is not ready, the reason."""
        rows: dict[tuple[str, str], RepositoryEntry] = {}
        try:
            present = self.store.found()
        except EdgeKitError as exc:  # the folder was moved away under a running server; what is loaded still answers
            _log.warning("the index shows loaded models only: %s", exc)
            present = []
        for found in present:
            key = found.name, found.version
            rows[key] = RepositoryEntry(*key, "UNAVAILABLE", found.problem or self._problems.get(key, "unloaded"))
        for model in self.loaded():
            rows[model.name, model.version] = RepositoryEntry(model.name, model.version, "READY")
        return [rows[key] for key in sorted(rows, key=lambda key: (key[0], version_key(key[1])))]

    # What loads and unloads

    def load_all(self, *, strict: bool = True) -> None:
        """Load every model that is not loaded yet.

        Args:
            strict: a version that cannot be loaded is an error. Otherwise it is logged and stands in the index, and the others serve: without
                the stable version, the one that was stable before it.

        Raises:
            EdgeKitError: the first that cannot be loaded; those before it stay. When not strict: why no version of a model can be loaded.
        """
        with self._changing:
            self._starting = True
            try:
                found = self.store.found()
                for bundle in found:
                    if bundle.problem:
                        raise BundleError(str(bundle.path), bundle.problem, "", "build or copy the bundle again, or move it away")
                for name in sorted({bundle.name for bundle in found} - set(self._loaded)) if self._load_at_start else ():
                    if strict and not self.lazy:
                        self.load(name)
                    else:
                        self._load_what_can_be(name)
            finally:
                self._starting = False

    def load(self, name: str, version: str = "") -> None:
        """Bring a model to what lies on disk now: all its versions (where they load lazily: the default and those that are loaded), or one. What is loaded and unchanged stays. Requests keep their answers throughout:
        new versions take over once they are warm, old ones finish what they have. When one version cannot be loaded, what was loaded stays.

        Raises:
            NotFoundError: no bundle of that name or version.
            EdgeKitError: why a version cannot be loaded; the index repeats it.
        """
        with self._changing:
            self._stamp = self.store.stamp()
            catalogue = _by_name(self.store.found())
            present = catalogue.get(name, {})
            if not present:
                raise NotFoundError(f"model {name[:96]!r}", "not in the repository", f"one of {', '.join(sorted(catalogue)) or 'none'}")
            wanted = [version] if version else self._wanted(name, present, ask=True)
            if version and version not in present:
                raise NotFoundError(f"model {name!r}", f"no version {version[:96]!r}", f"one of {', '.join(present)}")
            before = self._loaded.get(name, {})
            kept = {key: model for key, model in before.items() if key in present and (key not in wanted or _same(model, present[key]))}
            opened = self._open_all([present[key] for key in wanted if key not in kept])
            self._unloaded.discard(name)
            self._catalogue = {**self._catalogue, name: present}
            self._replace(name, self._left(name, kept) | opened)

    def unload(self, name: str) -> None:
        """Unload all versions of a model; returns once requests under way are done.

        Raises:
            NotFoundError: no such model.
        """
        with self._changing:
            if name not in self._loaded and name not in self._catalogue:
                known = ", ".join(sorted(self._catalogue)) or "none"
                raise NotFoundError(f"model {name[:96]!r}", "not in the repository", f"one of {known}")
            self._unloaded.add(name)
            self._tell("unload", name, "", "as asked")
            self._replace(name, {})

    def ensure(self, name: str, version: str = "") -> None:
        """Load what a request asks for, when it is there and not loaded.

        Raises:
            EdgeKitError: why it cannot be loaded.
        """
        with self._changing:
            found = None if name in self._unloaded else self._resolve(name, version)
            if found is not None and found.version not in self._loaded.get(name, {}):
                opened = self._open_all([found])
                self._replace(name, {**self._loaded.get(name, {}), **opened})

    def follow(self) -> None:
        """Take over what other processes changed in the store: load what is new, drop what is gone. What cannot be loaded is logged and stands in the index."""
        with self._changing:
            stamp = self.store.stamp()
            if stamp == self._stamp:
                return
            before, self._stamp = self._catalogue, stamp
            now = _by_name(self.store.found())
            for name in sorted({*before, *now}):
                missing = set(self._wanted(name, now.get(name, {}))) - set(self._loaded.get(name, {}))
                if before.get(name) != now.get(name) or (missing and self.lazy):
                    self._follow_model(name, now)
            self._catalogue = now
            self._forget()
            self._switch()

    def close(self) -> None:
        """Unload everything."""
        with self._changing:
            self._catalogue = {}
            for name in list(self._loaded):
                self._replace(name, {})

    # What labels and rollouts change

    def update(self, name: str, change: Callable[[ModelState], ModelState]) -> ModelState:
        """Change labels or rollout of a model, in the store and for the next request.

        Raises:
            EdgeKitError: what ``change`` raises, and `StorageError`; then nothing changed.
        """
        state = self.store.update(lambda state: with_model(state, name, change(state.models.get(name, ModelState()))))
        self._switch()
        return state.models.get(name, ModelState())

    def versions(self, name: str) -> list[str]:
        """The versions that can be named, in order.

        Raises:
            NotFoundError: no such model.
        """
        known = {*self._catalogue.get(name, {}), *self._loaded.get(name, {})}
        if not known:
            raise self._missing(name, "")
        return sorted(known, key=version_key)

    def problem(self, name: str, version: str) -> str:
        """Why a version is not loaded, where loading it failed; empty when it did not."""
        return "" if version in self._loaded.get(name, {}) else self._problems.get((name, version), "")

    def tell(self, kind: str, name: str, version: str, reason: str = "") -> None:
        """Report an event that somebody else decided."""
        self._tell(kind, name, version, reason)

    def _left(self, name: str, models: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
        """Those of ``models`` that were not evicted since."""
        return {version: model for version, model in models.items() if self._loaded.get(name, {}).get(version) is model}

    def _open_all(self, bundles: Sequence[FoundBundle], beside: Mapping[str, LoadedModel] = MappingProxyType({})) -> dict[str, LoadedModel]:
        """Load and warm; ``beside`` holds what was opened just now and answers nobody yet."""
        opened: dict[str, LoadedModel] = {}
        try:
            for bundle in bundles:
                self._evict_for(bundle, {**beside, **opened})
                opened[bundle.version] = self._open_one(bundle)
        except BaseException:
            for model in opened.values():
                model.close()
            raise
        return opened

    def _open_one(self, found: FoundBundle) -> LoadedModel:
        key = found.name, found.version
        before = resident_bytes()
        behind = bool(self._loaded)  # somebody may be waiting for an answer
        try:
            # Digests of all its bytes, then what the engine makes of them.
            bundle = run_behind(lambda: Bundle.open(found.path)) if behind else Bundle.open(found.path)
            if found.digest and bundle.digest != found.digest:
                raise IntegrityError(str(found.path), "its manifest is not the one that was installed", "", "install it again")
            model = self._open(bundle, behind)
        except EdgeKitError as exc:
            self._problems[key] = str(exc)
            self._tell("load_failed", *key, str(exc))
            raise
        model.memory_bytes = max(resident_bytes() - before, _file_bytes(bundle.path))
        model.used = next(self._uses)
        self._sizes[bundle.digest] = model.memory_bytes
        self._problems.pop(key, None)
        self._tell("load", *key)
        if model.running["passed_over"]:
            self._report(RepositoryEvent("fallback", *key, *(model.running[fact] for fact in ("passed_over", "runs_on", "wanted"))))
        return model

    def _evict_for(self, coming: FoundBundle, opened: Mapping[str, LoadedModel]) -> None:
        """Make room for a version within the memory quota."""
        if not self._memory_bytes:
            return
        needed = self._sizes.get(coming.digest) or _file_bytes(coming.path)
        held = {(trial.name, version) for trial in self.trials.values() for version in (trial.rollout.baseline, trial.rollout.candidate)}
        residents = [
            Resident(
                name,
                version,
                model.memory_bytes,
                model.used,
                bool(model.queue.running or model.queue.queued or model.holds) or (name, version) in held,
            )
            for name, versions in self._loaded.items()
            for version, model in versions.items()
        ]
        residents += [Resident(model.name, model.version, model.memory_bytes, 0, held=True) for model in opened.values()]
        evictions = choose_evictions(residents, needed, self._memory_bytes)
        if evictions is None:
            thing = f"model {coming.name} version {coming.version}"
            raise OverloadedError(
                thing, f"needs about {needed} bytes of memory", f"at most {self._memory_bytes} in use", "raise the memory quota"
            )
        for name, version, *_ in evictions:
            self._tell("evict", name, version, f"room for {coming.name} {coming.version}")
            self._replace(name, {key: model for key, model in self._loaded[name].items() if key != version})

    def _forget(self) -> None:
        """Drop what is known of versions that are gone."""
        here = {(name, version): found.digest for name, versions in self._catalogue.items() for version, found in versions.items()}
        self._problems = {key: problem for key, problem in self._problems.items() if key in here}
        digests = set(here.values())
        self._sizes = {digest: size for digest, size in self._sizes.items() if digest in digests}

    def _load_what_can_be(self, name: str) -> None:
        catalogue = _by_name(self.store.found())
        self._follow_model(name, catalogue)
        if name not in self._loaded and not self.lazy:
            self.load(name)  # raises what is wrong

    def _wanted(self, name: str, present: Mapping[str, FoundBundle], *, ask: bool = False) -> list[str]:
        """The versions that are to be loaded: all; where they load lazily, those that are and those of a rollout, and the default of a model in use."""
        if not self.lazy:
            return list(present)
        state = self.state(name)
        wanted = set(self._loaded.get(name, {}))
        if ask or wanted or self._load_at_start:
            wanted.add(default_version(state, present))
        if state.rollout is not None:
            wanted |= {state.rollout.baseline, state.rollout.candidate}
        return [version for version in present if version in wanted]

    def _follow_model(self, name: str, now: Catalogue) -> None:
        present = now.get(name, {})
        kept = {key: model for key, model in self._loaded.get(name, {}).items() if key in present and _same(model, present[key])}
        missing = [] if name in self._unloaded else [present[key] for key in self._wanted(name, present) if key not in kept]
        opened: dict[str, LoadedModel] = {}
        for bundle in missing:
            try:
                opened |= self._open_all([bundle], opened)
            except EdgeKitError as exc:
                _log.error("model %s version %s stays out: %s", name, bundle.version, exc)
        # A version whose new content cannot be loaded goes on with the old one.
        old = {key: model for key, model in self._loaded.get(name, {}).items() if key in present and (name, key) in self._problems}
        self._catalogue = {**self._catalogue, name: present}
        versions = self._left(name, {**old, **kept}) | opened
        last = self._routes.get(name, {}).get("")
        if missing and not versions and last is not None:
            # What was removed is better than nothing, until something that is there can be loaded.
            _log.error("model %s: no version that is there can be loaded; version %s, which was removed, goes on", name, last.version)
            versions = {last.version: last}
        self._replace(name, versions)

    def _replace(self, name: str, versions: Mapping[str, LoadedModel]) -> None:
        with self._switching:
            old = self._loaded.get(name, {})
            kept = {other: models for other, models in self._loaded.items() if other != name}
            if versions:
                kept[name] = {version: versions[version] for version in sorted(versions, key=version_key)}
            self._loaded = {key: kept[key] for key in sorted(kept)}
            self._switch()
        for version, model in old.items():
            if versions.get(version) is not model:
                (model.retire if versions else model.close)()  # what is replaced may be finished with, what is unloaded is gone

    def _switch(self) -> None:
        """Let requests see what is loaded and labelled now."""
        with self._switching:
            self._states = models = self.store.state().models
            before = self._routes
            self._routes = {name: self._route(models.get(name, ModelState()), name, versions) for name, versions in self._loaded.items()}
            self.trials = {name: self._trial(name, model) for name, model in models.items() if model.rollout and self._catalogue.get(name)}
        for name, route in self._routes.items():
            default, replaced = route.get(""), before.get(name, {}).get("")
            if default is not None and replaced is not None and default is not replaced:
                _log.info("model %s: version %s answers instead of %s", name, default.version, replaced.version)
                self._tell("swap", name, default.version, f"instead of {replaced.version}")

    def _route(self, state: ModelState, name: str, versions: Mapping[str, LoadedModel]) -> Mapping[str, LoadedModel]:
        route = {label: versions[version] for label, version in state.labels.items() if version in versions} | dict(versions)
        default = default_version(state, {*versions, *self._catalogue.get(name, {})} if self.lazy else versions)
        if default in versions:
            route[""] = versions[default]
        return route

    def _trial(self, name: str, state: ModelState) -> Trial:
        assert state.rollout is not None
        known = self.trials.get(name)
        return known if known is not None and known.begun == state.rollout else Trial(name, state.rollout, time.time(), state.progress)

    def _resolve(self, name: str, version: str) -> FoundBundle | None:
        """What a request asks for, as it lies on disk."""
        present = self._catalogue.get(name, {})
        if version in present:
            return present[version]
        state = self._states.get(name, ModelState())
        return present.get(state.labels.get(version, "") if version else default_version(state, present))

    def _missing(self, name: str, version: str) -> NotFoundError:
        route = self._routes.get(name)
        if not route:
            if name in self._catalogue:
                return NotFoundError(f"model {name!r}", "not loaded", "a loaded model", "load it with the repository API")
            known = ", ".join(sorted(self._loaded)) or "none is loaded"
            return NotFoundError(f"model {name[:96]!r}", "no such model", f"one of {known}")
        return NotFoundError(f"model {name!r}", f"no version {version[:96]!r}", f"one of {', '.join(key for key in route if key)}")

    def _tell(self, kind: str, name: str, version: str, reason: str = "") -> None:
        self._report(RepositoryEvent(kind, name, version, reason))

    def _report(self, event: RepositoryEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # noqa: BLE001 - an observer must not stop what it observes
                _log.exception("the event observer failed")


def _by_name(found: Sequence[FoundBundle]) -> dict[str, dict[str, FoundBundle]]:
    """By name and version; what cannot be read is left out."""
    catalogue: dict[str, dict[str, FoundBundle]] = {}
    for bundle in found:
        if not bundle.problem:
            catalogue.setdefault(bundle.name, {})[bundle.version] = bundle
    return catalogue


def _same(model: LoadedModel, found: FoundBundle) -> bool:
    return bool(found.digest) and model.bundle.digest == found.digest


def _file_bytes(bundle: Path) -> int:
    files = [bundle] if bundle.is_file() else [path for path in bundle.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
