"""What the result cache costs and what it keeps: hit ratio by policy and trace, time of a key by size and hash, time of a hit and of a miss in the core.

Traces are synthetic: Zipf's law at three skews, the same between one-time requests (a scan), and one whose popular keys drift. Policies: S3-FIFO (ours), least
recently used, and moka's W-TinyLFU where ``moka-py`` is installed (``pip install moka-py``; not one of EdgeKit's dependencies). All entries weigh the same
there, so that the bound is the same for all. Hashes are timed on random bytes. The core runs a model that costs next to nothing, without transports.

What it does not show: real traffic, whose skew decides everything; entries of different sizes; contention of threads.

Run ``python -m benchmarks cache [--requests N]``; prints JSON.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from blake3 import blake3

from benchmarks._cases import tiny_mlp
from edgekit.converters import build
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime import CacheOptions, ModelRepository, RuntimeCore
from edgekit.runtime._cached_core import CachedCore
from edgekit.runtime._s3fifo import ByteCache

ENTRY = 1000


class S3Fifo:
    def __init__(self, capacity: int) -> None:
        self.kept: ByteCache[int, bool] = ByteCache(capacity * ENTRY)

    def get(self, key: int) -> Any:
        return self.kept.get(key, 0.0)

    def put(self, key: int) -> None:
        self.kept.put(key, True, ENTRY, 0.0, 1.0)


class Lru:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: OrderedDict[int, bool] = OrderedDict()

    def get(self, key: int) -> Any:
        if key in self.kept:
            self.kept.move_to_end(key)
            return True
        return None

    def put(self, key: int) -> None:
        self.kept[key] = True
        if len(self.kept) > self.capacity:
            self.kept.popitem(last=False)


class Moka:
    def __init__(self, capacity: int) -> None:
        import moka_py

        self.kept = moka_py.Moka(capacity * ENTRY, weigher=lambda _key, _value: ENTRY)

    def get(self, key: int) -> Any:
        return self.kept.get(key)

    def put(self, key: int) -> None:
        self.kept.set(key, True)
        self.kept.run_pending_tasks()  # without it, entries pile up above the bound


def traces(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def zipf(length: int, keys: int, skew: float) -> np.ndarray:
        weights = 1 / np.arange(1, keys + 1) ** skew
        return rng.choice(keys, length, p=weights / weights.sum())

    found = {f"zipf {skew}": zipf(count, 20_000, skew) for skew in (0.7, 0.9, 1.1)}
    scanned = np.empty(count, np.int64)
    scanned[0::2], scanned[1::2] = zipf(count // 2, 5_000, 0.9), np.arange(10**6, 10**6 + count // 2)
    found["zipf 0.9 and a scan"] = scanned
    found["zipf 0.9, drifting"] = np.concatenate([zipf(count // 5, 5_000, 0.9) + 3_000 * part for part in range(5)])
    return found


def play(cache: Any, trace: np.ndarray) -> dict[str, float]:
    hits = 0
    started = time.perf_counter()
    for key in trace.tolist():
        if cache.get(key) is None:
            cache.put(key)
        else:
            hits += 1
    return {"hit_ratio": round(hits / len(trace), 3), "us_per_request": round((time.perf_counter() - started) / len(trace) * 1e6, 2)}


def best_us(work: Callable[[], Any], repeats: int) -> float:
    def once() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) / repeats * 1e6

    return round(min(once() for _ in range(5)), 2)


def _digest(kind: Callable[[bytes], Any], data: bytes) -> Any:
    return kind(data).digest()


def keys() -> dict[str, dict[str, float]]:
    table = {}
    for size in (3_072, 602_112, 4 << 20):  # 768 floats; a 224x224 picture in float32; 4 MiB
        data = os.urandom(size)
        repeats = max(3, 10_000_000 // size)
        hashes: dict[str, Callable[[], Any]] = {
            "blake3": functools.partial(_digest, blake3, data),
            "sha256": functools.partial(_digest, hashlib.sha256, data),
            "blake2b": functools.partial(_digest, hashlib.blake2b, data),
        }
        table[f"{size} bytes"] = {f"{name}_us": best_us(work, repeats) for name, work in hashes.items()}
    return table


def core_times(folder: Path) -> dict[str, float]:
    bundle = build(tiny_mlp(folder), device="generic-x86", precision="fp32", output=folder / "mlp.edgekit")
    repository = ModelRepository([bundle.path])
    core = RuntimeCore(repository)
    repository.load_all()
    cached = CachedCore(core, repository, CacheOptions(64 << 20))
    rng = np.random.default_rng(1)
    fresh = [InferRequest("tiny_mlp", [Tensor("x", rng.random((1, 8), np.float32))]) for _ in range(3_000)]
    times: dict[str, list[float]] = {"without_cache_us": [], "miss_us": [], "hit_us": []}
    for request in fresh:
        for name, infer in (("without_cache_us", core.infer), ("miss_us", cached.infer), ("hit_us", cached.infer)):
            started = time.perf_counter()
            infer(request)
            times[name].append((time.perf_counter() - started) * 1e6)
    cached.close()
    core.close()
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="of each trace")
    arguments = parser.parse_args()
    policies: dict[str, Any] = {"s3fifo": S3Fifo, "lru": Lru}
    if importlib.util.find_spec("moka_py") is not None:
        policies["moka"] = Moka
    ratios = {
        f"{name}, {capacity} entries": {policy: play(make(capacity), trace) for policy, make in policies.items()}
        for name, trace in traces(arguments.requests).items()
        for capacity in (200, 2_000)
    }
    with tempfile.TemporaryDirectory() as folder:
        core = core_times(Path(folder))
    print(json.dumps({"hit_ratios": ratios, "keys": keys(), "core": core}, indent=2))


if __name__ == "__main__":
    main()
