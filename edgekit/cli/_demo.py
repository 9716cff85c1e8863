"""``edgekit demo``: all of it, on real input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli._addresses import wait_for_stop
from edgekit.cli._output import say, show, table
from edgekit.errors import EnvironmentMissingError

if TYPE_CHECKING:
    from edgekit.cli.demo import Endpoints

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("demo", short_help="All of it, on real input.")(demo)


def demo(
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Where bundles, pictures and the report go.")] = "out/demo",
    keep: Annotated[bool, typer.Option("--keep", help="Leave collector, Triton, edge server and router running until Ctrl-C.")] = False,
) -> None:
    """Build, prove, serve, route and watch a text recogniser on this machine."""
    from importlib.util import find_spec

    for package in ("onnx", "tensorflow", "coremltools", "skimage", "matplotlib", "chdb", "aiohttp"):
        if find_spec(package) is None:
            raise EnvironmentMissingError.for_extra("edgekit demo", package, "all")
    from edgekit.cli.demo import run_demo

    result = run_demo(Path(output), say, wait=_keep if keep else None)
    rows = [
        (s.policy, s.requests, f"{s.sla_hit_rate:.1%}", f"{s.p50_ms:.0f}", f"{s.p99_ms:.0f}", s.errors, f"{s.cloud_share:.0%}")
        for s in result.policies
    ]
    header = ("policy", "requests", f"inside {result.load.sla_ms:g} ms", "p50 ms", "p99 ms", "errors", "by the cloud")
    lines = [
        "",
        *table(rows, header),
        "",
        f"pictures: {output}/ocr.png, {output}/latency.png   report: {output}/report.json   {result.seconds:.0f} s in all",
        f"the fleet's telemetry is kept: edgekit collector --store {output}/store shows it again",
    ]
    show(result, lines)


def _keep(endpoints: Endpoints) -> None:
    say(
        f"   everything is up: fleet page {endpoints.dashboard}, router {endpoints.router}, edge {endpoints.edge}, Triton {endpoints.cloud}"
    )
    say("   Ctrl-C ends it")
    wait_for_stop()
