"""Accuracy on labelled data per model, engine and precision; what int8 kept in float; size and time of a run.

Each row is a build through `edgekit.build` with the task's calibration samples, scored through the engine that the bundle loads: ONNX Runtime, OpenVINO and LiteRT
run the artifact itself; Core ML's runs in the reference interpreter (on fewer tests, it is slow); for a Jetson the graph that TensorRT reads runs in ONNX Runtime.
Beside each score is the source model's own, in float32 through ONNX Runtime on the same tests: compare those two, not rows with different numbers of tests.
The data is made here or shipped with packages, see ``_accuracy_data.py``. ``cpu_ms`` is the median CPU time of one run with one thread; it says nothing about the
devices themselves, and nothing at all for Core ML and TensorRT, which do not run here.

What it does not show: accuracy on anybody else's data.

Run ``python -m benchmarks accuracy [--device ID]… [--precision P]… [MODEL…]``; prints JSON, a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._accuracy_data import TASKS, Run, Task
from edgekit.bundle import Bundle
from edgekit.converters import build_result
from edgekit.device_profiles import load_profile
from edgekit.errors import EdgeKitError

DEVICES = ("generic-x86", "intel-nuc", "raspberry-pi-5", "coral-edgetpu", "jetson-orin-nano", "iphone-15", "iphone-16")
PRECISIONS = ("fp32", "fp16", "int8")
SLOW_TESTS = 25
"""Tests for Core ML's reference interpreter."""


def runner(bundle: Bundle) -> tuple[Run, bool]:
    """What answers for a bundle on this machine, and whether its time means anything."""
    from msgspec import structs

    from edgekit.runtime.engines import EngineOptions, open_engine

    manifest = bundle.manifest
    artifact = manifest.artifact
    if artifact.engine == "coreml":
        from edgekit.converters.coreml import logical_outputs, native_inputs
        from edgekit.converters.coreml_reference import Interpreter

        saved = Interpreter(bundle.directory / artifact.path)
        return lambda inputs: logical_outputs(artifact, manifest.signature, saved.run(native_inputs(artifact, inputs))), False
    if artifact.engine == "tensorrt":
        artifact = structs.replace(artifact, engine="onnxruntime", options={})
    engine = open_engine(bundle.directory / artifact.path, artifact, manifest.signature, EngineOptions(threads=1))
    return engine.run, manifest.artifact.engine != "tensorrt"


def float_score(task: Task, tests: int) -> float:
    """The source model's score on the same tests."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(task.path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return task.score(lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), tests)


def cpu_ms(run: Run, inputs: dict[str, np.ndarray], seconds: float = 1.0) -> float:
    """Median CPU time of one run, in milliseconds."""
    for _ in range(3):
        run(inputs)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.process_time()
        run(inputs)
        taken.append(time.process_time() - start)
    return float(np.median(taken)) * 1e3


def row(task: Task, samples: Path, device: str, precision: str, folder: Path) -> dict[str, Any]:
    """One build, scored."""
    found: dict[str, Any] = {"model": task.name, "device": device, "engine": load_profile(device).engine.name, "precision": precision}
    started = time.perf_counter()
    try:
        result = build_result(
            task.path,
            device=device,
            precision=precision,
            calibration=samples,
            shapes=task.shapes,
            output=folder,
            cache=False,
            reproducer=False,
        )
    except EdgeKitError as exc:
        return found | {"refused": str(exc)}
    seconds = time.perf_counter() - started
    run, timed = runner(result.bundle)
    tests = min(SLOW_TESTS if found["engine"] == "coreml" else task.tests, task.tests)
    found |= {
        "score": round(task.score(run, tests), 4),
        "float_score": round(float_score(task, tests), 4),
        "tests": tests,
        "verified": result.bundle.manifest.verification.verified,
        "bytes": result.bytes,
        "build_s": round(seconds, 1),
    }
    if timed:
        found["cpu_ms"] = round(cpu_ms(run, task.calibration[0]), 3)
    report = json.loads((result.bundle.directory / "report.json").read_text("utf-8")).get("int8")
    if report:
        keys = ("method", "layers", "quantised", "quantised_share_of_multiplications", "agreement", "snr_db")
        found |= {key: report[key] for key in keys}
        found["kept_in_float"] = [entry["layer"] for entry in report["kept_in_float"]]
    return found


def describe(found: dict[str, Any]) -> str:
    if "refused" in found:
        return f"{found['model']:11} {found['engine']:12} {found['device']:16} {found['precision']}  refused: {found['refused'][:160]}"
    text = f"{found['model']:11} {found['engine']:12} {found['device']:16} {found['precision']}  {found['score']:.4f} (float {found['float_score']:.4f}) of {found['tests']:4}"
    text += f"  {found['bytes'] / 1e6:7.3f} MB  {found.get('cpu_ms', float('nan')):8.3f} ms  built in {found['build_s']:.0f} s"
    if "layers" in found:
        text += f"  int8 {found['quantised']}/{found['layers']} ({found['quantised_share_of_multiplications']:.0%}), {found['method']}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(TASKS))
    parser.add_argument("--device", action="append", metavar="ID")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    chosen = parser.parse_args()
    rows = []
    for name in chosen.models:
        task = TASKS[name]()
        with tempfile.TemporaryDirectory() as scratch:
            samples = Path(scratch) / "samples"
            samples.mkdir()
            for index, inputs in enumerate(task.calibration):
                np.savez(samples / f"{index:04}.npz", **inputs)  # type: ignore[arg-type] # of another parameter, which no input is named like
            for device in chosen.device or DEVICES:
                for precision in chosen.precision or PRECISIONS:
                    if load_profile(device).precisions.get(precision, "no") == "no":
                        continue
                    rows.append(row(task, samples, device, precision, Path(scratch) / f"{device}-{precision}"))
                    print(describe(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
