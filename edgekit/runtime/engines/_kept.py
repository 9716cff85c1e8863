"""What an engine makes of a model, kept on disk so that later loads skip the making: optimised graphs, packed weights.

Layout, below the caller's cache folder: ``<engine>/<key>/<file>`` with ``entry.json`` (size and CRC-32) beside it. The key holds all that the content depends on:
the model's content, the engine's version and the CPU's features (weights are laid out for its kernels). An entry that is damaged, or that the engine refuses,
is made again.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgekit.bundle import atomic_directory

__all__ = ["CacheState", "cpu_features", "entry_key", "load_kept"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

CacheState = Literal["off", "hit", "stored"]


class _Entry(msgspec.Struct, frozen=True):
    bytes: int
    crc32: int


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
    return f"{platform.machine()} {platform.processor()}"


def load_kept(target: Path, name: str, make: Callable[[Path | None], T], take: Callable[[Path], T]) -> tuple[T, CacheState]:
    """Load a model through the cache. Trouble with the cache costs its gain and a line in the log, never the load.

    Args:
        target: the entry's folder.
        name: of the file in it.
        make: loads the model from its artifact; writes what shall be kept to the path, when there is one.
        take: loads the model with the help of the kept file.
    """
    path = target / name
    if _is_whole(path):
        try:
            return take(path), "hit"
        except Exception as exc:  # noqa: BLE001 - whatever the engine raises, the artifact itself decides
            _log.warning("cache %s: does not load and is made again: %s", target, exc)
    loaded: T | None = None
    try:
        with atomic_directory(target) as staging:
            written = staging / name
            loaded = make(written)
            entry = _Entry(written.stat().st_size, _crc32(written))
            (staging / "entry.json").write_bytes(msgspec.json.encode(entry))
    except Exception as exc:  # noqa: BLE001 - an artifact that is no model raises again in the next line
        loaded = make(None) if loaded is None else loaded
        _log.warning("cache %s: nothing is kept: %s", target, exc)
        return loaded, "off"
    return loaded, "stored"


def _is_whole(path: Path) -> bool:
    try:
        entry = _ENTRY_DECODER.decode((path.parent / "entry.json").read_bytes())
        if path.stat().st_size == entry.bytes and _crc32(path) == entry.crc32:
            return True
    except FileNotFoundError:
        return False
    except (OSError, msgspec.DecodeError):
        pass
    _log.warning("cache %s: damaged, made again", path.parent)
    return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _crc32(path: Path) -> int:
    """Finds a damaged disk, not a forger: who can write to the cache can write to the program."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
