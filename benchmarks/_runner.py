"""Runs benchmarks, each in its own process, and keeps what they wrote with the machine it was measured on."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks._catalogue import Entry
from benchmarks._machine import commit, machine
from benchmarks._results import Record, plain

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KEPT = ROOT / "docs" / "benchmarks"


class Outcome(NamedTuple):
    """How one benchmark of several went; ``why`` is empty when all was in order."""

    name: str
    seconds: float
    why: str


def run(entry: Entry, arguments: Sequence[str], folder: Path = RESULTS) -> tuple[Record | None, str]:
    """Run one benchmark and write ``folder/NAME.json``; the record, and what was wrong (empty: nothing).

    A benchmark that ended without a document leaves no record, and an earlier one where it was.
    """
    if why := entry.missing():
        return None, why
    before, began = os.getloadavg()[0], time.perf_counter()
    started = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
    of_machine, of_commit = machine(), commit()
    found = _output([sys.executable, str(entry.path), *arguments], entry.limit_s)
    if found is None:
        return None, f"not done within {entry.limit_s:g} s"
    exit_code, output = found
    document = read_document(output)
    if document is None:
        return None, f"ended with {exit_code} and no result"
    record = Record(
        name=entry.name,
        command=shlex.join(["python", "-m", "benchmarks", entry.name, *arguments[len(entry.fixed) :]]),
        commit=of_commit,
        started=started,
        seconds=time.perf_counter() - began,
        machine=of_machine,
        load_average=(before, os.getloadavg()[0]),
        exit_code=exit_code,
        document=document,
    )
    write(record, folder)
    left_out = ", ".join(document.get("left_out", {}))
    wrong = f"left out: {left_out}" if left_out else f"ended with {exit_code}" if exit_code else ""
    return record, wrong


def _output(command: list[str], limit_s: float) -> tuple[int, bytes] | None:
    """Exit code and output of a process; None when it was not done in time, and was ended with all that it had started."""
    import psutil

    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        output = process.communicate(timeout=limit_s)[0]
    except BaseException as exc:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            return None
        raise
    return process.returncode, output


def read_document(raw: bytes) -> dict[str, Any] | None:
    """The one JSON object that a benchmark prints, or a list as its ``rows``; None when it printed something else."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, Any] | list[Any])
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else {"rows": found}


def run_all(entries: Iterable[Entry], *, full: bool, folder: Path = RESULTS) -> list[Outcome]:
    """One after the other; what cannot run here is said and left out, and the rest goes on. Earlier results of these benchmarks are dropped, so that all are of this run."""
    outcomes = []
    for entry in entries:
        print(f"== {entry.name}: {entry.about}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        (folder / f"{entry.name}.json").unlink(missing_ok=True)
        _, why = run(entry, entry.arguments(full=full), folder)
        outcomes.append(Outcome(entry.name, time.perf_counter() - began, why))
        if why:
            print(f"{entry.name}: {why}", file=sys.stderr, flush=True)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each benchmark, for a terminal."""
    lines = [f"{each.name:<20}{each.seconds:>7.0f} s  {each.why or 'ok'}" for each in outcomes]
    return "\n".join([*lines, f"{'all':<20}{sum(each.seconds for each in outcomes):>7.0f} s"])


def write(record: Record, folder: Path) -> Path:
    """Write a record as ``folder/NAME.json``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    beside = path.with_suffix(".json.new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(plain(record)), indent=1) + b"\n")
    beside.replace(path)
    return path


def read(folder: Path) -> dict[str, Record]:
    """All records of a folder by name.

    Raises:
        ValueError: a file is not a record; the message names it.
    """
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = msgspec.json.decode(path.read_bytes(), type=Record)
        except msgspec.DecodeError as exc:
            raise ValueError(
                f"{path.name}: not a benchmark's record: {exc}; run the benchmark again: python -m benchmarks {path.stem}"
            ) from exc
    return records
