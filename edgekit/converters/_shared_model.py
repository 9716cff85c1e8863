"""The source model of one command: read once, and each form of it made once, whatever the number of devices that it is built for."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import structs

from edgekit.converters import processing
from edgekit.converters._embedded import extract_samples
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._normalise import normalise, resolve_shapes
from edgekit.converters._options import BuildOptions, silent
from edgekit.converters._samples import SampleSet, golden_samples, require_sizes
from edgekit.converters._source import SourceModel, load_source

__all__ = ["SharedModel"]


class SharedModel:
    """A source model and what was made of it. Safe to use from several threads: who comes second waits for the first.

    Use it as a context manager; samples that came with the model lie in a folder that goes with it.

    Args:
        path: of the model.
        options: of the build.
    """

    def __init__(self, path: Path, options: BuildOptions) -> None:
        self.path = path
        self.options = options
        self._processing = processing.requested(options)
        self._progress = options.get("progress") or silent
        self._source: SourceModel | None = None
        self._forms: dict[bool, tuple[NormalisedModel, SampleSet]] = {}
        self._lock = threading.RLock()
        self._folders = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folders.close()

    def source(self) -> SourceModel:
        """The model as given, with everything written into its graph that all engines shall get.

        Raises:
            ModelError and others, as `load_source` and `processing.apply`.
        """
        with self._lock:
            if self._source is None:
                self._progress("reading the model")
                self._source = processing.apply(load_source(self.path), self._processing)
                self._take_own_samples(self._source)
            return self._source

    def form(self, static: bool) -> tuple[NormalisedModel, SampleSet]:
        """The normalised model and its samples, with every size fixed or with dynamic ones left in."""
        with self._lock:
            source = self.source()
            shapes, given = self.options.get("shapes") or {}, self.options.get("calibration")
            calibration = Path(given) if given is not None else None
            resolved = resolve_shapes(source.signature, shapes, static)
            if calibration is None:  # found out here, not after a long normalisation
                inputs = tuple(structs.replace(spec, shape=resolved[spec.name]) for spec in source.signature.inputs)
                require_sizes(structs.replace(source.signature, inputs=inputs))
            static = all(isinstance(dim, int) for shape in resolved.values() for dim in shape)
            if static not in self._forms:
                self._progress("normalising")
                normalised = normalise(source, shapes, static=static)
                self._progress("running the source model on samples")
                self._forms[static] = (normalised, golden_samples(source, normalised.signature, calibration))
            return self._forms[static]

    def _take_own_samples(self, source: SourceModel) -> None:
        """A reproducer carries its samples; they are its calibration unless another is given."""
        if self.options.get("calibration") is None:
            folder = self._folders.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-samples-"))
            if extract_samples(source.model, Path(folder)):
                self.options = {**self.options, "calibration": folder}
