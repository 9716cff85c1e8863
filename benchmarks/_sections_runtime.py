"""Sections of docs/benchmarks.md about the runtime by itself: overhead, engines, scheduling, cache, swaps, start and soak."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks._plots import Bar, Mark, bars, number
from benchmarks._results import Record, Spread, spread
from benchmarks._sections import Aim, Section, at_most, document, markdown, once, picture, told

SWAP_AIM = 1.2
START_AIM = 1.15
MEMORY_AIM_MB = 25.0
SERVE_AIM_MS = 1000.0
IMPORT_AIM_MS = 60.0
INSTALL_AIM_MB = 5.0


class Overhead(msgspec.Struct):
    bare_p50_us: float
    session_p50_us: float
    added_p50_us: float
    added_percent: float


class SessionOverhead(msgspec.Struct):
    results: dict[str, Overhead]


class Engines(msgspec.Struct):
    """By model and engine; an engine that cannot run it has ``error`` alone."""

    threads: int
    results: dict[str, dict[str, dict[str, Any]]]


class SchedulerResults(msgspec.Struct):
    path: dict[str, dict[str, Any]]
    hand_over: dict[str, float]
    concurrency: dict[str, float]
    wait: dict[str, Any]
    overload: dict[str, dict[str, float]]


class Scheduler(msgspec.Struct):
    results: SchedulerResults


class Cache(msgspec.Struct):
    hit_ratios: dict[str, dict[str, dict[str, float]]]
    keys: dict[str, dict[str, float]]
    core: dict[str, float]


class Pooled(msgspec.Struct):
    """A ratio of all requests together, and the interval of its bootstrap."""

    ratio: float
    low: float
    high: float

    def spread(self) -> Spread:
        return Spread(self.ratio, self.low, self.high)


class SwapResults(msgspec.Struct):
    requests_per_s: float
    most_requests_per_s: float
    p99_ratio: Pooled
    p99_ratios: list[float]
    quiet_to_quiet: Pooled
    swaps: int
    phases: dict[str, dict[str, float]]


class Swap(msgspec.Struct):
    results: SwapResults


class ColdStart(msgspec.Struct):
    results: dict[str, dict[str, Any]]


class Soak(msgspec.Struct):
    seconds: float
    crashed: int | None
    wrong_count: int
    counts: dict[str, int]
    rss_mb: dict[str, float]
    rss_slope_kb_per_min: float
    sockets_open_afterwards: int | None
    held: dict[str, list[float | None]] = {}
    rss_mb_by_tenths: list[float] = []


def session_overhead(record: Record) -> Section:
    found = document(record, SessionOverhead).results
    rows = [
        [name, *(number(value) for value in (each.bare_p50_us, each.session_p50_us, each.added_p50_us))] for name, each in found.items()
    ]
    return Section(markdown(["model", "bare engine, us", "`Session.run`, us", "added, us (median of pairs)"], rows))


def engines(record: Record) -> Section:
    found = document(record, Engines)
    rows = []
    for model, results in found.results.items():
        for engine, each in results.items():
            if "error" in each:
                rows.append([model, engine, "-", "-", "-", "-"])
            else:
                figures = (each["p50_ms"], each["p95_ms"], each["p99_ms"], each["p50_over_onnxruntime"])
                rows.append([model, f"{engine} {each['version']}", *(number(value) for value in figures)])
    return Section(markdown(["model", "engine", "p50, ms", "p95, ms", "p99, ms", "p50 over ONNX Runtime's"], rows))


def scheduler(record: Record) -> Section:
    found = document(record, Scheduler).results
    turns = [
        [name, turn, *(number(row[key]) for key in ("bare_us", "turn_us", "added_us_a_request", "requests_per_s"))]
        for name, rows in found.path.items()
        for turn, row in rows.items()
        if isinstance(row, dict)
    ]
    overload = [
        [name, *(f"{row[key]:.1%}" for key in ("in_time", "refused", "late", "possible_at_most", "in_time_first_come"))]
        for name, row in found.overload.items()
    ]
    saves = [row["best_saves_percent"] for row in found.wait.values() if isinstance(row, dict)]
    lines = markdown(["model", "requests in a turn", "bare engine, us", "turn, us", "added, us a request", "requests/s"], turns)
    lines += ["", f"To hand a request to a worker and its answer back adds {number(found.hand_over['added_us'])} us.", ""]
    lines += [
        f"A batching delay, the best one for each load known in advance, would shorten the mean latency by {number(max(saves))} % at most (simulated).",
        "",
    ]
    lines += ["Requests with deadlines of 4 to 20 runs (simulated with the real queue):", ""]
    head = ["load", "in time", "refused at once", "late", "possible at most", "in time, first come first served"]
    return Section([*lines, *markdown(head, overload)])


def cache(record: Record) -> Section:
    found = document(record, Cache)
    policies = list(next(iter(found.hit_ratios.values())))
    ratios = [[name, *(f"{row[policy]['hit_ratio']:.1%}" for policy in policies)] for name, row in found.hit_ratios.items()]
    hashes = [key.removesuffix("_us") for key in next(iter(found.keys.values()))]
    keys = [[name, *(number(value) for value in row.values())] for name, row in found.keys.items()]
    core = {name.removesuffix("_us").replace("_", " "): number(value) for name, value in found.core.items()}
    lines = [f"In the core, a model that costs next to nothing: {', '.join(f'{name} {value} us' for name, value in core.items())}.", ""]
    lines += [*markdown(["trace, size of the cache", *(f"hits, {policy}" for policy in policies)], ratios), ""]
    return Section([*lines, *markdown(["key of", *(f"{name}, us" for name in hashes)], keys)])


def swap(record: Record) -> Section:
    found = document(record, Swap).results
    large = record.name == "swap_large"
    what = "20 MB of weights" if large else "a tiny model"
    name = f"bench-{record.name.replace('_', '-')}.svg"
    rows = [Bar("all rounds", found.p99_ratio.spread(), ours=True)]
    rows += [Bar(f"round {index}", once(value)) for index, value in enumerate(found.p99_ratios, 1)]
    rows += [Bar("quiet to quiet", found.quiet_to_quiet.spread())]
    plot = bars(
        f"p99 while versions are swapped, {what}",
        "times the p99 of the quiet phases around it; less is better",
        rows,
        Mark(f"aim: {SWAP_AIM} at most", SWAP_AIM),
    )
    text = (
        f"{found.swaps} swaps at {found.requests_per_s:,.0f} requests a second (the server takes {found.most_requests_per_s:,.0f}). The figure is that of all rounds together, "
        f"with the interval that holds 95 % of a bootstrap over swaps; the rounds by themselves: {told(spread(found.p99_ratios))}. "
        "*Quiet to quiet* compares the first half of every quiet phase with the second: the noise of the measurement."
    )
    columns = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "requests")
    phases = [[name, *(number(row[key]) if key in row else "" for key in columns)] for name, row in found.phases.items()]
    table = markdown(["what requests met", "p50, ms", "p95, ms", "p99, ms", "max, ms", "requests"], phases)
    return Section(
        [text, "", *picture(name, f"p99 during swaps over p99 before and after, {what}"), *table],
        {name: plot},
        [at_most(f"p99 during swaps, {what}", SWAP_AIM, found.p99_ratio.spread())],
    )


def cold_start(record: Record) -> Section:
    results = document(record, ColdStart).results
    pairs = {name: row for name, row in results.items() if "relative_to_bare" in row}
    rows, ratios, answers = [], [], []
    for name, row in pairs.items():
        ours, bare = row["measured"]["ours"], row["measured"]["bare"]
        relative = row["relative_to_bare"]["ours"]
        rows.append(
            [name, *(number(each) for each in (bare["start_ms"], ours["start_ms"], relative["start_ratio"], relative["cpu_ratio"]))]
        )
        answers.append(row["serve"]["answer_ms"])
        rows[-1] += [number(bare["rss_mb"]), number(ours["rss_mb"]), number(relative["rss_added_mb"]), number(answers[-1])]
        ratios.append(Bar(name, Spread(relative["start_ratio"], *relative["start_ratio_quartiles"]), ours=True))
    worst = max((bar.value for bar in ratios), key=lambda value: value.median)
    memory = max(row["relative_to_bare"]["ours"]["rss_added_mb"] for row in pairs.values())
    imported = results["import"]["added_over_numpy_ms"]["edgekit.runtime.load"]  # the package alone imports next to nothing
    installed = results["installed_mb"]["total"]
    aims = [
        at_most("start to first answer over a bare script's, the worst", START_AIM, worst),
        at_most("memory over a bare script's, the worst", MEMORY_AIM_MB, once(memory), " MB"),
        at_most("`from edgekit.runtime import load` over `import numpy`", IMPORT_AIM_MS, once(imported), " ms"),
        at_most("installed beside NumPy and the engine", INSTALL_AIM_MB, once(installed), " MB"),
        at_most("`edgekit serve` to its first HTTP answer, the worst", SERVE_AIM_MS, once(max(answers)), " ms"),
    ]
    plot = bars(
        "Start to first answer",
        "times a bare script of the same engine; less is better",
        ratios,
        Mark(f"aim: {START_AIM} at most", START_AIM),
    )
    head = ["model, engine", "bare script, ms", "ours, ms", "ratio", "ratio of CPU time", "bare, MB", "ours, MB", "added, MB"]
    head.append("`edgekit serve` to first HTTP answer, ms")
    text = "The ratio is the median of what each round's own pair gave; its range holds the middle half of the rounds."
    return Section(
        [text, "", *picture("bench-start.svg", "Start to first answer relative to a bare script"), *markdown(head, rows)],
        {"bench-start.svg": plot},
        aims,
    )


def soak(record: Record) -> Section:
    found = document(record, Soak)
    good = sum(count for name, count in found.counts.items() if name.startswith("good"))
    lines = [
        f"{found.seconds:,.0f} seconds, {good:,} well-formed requests among clients that vanish, drip, do not read or send noise, and swaps of the model.",
        "",
        *markdown(["what clients saw", "times"], [[name, f"{count:,}"] for name, count in found.counts.items()]),
    ]
    memory = found.rss_mb
    text = f"Resident memory: {memory['start']} MB at the start, {memory['end']} MB at the end, {memory['most']} MB at most"
    lines += ["", f"{text}; slope of the second half {found.rss_slope_kb_per_min:+.0f} kB a minute."]
    if found.sockets_open_afterwards is not None:
        lines[-1] += f" Sockets open when all clients had gone: {found.sockets_open_afterwards}, those it listens on among them."
    if held := {name: [value for value in values if value is not None] for name, values in found.held.items()}:
        told_held = "; ".join(f"{name.replace('_', ' ')} {values[0]:,.0f} to {values[-1]:,.0f}" for name, values in held.items() if values)
        lines += ["", f"What the process held, from the first reading to the last: {told_held}."]
    wrong = f"{found.wrong_count} wrong" if found.crashed is None else f"the server ended with {found.crashed}"
    aim = Aim(f"soak of {found.seconds:,.0f} s: wrong answers, crashes", "none", wrong, found.crashed is None and not found.wrong_count)
    pictures = {}
    if found.rss_mb_by_tenths:
        rows = [
            Bar(f"after {tenth * found.seconds / 10:,.0f} s", once(value), ours=True) for tenth, value in enumerate(found.rss_mb_by_tenths)
        ]
        pictures["bench-soak.svg"] = bars("Resident memory during the soak", "MB", rows)
        lines += ["", *picture("bench-soak.svg", "Resident memory of the server, at ten moments of the soak")[:1]]
    return Section(lines, pictures, [aim])
