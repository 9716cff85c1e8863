"""What the layout of our TFLite graphs costs: latency and transposes beside those of other converters' files.

For each real model our ``.tflite`` is made and timed in LiteRT with one thread; with ``--peer NAME=FOLDER`` the files ``FOLDER/<model>.tflite`` are timed in the
same process, in turns, the order rotating. Every interpreter gets random inputs of its own file's shapes (converters permute inputs), so only files are compared,
not numbers; latency of these networks does not depend on values. EfficientNet-Lite0 is written in Keras with seeded weights, goes to ours as tf2onnx's ONNX form, and
TensorFlow's own converter makes the peer's file from the Keras model. Times are CPU times of the process, which is the latency of one thread on a core of its own: on
a busy machine they leave out what others took, but not what they did to caches, so the minimum says most.

Run ``taskset -c 0 python -m benchmarks tflite_layout [--seconds S] [--peer NAME=FOLDER]… [MODEL…]``; prints JSON.
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

from benchmarks._keras_models import KERAS_MODELS, write_pair

OURS = "edgekit"


def our_file(model: str, folder: Path) -> tuple[Path, dict[str, Path]]:
    """The file that `edgekit.build` makes for a Raspberry Pi 5, out of its bundle, and files of peers that were made beside it."""
    from edgekit.cli.demo._models import MODELS, fetch
    from edgekit.converters import build_result

    peers: dict[str, Path] = {}
    if model in KERAS_MODELS:
        source, peers["tensorflow"] = write_pair(model, folder)
        shapes: dict[str, tuple[int, ...]] = {"image": KERAS_MODELS[model]}
    else:
        source, shapes = Path(fetch(model)), MODELS[model].shapes
    output = folder / f"{model}-bundle"
    result = build_result(source, device="raspberry-pi-5", shapes=shapes or None, output=output, precision="fp32", cache=False)
    return result.bundle.directory / result.bundle.manifest.artifact.path, peers


def interpreter_of(path: Path) -> Any:
    """An allocated interpreter with inputs set: small random floats, and small whole numbers where the input is an index."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    random = np.random.default_rng(7)
    for detail in interpreter.get_input_details():
        shape, kind = detail["shape"], np.dtype(detail["dtype"])
        values = random.standard_normal(shape) * 0.5 if kind.kind == "f" else random.integers(0, 256, shape)
        interpreter.set_tensor(detail["index"], values.astype(kind))
    return interpreter


def time_in_turns(interpreters: dict[str, Any], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call; each file is warm before the first one counts."""
    names = list(interpreters)
    for interpreter in interpreters.values():
        for _ in range(3):
            interpreter.invoke()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    ends, turn = time.perf_counter() + seconds * len(names), 0
    while time.perf_counter() < ends or turn < 10:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.process_time_ns()
            interpreters[name].invoke()
            times[name].append((time.process_time_ns() - started) / 1e6)
        turn += 1
    return times


def facts(path: Path, times: list[float]) -> dict[str, Any]:
    from edgekit.converters.tflite import operator_counts

    counts = operator_counts(path.read_bytes())
    return {
        "min_ms": round(min(times), 4),
        "p50_ms": round(float(np.median(times)), 4),
        "calls": len(times),
        "transposes": counts.get("TRANSPOSE", 0),
        "operators": sum(counts.values()),
        "bytes": path.stat().st_size,
    }


def bench(model: str, peers: dict[str, Path], seconds: float, folder: Path) -> dict[str, Any]:
    ours, made = our_file(model, folder)
    files = {OURS: ours} | made | {name: place / f"{model}.tflite" for name, place in peers.items()}
    there = {name: path for name, path in files.items() if path.is_file()}
    results: dict[str, Any] = {name: "no file" for name in files if name not in there}
    times = time_in_turns({name: interpreter_of(path) for name, path in there.items()}, seconds)
    results |= {name: facts(path, times[name]) for name, path in there.items()}
    others = [results[name]["min_ms"] for name in there if name != OURS]
    if others:
        results["ours_to_best_peer"] = round(results[OURS]["min_ms"] / min(others), 3)
    return results


def main() -> None:
    from edgekit.cli.demo._models import MODELS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS, *KERAS_MODELS])
    parser.add_argument("--seconds", type=float, default=5.0, help="per file")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help="other converters' files, <model>.tflite")
    arguments = parser.parse_args()
    peers = {name: Path(place) for name, _, place in (each.partition("=") for each in arguments.peer)}
    with tempfile.TemporaryDirectory(prefix="edgekit-layout-") as folder:
        results = {model: bench(model, peers, arguments.seconds, Path(folder)) for model in arguments.models}
    print(json.dumps({"models": results}, indent=2))


if __name__ == "__main__":
    main()
