"""Latency of each engine against ONNX Runtime: the same model, the same inputs, one process a model, calls in turns.

Every engine runs the artifact that `edgekit.build` makes for a device of that engine, through `edgekit.Session`, with the same number of threads.
ONNX Runtime runs the fp32 artifact. Each round times one call of every engine; the order rotates.

What it does not show: the devices themselves (this is the machine it runs on), first-run cost, throughput with several clients.

Run ``python -m benchmarks engines [--seconds S] [--threads N] [--precision fp32] [MODEL...]``; prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from edgekit.converters import build_result
from edgekit.errors import EdgeKitError
from edgekit.runtime import Session, load

DEVICES = {"onnxruntime": "generic-x86", "openvino": "intel-nuc", "tflite": "raspberry-pi-5"}
BASELINE = "onnxruntime"


def percentiles(times_ms: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(times_ms, p)), 4) for p in (50, 95, 99)}


def time_in_turns(sessions: dict[str, Session], inputs: dict[str, np.ndarray], seconds: float) -> dict[str, list[float]]:
    names = list(sessions)
    for session in sessions.values():
        for _ in range(5):
            session.run(inputs)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    ends = time.perf_counter() + seconds * len(names)
    turn = 0
    while time.perf_counter() < ends or turn < 10:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter_ns()
            sessions[name].run(inputs)
            times[name].append((time.perf_counter_ns() - started) / 1e6)
        turn += 1
    return times


def bench(model: Path, shapes: dict[str, tuple[int, ...]], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sessions: dict[str, Session] = {}
    results: dict[str, dict[str, Any]] = {}
    for engine, device in DEVICES.items():
        precision = "fp32" if engine == BASELINE else arguments.precision
        try:
            built = build_result(model, device=device, precision=precision, shapes=shapes, output=folder / f"{model.stem}-{engine}.edgekit")
            sessions[engine] = load(built.bundle, threads=arguments.threads)
        except EdgeKitError as exc:
            results[engine] = {"error": str(exc)}
            continue
        proof = built.bundle.manifest.verification
        worst = max((found.max_rel for found in proof.metrics.values()), default=0.0)
        facts = {
            "precision": precision,
            "build_s": round(built.seconds, 2),
            "artifact_bytes": built.bytes,
            "max_rel": float(f"{worst:.3g}"),
        }
        results[engine] = {**facts, "version": sessions[engine].describe()["version"]}
    inputs = sessions[BASELINE].bundle.golden()[0].inputs
    times = time_in_turns(sessions, inputs, arguments.seconds)
    base = float(np.median(times[BASELINE]))
    for engine, found in times.items():
        ratio = round(float(np.median(found)) / base, 3)
        results[engine] |= {**percentiles(found), "runs": len(found), f"p50_over_{BASELINE}": ratio}
        sessions[engine].close()
    return results


def main() -> None:
    from examples.models import MODELS, SHAPES, fetch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=3.0, help="per engine and model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the other engines' artifacts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: bench(fetch(name), SHAPES[name], arguments, Path(folder)) for name in arguments.models}
    print(json.dumps({**vars(arguments), "results": results}, indent=2))


if __name__ == "__main__":
    main()
