"""The source model of one command: read once, and each form of it made once, whatever the number of devices that it is built for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from edgekit.converters import processing
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._isolation import Guard
from edgekit.converters._normalise import resolve_shapes
from edgekit.converters._open_sizes import at_sizes, open_symbols
from edgekit.converters._options import BuildOptions, silent
from edgekit.converters._preparation import prepare, put_around
from edgekit.converters._quantising import find_ranges
from edgekit.converters._samples import SampleSet, require_sizes
from edgekit.converters._source import SourceModel, load_source, path_of
from edgekit.converters.quantization import Calibrated
from edgekit.errors import UsageError

__all__ = ["SharedModel"]


class SharedModel:
    """A source model and what was made of it. Safe to use from several threads: who comes second waits for the first.

    Args:
        model: path, or a PyTorch module.
        options: of the build.
        guard: where toolchains that read it run; in this process without.
    """

    def __init__(self, model: object, options: BuildOptions, guard: Guard | None = None) -> None:
        self.model = model
        self.path = path_of(model)
        self.options = options
        self._guard = guard or Guard(isolate=False, tell=options.get("progress") or silent)
        self._processing = processing.requested(options)
        self._progress = options.get("progress") or silent
        self._source: SourceModel | None = None
        self._forms: dict[tuple[bool, tuple[int, ...]], tuple[NormalisedModel, SampleSet]] = {}
        self._calibrated: dict[bool, Calibrated] = {}
        self._lock = threading.RLock()

    def source(self) -> SourceModel:
        """The model as given, with everything written into its graph that all engines shall get.

        Raises:
            ModelError and others, as `load_source` and `processing.apply`.
        """
        with self._lock:
            if self._source is None:
                self._progress("reading the model")
                self._source = self._with_processing(self._read())
            return self._source

    def _read(self) -> SourceModel:
        chosen = self.options
        return load_source(
            self.model,
            signature=chosen.get("signature") or "",
            example_inputs=chosen.get("example_inputs"),
            dynamic_shapes=chosen.get("dynamic_shapes"),
            guard=self._guard,
        )

    def form(self, static: bool, batches: tuple[int, ...] = ()) -> tuple[NormalisedModel, SampleSet]:
        """The normalised model and its samples, with every size fixed or with dynamic ones left in.

        Args:
            static: fix every size.
            batches: leave open what the user does, and add the model at some sizes of it, with these for the first dimension.
        """
        with self._lock:
            source = self.source()
            shapes, given = self.options.get("shapes") or {}, self.options.get("calibration")
            calibration = Path(given) if given is not None else None
            opened = open_symbols(source.signature, shapes)
            batches = batches if static and opened else ()
            if batches:  # all else must be known
                resolve_shapes(source.signature, at_sizes(source.signature, shapes, dict.fromkeys(opened, batches[0])), static=True)
            resolved = resolve_shapes(source.signature, shapes, static and not batches)
            if calibration is None:  # found out here, not after a long normalisation
                inputs = tuple(structs.replace(spec, shape=resolved[spec.name]) for spec in source.signature.inputs)
                require_sizes(structs.replace(source.signature, inputs=inputs), opened)
            static = all(isinstance(dim, int) for shape in resolved.values() for dim in shape)
            key = (static, batches)
            if key not in self._forms:
                self._forms[key] = self._call(prepare, source, shapes, static, calibration, batches)
            return self._forms[key]

    def _with_processing(self, source: SourceModel) -> SourceModel:
        if self._processing is None:
            return source
        processed: SourceModel = self._call(put_around, source, self._processing)
        return processed

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return self._guard.call("onnxruntime", f"model {self.path.name}", f"{function.__module__}:{function.__name__}", *arguments)

    def calibrated(self, normalised: NormalisedModel) -> Calibrated:
        """Value ranges of one of the model's forms, collected once for all engines that take it.

        Raises:
            UsageError: no samples were given.
        """
        with self._lock:
            given = self.options.get("calibration")
            if given is None:
                raise UsageError("int8", "no samples to find value ranges on", "--calibration PATH", "give real inputs")
            if normalised.static not in self._calibrated:
                self._calibrated[normalised.static] = self._call(find_ranges, normalised, Path(given))
            return self._calibrated[normalised.static]
