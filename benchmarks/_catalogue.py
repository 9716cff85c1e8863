"""All benchmarks by name, in the order in which `make bench` runs those that it runs."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
LOAD_TOOLS = ("wrk", "taskset")


class Entry(NamedTuple):
    """One benchmark.

    ``quick`` and ``full`` are its arguments in the two modes of `make bench`; ``()`` stands for the script's defaults. ``suite`` is false where a figure belongs to building
    models and not to the runtime: those run by name only. ``tools`` are programs that must be on the path. ``limit_s`` ends a run that hangs, in full mode.
    """

    name: str
    about: str
    script: str = ""
    fixed: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    suite: bool = True
    limit_s: float = 3600.0

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.script or self.name}.py"

    def missing(self) -> str:
        """Why it cannot run here, as far as can be said before; empty when it can."""
        if not self.path.is_file():
            return f"{self.path.name} is not there"
        lacking = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"needs {', '.join(lacking)} on the path" if lacking else ""

    def arguments(self, *, full: bool) -> tuple[str, ...]:
        return self.fixed + (self.full if full else self.quick)


_SHORT = ("--rounds", "3", "--seconds", "3")
_FIVE = ("--rounds", "5", "--seconds", "3")  # for quotients that hang on the machine's clock and caches
_LONG = ("--rounds", "7", "--seconds", "10")
_MODEL_SERVERS = "edgekit,probe,triton,aiohttp,fastapi,mlserver,kserve,bentoml,litserve,ray-serve"

ENTRIES: tuple[Entry, ...] = (
    Entry("serve", "HTTP servers side by side, a tiny MLP", quick=_SHORT, full=_LONG, tools=LOAD_TOOLS),
    Entry(
        "serve_classifier",
        "HTTP servers side by side, PP-OCR's angle classifier",
        "serve",
        ("--model", "classifier", "--servers", _MODEL_SERVERS, "--connections", "16"),
        _FIVE,
        _LONG,
        LOAD_TOOLS,
    ),
    Entry("serve_grpc", "gRPC servers side by side, a tiny MLP and echoes", quick=_SHORT, full=_LONG, tools=("h2load", "taskset")),
    Entry("two_cores", "one core and two", quick=_FIVE, full=_LONG, tools=LOAD_TOOLS),
    Entry("sustained", "a real model at a constant rate on two cores", quick=("--minutes", "1"), full=("--minutes", "10")),
    Entry("scheduler", "what the scheduler costs, and what its choices are worth", quick=("--seconds", "1"), full=("--seconds", "4")),
    Entry("session_overhead", "what `Session.run` adds to the bare engine", quick=("--pairs", "2000"), full=("--pairs", "20000")),
    Entry(
        "engines",
        "latency of each engine beside ONNX Runtime",
        quick=("--seconds", "1", "ppocr-cls", "silero-vad"),
        full=("--seconds", "4"),
    ),
    Entry("cache", "what the result cache costs and keeps", quick=("--requests", "50000"), full=("--requests", "200000")),
    Entry("swap", "latency during hot swaps, a tiny model", fixed=("--model", "tiny"), quick=("--rounds", "4"), full=("--rounds", "10")),
    Entry("swap_large", "latency during hot swaps, 20 MB of weights", "swap", ("--model", "large"), ("--rounds", "4"), ("--rounds", "10")),
    Entry(
        "cold_start",
        "import, start to first answer, memory and disk, beside a bare script",
        quick=("--rounds", "5", "ppocr-cls"),
        full=("--rounds", "15"),
    ),
    Entry("soak", "a server among clients that behave badly", quick=("--seconds", "120"), full=("--seconds", "600")),
    Entry("router_hop", "what the router as a server adds to an edge server", quick=("--rounds", "3"), full=("--rounds", "9")),
    Entry("routing", "the router among real faults, beside what the simulator says", quick=("--seconds", "8"), full=("--seconds", "20")),
    Entry("loadgen", "MLPerf LoadGen through the router", quick=("--seconds", "20"), full=("--seconds", "60")),
    Entry("router_decision", "what the router costs", suite=False),
    Entry(
        "simulate", "the router against the oracle and simpler policies on a million requests, and how fast that is simulated", suite=False
    ),
    Entry("one_core", "where a model of a millisecond should run when there is one core", suite=False),
    Entry("builds", "build times beside the vendors' tools", suite=False),
    Entry("accuracy", "accuracy on labelled data by model, engine and precision", suite=False),
    Entry("preprocessing", "pictures prepared inside the artifact, and outside", suite=False),
    Entry("tensorflow_sources", "Keras models by the vendors' converters and by ours", suite=False),
    Entry("tflite_layout", "what the layout of our TFLite graphs costs", suite=False),
)


def _unlisted() -> tuple[Entry, ...]:
    """Scripts that no entry names: run by name only, told by the first line of their docstring."""
    known = {entry.path for entry in ENTRIES}
    found = []
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        if path not in known:
            first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
            found.append(Entry(path.stem, first.partition(":")[0].rstrip("."), suite=False))
    return tuple(found)


BY_NAME = {entry.name: entry for entry in (*ENTRIES, *_unlisted())}


def suite(names: Sequence[str] = ()) -> list[Entry]:
    """What `make bench` runs, in order; with ``names``, those (of all benchmarks)."""
    return [entry for entry in BY_NAME.values() if (entry.name in names if names else entry.suite)]


def listing() -> str:
    """A line for each benchmark."""
    width = max(map(len, BY_NAME))
    return "\n".join(f"  {entry.name:<{width}}  {entry.about}{'' if entry.suite else ' (not in make bench)'}" for entry in BY_NAME.values())
