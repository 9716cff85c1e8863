"""docs/benchmarks.md and its pictures, from the stored results: the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks import _sections_routing as router
from benchmarks import _sections_runtime as runtime
from benchmarks import _sections_servers as servers
from benchmarks._plots import number
from benchmarks._results import Machine, Record
from benchmarks._sections import Aim, Section, markdown

HEAD = "<!-- Written by docs/generate.py from docs/benchmarks/*.json; `make check` fails when it is out of date. -->"

INTRODUCTION = """
# Benchmarks

`make bench` measures all of this in about forty minutes (`make bench BENCH=full`: about two hours), `python -m benchmarks` lists the benchmarks, and `python -m benchmarks NAME` runs one. Results go
to `benchmarks/results` as JSON; `python -m benchmarks keep` takes them into `docs/benchmarks`, which this page is made from. Absolute figures do not carry to another machine or another
day: compare what stands in one table, which was measured in one run.

## What these figures do not show

- **A network, or many different clients.** Server and load share a machine with two cores, over loopback, and every request is the same.
- **The devices.** This is the machine named below; a Raspberry Pi or a Jetson has other ratios of memory, cores and engine.
- **The best that each peer can do.** Peers run as their documentation says, with one worker on one core, and the same ONNX Runtime with one thread behind them. Triton runs its Python
  back end with its default dynamic batching (`dynamic_batching { }`, its best setting here: a queue policy stalls it, a delay or no batching is slower), because its native ONNX Runtime
  back end is in no package; that one would be faster, so beating this Triton is not yet beating that one. OpenVINO Model
  Server is in no package registry and is not measured.
- **What the peers' other features are worth.** A tiny model shows what is around the engine, and little else.

## How it is measured

- **Pinning.** The server, with all its processes, is bound to core 0; the load generator runs on core 1 (`taskset`). One engine thread.
- **Turns.** All servers of a run are started first. Then each gets its turn, round after round, in an order that rotates; whoever has no turn is stopped where it is (SIGSTOP), because some
  use a core's percents while nothing is asked. What else the machine does meets all of them.
- **The bare engine.** It runs half of its turn right before the turn of ours and half right after it; and one core's turns are in two halves around those of two: the same engine took up
  to a third longer in one minute than in the next.
- **Warm-up.** Before each turn comes a second of the same load that does not count.
- **Noise.** Tables give the median over the rounds and, in brackets, the least and the most; the pictures have them as whiskers. Quotients are taken within a round before their median
  is. CPU time of a request depends far less on what else runs than its latency does. The load average before and after is part of each result.
- **Load, closed loop.** wrk and h2load keep each connection busy: the next request is sent when the answer to the last is there. So a slow server is asked less often, and a stall shows as one
  slow request a connection and not as all that would have arrived meanwhile (coordinated omission): their p99 flatters servers that stall. *A constant rate* below is the open loop:
  requests are sent when they are due, and latency counts from then.
- **Load, its own limit.** Tables say how busy the load generator kept its core. Where that is nearly all of it, the figure is the generator's and not the server's.
- **Right answers.** The first answer's numbers are compared with the engine's, and every other answer must be one of success; over gRPC also of the same length.
- **Encodings.** Each server gets the densest that it takes: the binary extension of the Open Inference Protocol; JSON for MLServer, whose HTTP has no binary form; the
  array's bytes for BentoML and Ray Serve; base64 in JSON for LitServe.
- **Peers** are installed into environments of their own from locked lists (`requirements/peers`).
""".strip()


class Topic(NamedTuple):
    """One section of the page and the benchmark it comes from."""

    name: str
    title: str
    about: str
    make: Callable[[Record], Section]


TOPICS = (
    Topic("serve", "HTTP, a tiny model", "768 float32 in, 10 out, a dynamic batch. `probe` is a bare asyncio protocol that parses only what this load sends, without limits or errors, and batches what arrived in one turn of its loop: a ceiling for Python, not a server.", servers.http),
    Topic("serve_classifier", "HTTP, a real model", "PP-OCR's angle classifier, 110 kB a request.", servers.classifier),
    Topic("serve_grpc", "gRPC", "The same tiny model. The echoes have no model and give the same answer again and again: what a transport costs. Ours decodes and encodes the tensors, grpcio's hand bytes through.", servers.grpc),
    Topic("two_cores", "Two cores", "`edgekit serve` with PP-OCR's angle classifier, with a batch of one (`fixed`) and an open batch (`open`), held to one core and on both. The load shares the second core with it, so its time is taken off in the third way of counting.", servers.two_cores),
    Topic("sustained", "A constant rate", "A real model on two cores, which the load shares. The loop is open: requests are sent when they are due, and latency counts from then.", servers.sustained),
    Topic("scheduler", "Scheduling", "What a turn of the scheduler adds to the bare engine, in CPU time of the thread.", runtime.scheduler),
    Topic("session_overhead", "A session in process", "`Session.run` beside the engine's own call, in turns, one thread.", runtime.session_overhead),
    Topic("engines", "Engines", "The same model through each engine, calls in turns, one thread.", runtime.engines),
    Topic("cache", "Result cache", "Hit ratios on synthetic traces of equal entries, and what a key and a hit cost.", runtime.cache),
    Topic("swap", "Hot swap, a tiny model", "p99 while versions are installed, loaded, warmed and switched to, over that of the quiet phases around it, at half of what the server takes.", runtime.swap),
    Topic("swap_large", "Hot swap, 20 MB of weights", "The same with a model whose loading is work.", runtime.swap),
    Topic("cold_start", "Start, memory and size", "A process of its own each time, in turns with a bare script of the same engine that loads the same file.", runtime.cold_start),
    Topic("router_hop", "The router in between", "What `edgekit route` adds to `edgekit serve`, each in a process of its own: the same request directly and through the router, in turns, one connection. The edge server has one core, router and client the other.", router.hop),
    Topic("routing", "Routing among real faults", "An edge server on a core of its own, Triton behind a proxy of ours that breaks the network, other processes on the device's core; the same arrivals through the router, to the device alone and to the cloud alone. *Predicted* is the simulator's with the service times measured before the run, *with drift* with those of the run, and *left* is what neither explains. A difference within two standard deviations of the simulator's seeds, or two requests, is chance.", router.routing),
    Topic("loadgen", "MLPerf LoadGen", "An independent load generator with rules of its own, to the edge server directly and through the router; PP-OCR's text recogniser.", router.loadgen),
    Topic("soak", "Soak", "A server among clients that behave badly.", runtime.soak),
)  # fmt: skip


def files(records: Mapping[str, Record]) -> dict[str, str]:
    """Text by path below docs/.

    Raises:
        ValueError: a record's document has another shape than its section reads.
    """
    parts: list[str] = []
    aims: list[Aim] = []
    pictures: dict[str, str] = {}
    for topic in TOPICS:
        parts += ["", f"## {topic.title}", "", topic.about, ""]
        record = records.get(topic.name)
        if record is None:
            parts.append(f"Not measured yet: `python -m benchmarks {topic.name}`.")
            continue
        section = topic.make(record)
        parts += [*section.lines, "", provenance(record)]
        aims += section.aims
        pictures |= {f"images/{name}": text for name, text in section.pictures.items()}
    page = [HEAD, "", INTRODUCTION, "", *machines(records), "", *aim_table(aims), *parts]
    return {"benchmarks.md": "\n".join(page) + "\n", **pictures}


def provenance(record: Record) -> str:
    """How and when a section's figures came about."""
    before, after = record.load_average
    text = f"`{record.command}`, {record.started}, commit {record.commit}, {number(record.seconds)} s, load average {before:.2f} before and {after:.2f} after"
    return f"<sub>{text}.</sub>"


def machines(records: Mapping[str, Record]) -> list[str]:
    """Each machine with the benchmarks that ran on it; usually one."""
    found: dict[str, tuple[Machine, list[str]]] = {}
    for topic in TOPICS:
        if (record := records.get(topic.name)) is not None:
            found.setdefault(repr(record.machine), (record.machine, []))[1].append(topic.name)
    lines = ["## Machine", ""]
    if not found:
        return [*lines, "Nothing is measured yet."]
    for machine, names in found.values():
        which = "" if len(found) == 1 else f" ({', '.join(names)})"
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        lines += [
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.kernel}, CPU governor {machine.governor}, Python {machine.python}{which}.",
            "",
            f"{versions}.",
            "",
        ]
    return lines[:-1]


def aim_table(aims: list[Aim]) -> list[str]:
    """What was aimed at and what was reached, in the order of the page."""
    if not aims:
        return []
    rows = [[aim.what, aim.aim, aim.found, "yes" if aim.met else "**no**"] for aim in aims]
    return [
        "## Aims",
        "",
        "Held by the median; the range of the rounds is in brackets.",
        "",
        *markdown(["figure", "aim", "measured", "reached"], rows),
    ]
