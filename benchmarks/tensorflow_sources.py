"""Keras models by the vendors' own converters beside our ONNX path: build time, size, operators and latency, in one process, in turns.

Weights are random and seeded: latency does not depend on them. Latency is the CPU time of the process with one engine thread, which on a busy machine leaves
out what other processes took. Core ML has none here: it runs on a Mac only. ``python -m benchmarks tensorflow_sources [--seconds S]``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

DEVICES = {"tflite": "generic-arm64", "openvino": "intel-nuc", "coreml": "iphone-15"}


def write_models(folder: Path) -> list[Path]:
    """A picture classifier, a recurrent network and an attention block as ``.keras`` files."""
    from edgekit.converters.sources._tensorflow import import_tensorflow

    import_tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    series = keras.Sequential([layers.Input((32, 16)), layers.LSTM(64, return_sequences=True), layers.LSTM(32), layers.Dense(4)])
    tokens = layers.Input((64, 64), name="tokens")
    attended = layers.LayerNormalization()(layers.Add()([tokens, layers.MultiHeadAttention(4, 16)(tokens, tokens)]))
    models = {
        "mobilenet_v2": keras.applications.MobileNetV2((128, 128, 3), alpha=0.5, weights=None, classes=10),
        "lstm": series,
        "attention": keras.Model(tokens, layers.Dense(8)(attended)),
    }
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    return [folder / f"{name}.keras" for name in models]


def build_both(path: Path, device: str, folder: Path) -> dict[str, Any]:
    from edgekit.converters import _delivery, _direct, build_result

    found = {}
    for way in ("vendor", "onnx"):
        allowed = mock.patch.object(_direct, "is_direct", _direct.is_direct if way == "vendor" else lambda *_: False)
        named = mock.patch.object(_delivery, "is_direct", _direct.is_direct if way == "vendor" else lambda *_: False)
        with allowed, named:
            result = build_result(
                path, device=device, precision="fp32", output=folder / f"{path.stem}-{device}-{way}", isolate=False, cache=False
            )
        found[way] = result
    return found


def time_in_turns(bundles: dict[str, Any], seconds: float) -> dict[str, list[float]]:
    from edgekit.runtime import load

    sessions = {way: load(result.bundle.path, threads=1) for way, result in bundles.items()}
    inputs = next(iter(bundles.values())).bundle.golden()[0].inputs
    times: dict[str, list[float]] = {way: [] for way in sessions}
    for session in sessions.values():
        for _ in range(5):
            session.run(inputs)
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        for way, session in sessions.items():
            started = time.process_time_ns()
            session.run(inputs)
            times[way].append((time.process_time_ns() - started) / 1e6)
    for session in sessions.values():
        session.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    seconds = parser.parse_args().seconds
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in write_models(folder):
            for engine, device in DEVICES.items():
                bundles = build_both(path, device, folder)
                times = time_in_turns(bundles, seconds) if engine != "coreml" else {}
                for way, result in bundles.items():
                    report = result.bundle.report()["emitter"]
                    operators = report.get("operations") or sum(report.get("operators", {}).values())
                    row = {"model": path.stem, "engine": engine, "way": way, "path": report.get("path", "onnx")}
                    row |= {"build_s": round(result.seconds, 2), "bytes": result.bytes, "operators": operators}
                    row |= {"max_abs": max(metric.max_abs for metric in result.bundle.manifest.verification.metrics.values())}
                    if times:
                        row |= {"p50_ms": round(float(np.median(times[way])), 4), "min_ms": round(min(times[way]), 4)}
                    rows.append(row)
                    print(row, file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
