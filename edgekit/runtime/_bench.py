"""`bench`: latency and throughput of a bundle, beside the bare engine in the same run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime._session import Session
from edgekit.runtime.engines import EngineOptions

__all__ = ["BenchResult", "Timing", "bench", "resident_bytes"]

# The two contenders take turns this often, so that a change of clock or of neighbours meets both.
_SLICE_S = 0.25
_WARM_UP_RUNS = 5


class Timing(msgspec.Struct, frozen=True):
    """Latency of single requests and what all threads reached together."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput_per_s: float
    requests: int


class BenchResult(msgspec.Struct, frozen=True):
    """What `edgekit bench --json` prints.

    Attributes:
        p50_ms, p95_ms, p99_ms, throughput_per_s, requests: of `Session.run`.
        rss_bytes: resident memory of this process with the model loaded.
        bare_engine: the same for the engine called without checks or layout mapping.
        engine: what ran.
        threads: engine threads, 0 for its own choice.
        concurrency: requests in flight.
        seconds: time measured for each of the two.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput_per_s: float
    requests: int
    rss_bytes: int
    bare_engine: Timing
    engine: dict[str, str]
    threads: int
    concurrency: int
    seconds: float


def bench(
    bundle: str | os.PathLike[str] | Bundle, *, seconds: float = 5.0, concurrency: int = 1, options: EngineOptions | None = None
) -> BenchResult:
    """Measure a bundle on its own golden inputs.

    Args:
        bundle: path or opened bundle.
        seconds: time for each contender.
        concurrency: threads that send requests back to back.
        options: engine options.

    Raises:
        UsageError: ``seconds`` or ``concurrency`` is not positive.
    """
    if seconds <= 0 or concurrency < 1:
        raise UsageError("bench", f"--seconds {seconds:g} --concurrency {concurrency}", "both positive")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with Session(opened, options) as session:
        inputs = opened.first_inputs()
        engine = session.engine
        native = inputs if engine._plain_inputs else engine._to_native(inputs)
        contenders: tuple[Callable[[], object], ...] = (lambda: session.run(inputs), lambda: _bare(session, native))
        measured = _alternate(contenders, seconds, concurrency)
        ours, bare = (_timing(latencies, spent) for latencies, spent in measured)
        return BenchResult(
            **msgspec.structs.asdict(ours),
            rss_bytes=resident_bytes(),
            bare_engine=bare,
            engine=engine.describe(),
            threads=engine.options.threads,
            concurrency=concurrency,
            seconds=seconds,
        )


def resident_bytes() -> int:
    """Resident set size of this process; 0 where ``/proc`` is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _bare(session: Session, native: Mapping[str, np.ndarray]) -> object:
    """One call of the engine's own run, with nothing but the lock that it needs."""
    with session.engine._guard:
        return session.engine._infer(native)


def _alternate(contenders: tuple[Callable[[], object], ...], seconds: float, concurrency: int) -> list[tuple[list[float], float]]:
    """Latencies in seconds and time spent, per contender."""
    for run in contenders:
        for _ in range(_WARM_UP_RUNS):
            run()
    results: list[tuple[list[float], float]] = [([], 0.0) for _ in contenders]
    left = seconds
    while left > 0:
        slice_s = min(_SLICE_S, left)
        for index, run in enumerate(contenders):
            latencies, spent = _load(run, slice_s, concurrency)
            results[index] = (results[index][0] + latencies, results[index][1] + spent)
        left -= slice_s
    return results


def _load(run: Callable[[], object], seconds: float, concurrency: int) -> tuple[list[float], float]:
    found: list[list[float]] = [[] for _ in range(concurrency)]
    start = time.perf_counter()
    until = start + seconds

    def work(latencies: list[float]) -> None:
        now = time.perf_counter()
        while now < until:
            run()
            then, now = now, time.perf_counter()
            latencies.append(now - then)

    if concurrency == 1:
        work(found[0])
    else:
        threads = [threading.Thread(target=work, args=(latencies,)) for latencies in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [value for latencies in found for value in latencies], time.perf_counter() - start


def _timing(latencies: list[float], spent_s: float) -> Timing:
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(latencies, [50, 95, 99]))
    return Timing(p50, p95, p99, len(latencies) / spent_s, len(latencies))
