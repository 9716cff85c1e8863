"""Recorded traces: a CSV file, one line a request, with a header that names the columns (`COLUMNS`). Without ``cloud_ms`` there is no cloud tier."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgekit.errors import StorageError, UsageError
from edgekit.router.simulation._steps import Steps
from edgekit.router.simulation._trace import Endpoint, Trace

__all__ = ["COLUMNS", "read_trace"]

# Name -> (whether it is needed, what it means).
COLUMNS = {
    "arrival_s": ("yes", "seconds since any moment; not before the line above"),
    "device_ms": ("yes", "service time on the device, without its queue"),
    "cloud_ms": ("no", "service time in the cloud, without network; an empty cell where the cloud did not answer"),
    "round_trip_ms": ("no", "of the network, without the payload; 0 when the column is missing"),
    "payload_bytes": ("no", "size of the inputs; 0 when the column is missing"),
    "sla_ms": ("no", "of this request; 100 when the column is missing"),
    "uplink_mbit_s": ("no", "rate of the uplink from this arrival on; no limit when the column is missing"),
}
NEEDED = [name for name, (needed, _) in COLUMNS.items() if needed == "yes"]
POSITIVE = ("device_ms", "sla_ms")
DEFAULTS = {"round_trip_ms": 0.0, "payload_bytes": 0.0, "sla_ms": 100.0}
UNLIMITED_BYTES_PER_S = 1e15
BENCH_RUNS = 8


def read_trace(path: Path, most: int) -> Trace:
    """At most ``most`` requests of a file.

    Raises:
        StorageError: the file cannot be read.
        UsageError: a column or cell is not as it should be; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _trace(path, _Reader(path, csv.reader(stream, strict=True), most))
    except OSError as exc:
        raise StorageError(str(path), exc.strerror or str(exc), "a CSV file that can be read") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(str(path), f"not a CSV file: {exc}", "UTF-8 text with commas") from exc


class _Reader:
    """The columns as lists of numbers."""

    def __init__(self, path: Path, lines: Iterator[list[str]], most: int) -> None:
        self._path = path
        header = [name.strip() for name in next(lines, [])]
        self._refuse_header(header)
        self.columns: dict[str, list[float]] = {name: [] for name in header}
        for number, cells in enumerate(lines, start=2):
            if not cells:
                continue
            if len(self.columns["arrival_s"]) == most:
                break
            if len(cells) != len(header):
                raise UsageError(f"{path}:{number}", f"{len(cells)} cells", f"{len(header)}, as the header has")
            for name, cell in zip(header, cells, strict=True):
                self.columns[name].append(self._number(number, name, cell.strip()))
            self._refuse_order(number)
        if not self.columns["arrival_s"]:
            raise UsageError(str(path), "no request", "a header and at least one line below it")

    def _refuse_header(self, header: Sequence[str]) -> None:
        missing = [name for name in NEEDED if name not in header]
        unknown = [name or "(empty)" for name in header if name not in COLUMNS]
        if missing or unknown or len(set(header)) != len(header):
            found = f"no column {missing[0]}" if missing else f"column {unknown[0]}" if unknown else "a column twice"
            raise UsageError(
                f"{self._path}:1",
                found,
                f"{', '.join(NEEDED)} and of {', '.join(name for name in COLUMNS if name not in NEEDED)} what there is",
            )

    def _number(self, line: int, name: str, cell: str) -> float:
        if not cell and name == "cloud_ms":
            return math.inf
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        least = "more than 0" if name in POSITIVE else "0 or more"
        if not math.isfinite(value) or value < 0 or (name in POSITIVE and value == 0):
            raise UsageError(f"{self._path}:{line}", f"{name} {cell!r}", f"a number, {least}")
        return value

    def _refuse_order(self, line: int) -> None:
        arrivals = self.columns["arrival_s"]
        if len(arrivals) > 1 and arrivals[-1] < arrivals[-2]:
            raise UsageError(
                f"{self._path}:{line}", f"arrival_s {arrivals[-1]:g} after {arrivals[-2]:g}", "arrivals in order", "sort the file"
            )


def _trace(path: Path, reader: _Reader) -> Trace:
    columns: Mapping[str, list[float]] = reader.columns
    count, first = len(columns["arrival_s"]), columns["arrival_s"][0]
    arrive = [at - first for at in columns["arrival_s"]]

    def column(name: str, scale: float = 1.0) -> list[float]:
        return [value * scale for value in columns[name]] if name in columns else [DEFAULTS[name] * scale] * count

    uplink = Steps.constant(UNLIMITED_BYTES_PER_S)
    if "uplink_mbit_s" in columns:
        uplink = _changes(arrive, column("uplink_mbit_s", 1e6 / 8))
    endpoints = []
    if "cloud_ms" in columns:
        # The round trip was recorded request by request: a base of one second, times what each had.
        endpoints = [Endpoint([value / 1e3 for value in columns["cloud_ms"]], Steps.constant(1.0))]
    return Trace(
        name=path.stem,
        fault=False,
        arrive_s=arrive,
        sla_s=column("sla_ms", 1e-3),
        work_s=column("device_ms", 1e-3),
        payload_bytes=[int(value) for value in column("payload_bytes")],
        jitter=column("round_trip_ms", 1e-3),
        luck=[0.5] * count,
        device=Steps.constant(1.0),
        uplink=uplink,
        endpoints=endpoints,
        bench_s=[value / 1e3 for value in columns["device_ms"][:BENCH_RUNS]],
    )


def _changes(times: Sequence[float], values: Sequence[float]) -> Steps:
    """The value of the last of several that have the same time, where it differs from the one before."""
    points: dict[float, float] = {}
    last = None
    for at, value in zip(times, values, strict=True):
        if value != last:
            points[at] = last = value
    if 0.0 not in points:
        points[0.0] = values[0]
    return Steps(sorted(points.items()))
