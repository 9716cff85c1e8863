"""``edgekit conformance``: ONNX's own backend tests through the converter of a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli._output import say, show
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.converters.conformance import Verdict

__all__ = ["register"]

_EVERY = 50  # cases between two lines of progress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("conformance", short_help="Run ONNX's own backend tests through a converter.")(conformance)


def conformance(
    device: Annotated[str, typer.Option("--device", metavar="ID", help="Device profile.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Results (.json) or the support table (.md).")] = "",
    precision: Annotated[str, typer.Option(help="Precision to build in; the suite's tolerances are made for fp32.")] = "fp32",
    only: Annotated[str, typer.Option(metavar="REGEX", help="Only cases with such a name.")] = "",
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Only each N-th case, for a quick look.")] = 1,
    jobs: Annotated[int, typer.Option(min=0, metavar="N", help="Workers; 0 takes one per core.")] = 0,
) -> None:
    """Run ONNX's own backend tests through a device's converter: passed, refused with a reason, or failed."""
    from edgekit.converters.conformance import conformance as run
    from edgekit.converters.conformance import write_results

    if output and Path(output).suffix not in (".json", ".md"):  # found out here, not after half an hour
        raise UsageError(f"--output {output}", f"suffix {Path(output).suffix or '(none)'}", "a name that ends in .json or .md")
    done = 0

    def progress(name: str, verdict: Verdict) -> None:
        nonlocal done
        done += 1
        if verdict.verdict == "failed":
            say(f"failed: {name}: {verdict.reason}")
        if done % _EVERY == 0:
            say(f"{done} cases")

    say(f"running the cases that ONNX Runtime passes on {jobs or os.cpu_count()} worker(s)")
    results = run(device, precision=precision, only=only, every=every, jobs=jobs, progress=progress)
    if output:
        write_results(Path(output), results)
    total = len(results.cases)
    counts = f"{results.passed} passed ({results.passed / total:.1%}), {results.refused} refused, {results.failed} failed"
    lines = [
        f"{results.device} ({results.engine} {results.precision}): {total} cases, {counts}",
        *(f"  {entry.verdict}: {name}: {entry.reason}" for name, entry in results.cases.items() if entry.verdict != "passed"),
        *([f"written: {output}"] if output else []),
    ]
    show(results, lines)
    if results.failed:
        raise typer.Exit(1)
