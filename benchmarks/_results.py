"""What benchmarks write: the shapes of their JSON, and how a figure of several rounds is told."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

Rounds = list[float]
"""One figure, once for each round, in their order."""


class Spread(NamedTuple):
    """A figure of several rounds: the median, and the least and the most that were seen."""

    median: float
    least: float
    most: float


def spread(rounds: Sequence[float]) -> Spread:
    """Median, least and most of the rounds."""
    return Spread(statistics.median(rounds), min(rounds), max(rounds))


def ratio(rounds: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Of two contenders that took turns: the quotient of each round's figures, so that what slowed both counts little."""
    return spread([mine / other for mine, other in zip(rounds, baseline, strict=True)])


class Contender(msgspec.Struct, kw_only=True):
    """A server of a side-by-side run: figures by number of connections, then by name, then by round."""

    version: str = ""
    encoding: str
    start_s: float
    rss_mb: float
    connections: dict[str, dict[str, Rounds]]


class SideBySide(msgspec.Struct, kw_only=True):
    """Servers that took turns under the same load. ``left_out`` says why a server could not be measured."""

    transport: str
    model: str
    rounds: int
    seconds: float
    bare_engine: dict[str, Rounds]
    servers: dict[str, Contender]
    left_out: dict[str, str] = {}


class Machine(msgspec.Struct, kw_only=True):
    """Where a benchmark ran. ``versions`` holds packages and tools by name."""

    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    governor: str
    python: str
    versions: dict[str, str]


class Record(msgspec.Struct, kw_only=True):
    """One benchmark's run: what was run where and when, and its own document.

    ``load_average`` is that of the last minute, before and after. ``exit_code`` is 0 when the benchmark itself found everything in order.
    """

    name: str
    command: str
    commit: str
    started: str
    seconds: float
    machine: Machine
    load_average: tuple[float, float]
    exit_code: int
    document: dict[str, Any]


def plain(document: Any) -> dict[str, Any]:
    """A structure as JSON has it, numbers to four significant digits: no figure here has more."""
    built: dict[str, Any] = _rounded(msgspec.to_builtins(document))
    return built


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
