"""Records as benchmarks write them, with round figures."""

import pytest

from benchmarks._results import Contender, Machine, Record, SideBySide, plain

MACHINE = Machine(
    cpu="A & B",
    cores=2,
    memory_gb=24.0,
    kernel="Linux 6.1.0",
    governor="performance",
    python="3.11.7",
    versions={"numpy": "2.4.6", "wrk": "4.1.0"},
)


def contender(rate, p50_ms=1.0, rss_mb=80.0, encoding="v2 binary"):
    """Three rounds around a rate at 16 connections, and a tenth of it at one."""

    def rows(scale):
        return {
            "requests_per_s": [rate * scale * factor for factor in (1.0, 0.9, 1.1)],
            "p50_ms": [p50_ms] * 3,
            "p95_ms": [2 * p50_ms] * 3,
            "p99_ms": [3 * p50_ms] * 3,
            "cpu_us": [40.0, 41.0, 39.0],
            "load_busy": [0.2, 0.25, 0.3],
        }

    return Contender(version="", encoding=encoding, start_s=0.5, rss_mb=rss_mb, connections={"1": rows(0.1), "16": rows(1.0)})


@pytest.fixture
def side_by_side():
    servers = {
        "edgekit": contender(30_000.0),
        "triton": contender(10_000.0, p50_ms=2.0),
        "probe": contender(40_000.0),
        "mlserver": contender(2_000.0),
    }
    engine = {"requests_per_s": [50_000.0, 48_000.0, 52_000.0], "cpu_us": [20.0, 20.0, 20.0]}
    return SideBySide(
        transport="http", model="mlp", rounds=3, seconds=3.0, bare_engine=engine, servers=servers, left_out={"kserve": "no network"}
    )


@pytest.fixture
def make_record():
    def make(name, document, **changes):
        facts = {
            "command": f"python -m benchmarks {name}",
            "commit": "0123456789ab",
            "started": "2026-11-22T10:00Z",
            "seconds": 61.0,
            "machine": MACHINE,
            "load_average": (0.1, 1.9),
            "exit_code": 0,
        }
        return Record(name=name, document=plain(document), **{**facts, **changes})

    return make
