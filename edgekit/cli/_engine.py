"""The flags that say how the engine runs, for every command that loads a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.runtime import EngineOptions

__all__ = ["Accelerator", "EngineCache", "Hint", "Threads", "engine_options"]

Threads = Annotated[int, typer.Option(metavar="N", help="CPU threads of one run; 0 for what the bundle says.")]
Accelerator = Annotated[str, typer.Option(metavar="NAME", help="cpu, gpu, npu or tpu; by default the profile's first that works here.")]
Hint = Annotated[str, typer.Option(metavar="latency|throughput", help="One request as fast as it goes, or many at once.")]
EngineCache = Annotated[str, typer.Option("--engine-cache", metavar="DIR", help="Where the engine keeps compiled forms; none by default.")]


def engine_options(threads: int = 0, accelerator: str = "", hint: str = "latency", cache_dir: str = "") -> EngineOptions:
    """What the flags say, checked."""
    from edgekit.runtime import EngineOptions

    if threads < 0:
        raise UsageError("--threads", str(threads), "0 or more")
    return EngineOptions(threads=threads, accelerator=accelerator, hint=hint, cache_dir=cache_dir)
