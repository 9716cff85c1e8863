"""What an engine makes of a model, kept on disk so that later loads skip the making: optimised graphs, packed weights.

Layout, below the caller's cache folder: ``<engine>/<key>/<file>`` with ``entry.json`` (its SHA-256) beside it. The key holds all that the content depends on: the
model's content, the engine's version and the CPU's features (weights are laid out for its kernels). An entry that is damaged, or that the engine refuses, is
made again. Where checking a kept file would cost too much of the load that it is to shorten, only a note of that is kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgekit.bundle import atomic_directory

__all__ = ["CacheState", "cpu_features", "entry_key", "load_kept", "worth_keeping"]

T = TypeVar("T")

CacheState = Literal["off", "hit", "stored"]


_LEAST_GAIN = 5.0


class _Entry(msgspec.Struct, frozen=True):
    sha256: str  # empty: not worth keeping


_ENTRY_DECODER = msgspec.json.Decoder(_Entry)


def entry_key(model: Path, content: str, version: str, features: str) -> str:
    """Name of the entry.

    Args:
        model: the artifact's file.
        content: identifies its content; empty: the file is hashed here.
        version: the engine's.
        features: the CPU's, see `cpu_features`.
    """
    return hashlib.sha256(f"{content or _digest(model)}\n{model.name}\n{version}\n{features}".encode()).hexdigest()[:32]


@cache
def cpu_features() -> str:
    """What this CPU can do, as Linux prints it; elsewhere its model name."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return " ".join(sorted(line.partition(":")[2].split()))
    except OSError:
        pass
    import platform

    return f"{platform.machine()} {platform.processor()}"


def worth_keeping(load_s: float, check_s: float) -> bool:
    """The file's check, which every later load pays, is a small part of the load that made it.

    Measured on ONNX Runtime 1.31.1: 17 ms and 0.4 ms for the angle classifier (0.5 MB), whose later loads take 8; for four dense layers (67 MB) about 150
    and 40 ms, and later loads were slower with the kept file than without.
    """
    return load_s >= _LEAST_GAIN * check_s


def load_kept(
    target: Path,
    name: str,
    make: Callable[[Path | None], T],
    take: Callable[[Path], T],
    worth: Callable[[float, float], bool] = worth_keeping,
) -> tuple[T, CacheState]:
    """Load a model through the cache. Trouble with the cache costs its gain and a line in the log, never the load.

    Args:
        target: the entry's folder.
        name: of the file in it.
        make: loads the model from its artifact; writes what shall be kept to the path, when there is one.
        take: loads the model with the help of the kept file.
        worth: whether to keep the file, given the seconds that `make` and the file's check took.
    """
    path = target / name
    entry = _read_entry(target)
    if entry is not None and not entry.sha256:
        return make(None), "off"
    if entry is not None and _is_whole(path, entry):
        try:
            return take(path), "hit"
        except Exception as exc:  # noqa: BLE001 - whatever the engine raises, the artifact itself decides
            _warn("cache %s: does not load and is made again: %s", target, exc)
    loaded: T | None = None
    try:
        with atomic_directory(target) as staging:
            written = staging / name
            began_s = time.perf_counter()
            loaded = make(written)
            made_s = time.perf_counter()
            digest = _digest(written)
            kept = worth(made_s - began_s, time.perf_counter() - made_s)
            if not kept:
                written.unlink()
            (staging / "entry.json").write_bytes(msgspec.json.encode(_Entry(digest if kept else "")))
    except Exception as exc:  # noqa: BLE001 - an artifact that is no model raises again in the next line
        loaded = make(None) if loaded is None else loaded
        _warn("cache %s: nothing is kept: %s", target, exc)
        return loaded, "off"
    return loaded, "stored" if kept else "off"


def _read_entry(target: Path) -> _Entry | None:
    try:
        return _ENTRY_DECODER.decode((target / "entry.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def _is_whole(path: Path, entry: _Entry) -> bool:
    try:
        if _digest(path) == entry.sha256:
            return True
    except OSError:
        pass
    _warn("cache %s: damaged, made again", path.parent)
    return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warn(message: str, *arguments: object) -> None:
    import logging  # a load that goes well says nothing, and starts sooner without it

    logging.getLogger(__name__).warning(message, *arguments)
