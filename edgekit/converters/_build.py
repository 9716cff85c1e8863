"""`build`: from a model file and a device name to a bundle that was proven, or an error that says why not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from edgekit.bundle import ARCHIVE_SUFFIX, LABELS, Bundle
from edgekit.converters._cache import BuildCache, limit_bytes
from edgekit.converters._embedded import with_own_samples
from edgekit.converters._isolation import Guard, default_limits
from edgekit.converters._options import BuildOptions, check_names, silent
from edgekit.converters._parallel import run_all
from edgekit.converters._pipeline import build_bundle
from edgekit.converters._shared_model import SharedModel
from edgekit.converters._source import path_of
from edgekit.converters._targets import Target, choose_precision, resolve_targets
from edgekit.errors import UsageError
from edgekit.runtime.engines._base import usable_cpus

__all__ = ["BuildResult", "build", "build_many", "build_result", "choose_precision"]


@dataclass(frozen=True)
class BuildResult:
    """A bundle and what it cost.

    Attributes:
        bundle: as written, opened again.
        seconds: wall time of the whole build.
        bytes: size of the artifact's files, the fallback's not counted.
        bundle_bytes: size of all files, golden samples included.
        cached: it was built before from the same input and options, and copied.
    """

    bundle: Bundle
    seconds: float
    bytes: int
    bundle_bytes: int
    cached: bool = False


def build(model: object, *, device: str, **options: Unpack[BuildOptions]) -> Bundle:
    """Build a model for a device, prove it, and write the bundle.

    Args:
        model: path of an ONNX file, ORT format file, Keras file, SavedModel directory or torch.export archive; or a ``torch.nn.Module``.
        device: id or alias of a device profile, or the path of one.
        options: see `BuildOptions`.

    Raises:
        UsageError: an option, device, precision, shape, sample or output that cannot be.
        ModelError: the source model cannot be read, needs shapes, or has operators that the target does not take.
        BuildError: the toolchain failed. VerificationError: the artifact's numbers are wrong; nothing is written.
        EnvironmentMissingError: a toolchain is not installed.
        StorageError: the bundle cannot be written.
    """
    return build_result(model, device=device, **options).bundle


def build_result(model: object, *, device: str, **options: Unpack[BuildOptions]) -> BuildResult:
    """`build`, with its time and sizes."""
    return build_many(model, devices=[device], **options)[0]


def build_many(model: object, *, devices: Sequence[str], **options: Unpack[BuildOptions]) -> list[BuildResult]:
    """`build_result` for several devices, some at the same time; reads, normalises and samples the model once. Stops at the first error.

    Args:
        model: as for `build`.
        devices: ids, each gets its bundle.
        options: as for `build`; ``output`` is a folder for ``<model>-<device>.edgekit`` where there are several devices.

    Raises:
        UsageError: also when ``output`` names one ``.edgekit`` file for several devices.
    """
    check_names(options)
    path = path_of(model)
    guard = _guard(options)
    with ExitStack() as folders:
        options = with_own_samples(path, options, folders)
        targets = resolve_targets(path.stem, devices, options)
        limit = limit_bytes() if options.get("cache", True) else 0
        cache = BuildCache(path if isinstance(model, str | os.PathLike) else None, options, limit)
        shared = SharedModel(model, options, guard)
        return run_all(lambda target, own: _build_one(shared, target, own, cache), targets, guard, _jobs(options, len(targets)))


# --- one build -----------------------------------------------------------------------------------------------------------------------------


def _build_one(model: SharedModel, target: Target, guard: Guard, cache: BuildCache) -> BuildResult:
    started = time.perf_counter()
    entry = cache.entry(target)
    bundle = cache.fetch(entry, target.destination) if entry is not None else None
    kept = bundle is not None
    if bundle is None:
        bundle = build_bundle(model, target, guard, _rebuild(target, guard, model.options))
        if entry is not None:
            cache.store(entry, bundle)
    return _result(bundle, time.perf_counter() - started, kept)


def _rebuild(target: Target, guard: Guard, options: BuildOptions) -> Callable[[Path, BuildOptions], None] | None:
    """What builds a part of a failing model, for the same device, without a word and to nowhere; None when no reproducer is wanted."""
    if options.get("reproducer") is False:
        return None

    def rebuild(part: Path, given: BuildOptions) -> None:
        quiet = replace(guard, tell=silent)
        with ExitStack() as folders:
            model = SharedModel(part, with_own_samples(part, given, folders), quiet)
            build_bundle(model, replace(target, destination=part.with_suffix(ARCHIVE_SUFFIX)), quiet, None)

    return rebuild


def _guard(options: BuildOptions) -> Guard:
    time_s, memory = options.get("time_limit_s"), options.get("memory_limit_bytes")
    for flag, value in (("--time-limit", time_s), ("--memory-limit", memory)):
        if value is not None and not value > 0:
            raise UsageError(flag, f"{value}", "a positive number")
    return Guard(options.get("isolate", True), default_limits(time_s, memory), options.get("progress") or silent)


def _jobs(options: BuildOptions, devices: int) -> int:
    """How many devices at the same time. In this process it is one: toolchains are not safe to call from several threads."""
    jobs = options.get("jobs")
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs", f"{jobs}", "1 or more")
    return min(jobs or usable_cpus(), devices) if options.get("isolate", True) else 1


def _result(bundle: Bundle, seconds: float, cached: bool) -> BuildResult:
    files = bundle.manifest.files
    artifact = bundle.manifest.artifact
    fallback = bundle.manifest.fallback
    kept_out = {"golden.npz", "report.json", LABELS} | ({fallback.path} if fallback and fallback.path != artifact.path else set())
    size = sum(entry.bytes for path, entry in files.items() if path not in kept_out)
    total = sum(entry.bytes for entry in files.values()) + (bundle.directory / "bundle.json").stat().st_size
    return BuildResult(bundle, seconds, size, total, cached)
