"""Sections of docs/benchmarks.md about servers under load."""

from __future__ import annotations

import msgspec

from benchmarks._plots import Bar, Mark, bars, number
from benchmarks._results import Record, SideBySide, Spread, ratio, spread
from benchmarks._sections import Aim, Section, at_least, at_most, document, markdown, once, picture, told

RATE = "requests_per_s"
TWO_CORES_AIM = 1.8


def is_ours(name: str) -> bool:
    return name.startswith("edgekit")


def figure(results: SideBySide, server: str, connections: int, name: str) -> Spread:
    """A figure of one server over the rounds."""
    return spread(results.servers[server].connections[str(connections)][name])


def measured(record: Record, *connections: int) -> SideBySide:
    """The record's document, which must have figures for so many connections.

    Raises:
        ValueError: it has others; the message names the record.
    """
    results = document(record, SideBySide)
    for name, server in results.servers.items():
        if lacking := [str(count) for count in connections if str(count) not in server.connections]:
            raise ValueError(
                f"{record.name}.json: {name} has no figures for {', '.join(lacking)} connections, which the page shows; run the benchmark with its defaults"
            )
    return results


def table(results: SideBySide) -> list[str]:
    """All servers, the fastest first, with the spread of what the load decides."""
    counts = sorted({int(count) for server in results.servers.values() for count in server.connections})
    most = counts[-1]
    head = ["server", "version", "encoding", f"requests/s, {most} connections", "p99, ms", "CPU of a request, us", "load generator busy"]
    head += [f"p50 with {counts[0]}, ms"] if len(counts) > 1 else []
    rows = []
    for name in by_rate(results, most):
        server = results.servers[name]
        row = [f"**{name}**" if is_ours(name) else name, server.version or "-", server.encoding]
        row += [told(figure(results, name, most, key)) for key in (RATE, "p99_ms", "cpu_us")]
        row += [f"{figure(results, name, most, 'load_busy').median:.0%}"]
        row += [told(figure(results, name, counts[0], "p50_ms"))] if len(counts) > 1 else []
        rows.append([*row, f"{server.rss_mb:.0f}", f"{server.start_s:.2f}"])
    lines = markdown([*head, "memory, MB", "start, s"], rows)
    return lines + [f"\nLeft out: {name} ({why})." for name, why in sorted(results.left_out.items())]


def by_rate(results: SideBySide, connections: int) -> list[str]:
    return sorted(results.servers, key=lambda name: -figure(results, name, connections, RATE).median)


def rate_plot(results: SideBySide, title: str, connections: int, mark: Mark | None) -> str:
    rows = [Bar(name, figure(results, name, connections, RATE), is_ours(name)) for name in by_rate(results, connections)]
    return bars(title, f"requests a second, {connections} connections; more is better", rows, mark)


def engine_mark(results: SideBySide) -> Mark:
    return Mark("bare engine, one run after another", spread(results.bare_engine[RATE]).median)


def bare(results: SideBySide) -> str:
    rate, cpu = spread(results.bare_engine[RATE]), spread(results.bare_engine["cpu_us"])
    return f"The bare engine on the servers' core, one run after another: {told(rate)} a second, {told(cpu)} us of CPU a run."


def against(results: SideBySide, mine: str, other: str, connections: int, key: str = RATE) -> Spread | None:
    """Quotient in each round; None where one of them was not measured."""
    if mine not in results.servers or other not in results.servers:
        return None
    return ratio(*(results.servers[name].connections[str(connections)][key] for name in (mine, other)))


def over(results: SideBySide, other: str, what: str, times: float) -> list[Aim]:
    """Our rate over a peer's; nothing where one of the two was not measured."""
    found = against(results, "edgekit", other, 16)
    return [] if found is None else [at_least(what, times, found)]


def http(record: Record) -> Section:
    """Tiny MLP over HTTP."""
    results = measured(record, 1, 16)
    aims = []
    for other, times in (("triton", 2.5), ("mlserver", 14.0)):
        aims += over(results, other, f"HTTP, tiny MLP, 16 connections: rate over {other}'s", times)
    if "edgekit" in results.servers:
        aims.append(at_least("requests/s there", 30_000, figure(results, "edgekit", 16, RATE), times=False))
        aims.append(at_most("p99 there", 5.0, figure(results, "edgekit", 16, "p99_ms"), " ms"))
    if (found := against(results, "edgekit", "probe", 1, "p50_ms")) is not None:
        aims.append(at_most("HTTP, one connection: p50 over the bare protocol's", 1.15, found))
    memory = [Bar(name, Spread(*[server.rss_mb] * 3), is_ours(name)) for name, server in results.servers.items()]
    lone = [
        Bar(name, figure(results, name, 1, "p50_ms"), is_ours(name)) for name in results.servers if "1" in results.servers[name].connections
    ]
    pictures = {
        "bench-http.svg": rate_plot(results, "HTTP, tiny MLP, one core for the server", 16, engine_mark(results)),
        "bench-http-lone.svg": bars("HTTP, tiny MLP, one connection: p50", "milliseconds; less is better", _least_first(lone)),
        "bench-memory.svg": bars("Resident memory of each server", "MB, all its processes; less is better", _least_first(memory)),
    }
    lines = [bare(results), "", *picture("bench-http.svg", "Requests a second of each HTTP server")]
    lines += picture("bench-http-lone.svg", "Median latency of each HTTP server with one connection")
    lines += [*table(results), "", *picture("bench-memory.svg", "Resident memory of each server")]
    return Section(lines, pictures, aims)


def classifier(record: Record) -> Section:
    """PP-OCR's angle classifier over HTTP."""
    results = measured(record, 16)
    aims: list[Aim] = []
    if "edgekit" in results.servers:
        mine = results.servers["edgekit"].connections["16"][RATE]
        aims.append(at_least("HTTP, angle classifier: rate over the bare engine's", 0.92, ratio(mine, results.bare_engine[RATE])))
    plot = rate_plot(results, "HTTP, PP-OCR's angle classifier, one core for the server", 16, engine_mark(results))
    lines = [
        bare(results),
        "",
        *picture("bench-classifier.svg", "Requests a second of each HTTP server with a real model"),
        *table(results),
    ]
    return Section(lines, {"bench-classifier.svg": plot}, aims)


def grpc(record: Record) -> Section:
    """Tiny MLP over gRPC, and echoes."""
    results = measured(record, 16)
    aims = []
    if (found := against(results, "edgekit-echo", "grpcio-echo", 16)) is not None:
        aims.append(at_least("gRPC: our echo over grpcio's", 0.9, found))
    aims += over(results, "triton", "gRPC, tiny MLP: rate over triton's", 1.0)
    echo = results.servers.get("grpcio-echo")
    mark = Mark("grpcio's echo", spread(echo.connections["16"][RATE]).median) if echo else None
    plot = rate_plot(results, "gRPC, tiny MLP, and echoes without a model, one core for the server", 16, mark)
    return Section([*picture("bench-grpc.svg", "Requests a second of each gRPC server"), *table(results)], {"bench-grpc.svg": plot}, aims)


class Range(msgspec.Struct):
    """A `Spread` as JSON has it."""

    median: float
    least: float
    most: float


class CoresOfModel(msgspec.Struct):
    """By cores (``0`` and ``0,1``): rates and figures of the server; how much more two give, three ways (`benchmarks/two_cores.py`)."""

    bare_engine_per_s: dict[str, float]
    bare_engine_scaling: Range
    server: dict[str, dict[str, float]]
    scaling: Range
    scaling_of_what_was_left: Range
    scaling_by_cpu: Range


class TwoCores(msgspec.Struct):
    connections: int
    models: dict[str, CoresOfModel]


def two_cores(record: Record) -> Section:
    """The classifier on one core and on two."""
    results = document(record, TwoCores)
    rows, scalings, bars_of, aims = [], [], [], []
    for model, found in results.models.items():
        for cores, server in found.server.items():
            figures = (found.bare_engine_per_s[cores], server[RATE], server["p99_ms"], server["cpu_us"])
            rows.append([model, cores, *(number(value) for value in figures), f"{server['load_busy']:.0%}"])
        ways = (found.bare_engine_scaling, found.scaling, found.scaling_of_what_was_left, found.scaling_by_cpu)
        spreads = [Spread(way.median, way.least, way.most) for way in ways]
        scalings.append([model, *(told(each) for each in spreads)])
        bars_of += [Bar(f"bare engine, {model}", spreads[0]), Bar(f"edgekit, {model}", spreads[2], ours=True)]
        aims.append(at_least(f"two cores over one, of what the load left of them, batch {model}", TWO_CORES_AIM, spreads[2]))
    plot = bars("Two cores over one", "times the rate of one core; more is better", bars_of, Mark(f"aim: {TWO_CORES_AIM}", TWO_CORES_AIM))
    head = [
        "batch",
        "cores of the server",
        "bare engine, runs/s",
        f"requests/s, {results.connections} connections",
        "p99, ms",
        "CPU of a request, us",
    ]
    lines = [*picture("bench-two-cores.svg", "Rate on two cores over the rate on one"), *markdown([*head, "load, of a core"], rows), ""]
    lines += markdown(
        ["batch", "bare engine, two over one", "server: rates", "of the cores that the load left", "by CPU time of a request"], scalings
    )
    return Section(lines, {"bench-two-cores.svg": plot}, aims)


class Sustained(msgspec.Struct):
    """A constant rate; latencies count from when a request was due."""

    model: str
    device: str
    transport: str
    rate_per_s: float
    minutes: float
    limit_ms: float
    requests: int
    answered_per_s: float
    errors: dict[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float
    p99_ms_by_minute: list[float]
    server_cores: float
    generator_cores: float
    rss_mb: float
    rss_slope_mb_per_minute: float
    met: bool


def sustained(record: Record) -> Section:
    """A real model at a constant rate."""
    found = document(record, Sustained)
    errors = sum(found.errors.values())
    told_errors = (
        f"{errors:,} errors ({', '.join(f'{what}: {count:,}' for what, count in found.errors.items())})" if errors else "no errors"
    )
    rows = [
        ["requests due", f"{found.requests:,}"],
        ["answered a second", number(found.answered_per_s)],
        ["p50, ms", number(found.p50_ms)],
        ["p99, ms", number(found.p99_ms)],
        ["slowest, ms", number(found.max_ms)],
        ["cores that the server took", number(found.server_cores)],
        ["cores that the generator took", number(found.generator_cores)],
        ["memory, MB", number(found.rss_mb)],
        ["slope of memory, MB a minute", f"{found.rss_slope_mb_per_minute:+.2f}"],
    ]
    where = f"{found.model}, built for `{found.device}`, over {found.transport}, {number(found.rate_per_s)} requests a second for {number(found.minutes)} min"
    bars_of = [Bar(f"minute {index}", once(value), ours=True) for index, value in enumerate(found.p99_ms_by_minute, 1)]
    limit = Mark(f"limit: {number(found.limit_ms)} ms", found.limit_ms)
    plot = bars("p99 at a constant rate, minute by minute", "milliseconds from when a request was due; less is better", bars_of, limit)
    what = f"{number(found.rate_per_s)} requests/s for {number(found.minutes)} min, a real model, two cores: p99"
    aim = Aim(what, f"< {number(found.limit_ms)} ms, no errors", f"{number(found.p99_ms)} ms, {told_errors}", found.met)
    lines = [
        f"{where}: {told_errors}.",
        "",
        *picture("bench-sustained.svg", "99th percentile of each minute"),
        *markdown(["figure", "value"], rows),
    ]
    return Section(lines, {"bench-sustained.svg": plot}, [aim])


def _least_first(rows: list[Bar]) -> list[Bar]:
    return sorted(rows, key=lambda row: row.value.median)
