"""What a section of docs/benchmarks.md is made of, and how figures are told in its tables. Everything here is pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec

from benchmarks._plots import number
from benchmarks._results import Record, Spread

T = TypeVar("T")


class Aim(NamedTuple):
    """A figure with the aim it is held to."""

    what: str
    aim: str
    found: str
    met: bool


class Section(NamedTuple):
    """Markdown lines, pictures by file name, and aims."""

    lines: list[str]
    pictures: Mapping[str, str] = MappingProxyType({})
    aims: Sequence[Aim] = ()


def document(record: Record, kind: type[T]) -> T:
    """The part of a record's document that a section reads.

    Raises:
        ValueError: the document has another shape; the message names the record.
    """
    try:
        return msgspec.convert(record.document, kind)
    except msgspec.ValidationError as exc:
        raise ValueError(
            f"{record.name}.json: not as the page reads it: {exc}; run the benchmark again: python -m benchmarks {record.name}"
        ) from exc


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; columns after the first are set right."""
    lines = [f"| {' | '.join(head)} |", "|" + "|".join("---" if index == 0 else "---:" for index in range(len(head))) + "|"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def told(value: Spread) -> str:
    """The median with the range of the rounds; the median alone where all rounds read the same."""
    median, least, most = (number(each) for each in value)
    return median if least == most else f"{median} ({least}–{most})"


def at_least(what: str, aim: float, found: Spread, *, times: bool = True) -> Aim:
    """Held by the median."""
    return Aim(what, f">= {number(aim)}{'x' if times else ''}", told(found) + ("x" if times else ""), found.median >= aim)


def at_most(what: str, aim: float, found: Spread, unit: str = "x") -> Aim:
    """Held by the median; ``unit`` follows the numbers."""
    return Aim(what, f"<= {number(aim)}{unit}", f"{told(found)}{unit}", found.median <= aim)


def picture(name: str, alt: str) -> list[str]:
    """Its place in the page."""
    return [f"![{alt}](images/{name})", ""]


def once(value: float) -> Spread:
    """A figure that was taken once."""
    return Spread(value, value, value)
