"""How results reach a person or a script: one JSON document, or a few aligned lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

__all__ = ["Settings", "memory", "say", "settings", "show", "size", "table"]


@dataclass
class Settings:
    """The global options of this invocation."""

    json: bool = False
    debug: bool = False


settings = Settings()


def show(document: object, lines: Iterable[str]) -> None:
    """Print ``document`` as JSON under ``--json``, else ``lines``; nothing else goes to stdout."""
    if settings.json:
        encoded = msgspec.json.encode(document, enc_hook=str)
        sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")
    else:
        for line in lines:
            sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Progress and remarks, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> list[str]:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(header), *cells]) for index in range(len(header))]
    numeric = [bool(rows) and all(isinstance(row[index], (int, float)) for row in rows) for index in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()

    return [line(list(header)), *(line(row) for row in cells)]


def size(count: float) -> str:
    """``4.7 MB`` (decimal units, as file managers and data sheets use)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def memory(count: int) -> str:
    """``7.4 GiB``: RAM is sold and reported in binary units."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
