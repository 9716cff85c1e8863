"""What `Session.run` adds to the bare engine: the same request, both ways, in one process, in turns.

The bare engine is the package's own call (``InferenceSession.run``), without anything of EdgeKit. Both use one thread. Calls alternate one by one and change their order each time; the figure is the median of the differences
of neighbours, which a drift of the machine leaves alone.

What it does not show: another engine's price for copying, and contention between threads.

Run ``python -m benchmarks session_overhead [--pairs N]``; prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks._cases import tiny_mlp
from edgekit.bundle import Bundle
from edgekit.converters import build
from edgekit.runtime import load


def time_us(call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1000


def measure(bundle: Bundle, pairs: int) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    path = str(bundle.artifact_path(bundle.manifest.artifact))
    bare_session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in bundle.signature.outputs]
    inputs = bundle.golden()[0].inputs
    with load(bundle, threads=1) as session:

        def bare() -> object:
            return bare_session.run(names, inputs)

        def ours() -> object:
            return session.run(inputs)

        for call in (bare, ours) * (pairs // 10):
            call()  # warm-up
        gc.collect()
        gc.disable()
        bare_us, ours_us = [], []
        for turn in range(pairs):
            if turn % 2:
                ours_us.append(time_us(ours))
            bare_us.append(time_us(bare))
            if not turn % 2:
                ours_us.append(time_us(ours))
        gc.enable()
    added = statistics.median(b - a for a, b in zip(bare_us, ours_us, strict=True))
    return {
        "bare_p50_us": round(statistics.median(bare_us), 2),
        "session_p50_us": round(statistics.median(ours_us), 2),
        "added_p50_us": round(added, 2),
        "added_percent": round(100 * added / statistics.median(bare_us), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000, help="calls of each contender")
    arguments = parser.parse_args()
    from examples.models import SHAPES, fetch

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for path, shapes in ((tiny_mlp(Path(folder)), {}), (fetch("ppocr-cls"), SHAPES["ppocr-cls"])):
            bundle = build(path, device="generic-x86", precision="fp32", shapes=shapes, output=Path(folder) / f"{path.stem}.edgekit")
            results[path.stem] = measure(bundle, arguments.pairs)
    print(json.dumps({"threads": 1, **vars(arguments), "results": results}, indent=2))


if __name__ == "__main__":
    main()
