"""Every real model built for one device of each engine, in fp32 and fp16: time beside the vendor's own tool, size, error against the source.

What it does not show: latency (see ``engines.py``), and errors on real data (the samples are synthetic; give ``--calibration`` to a build for that).

Run ``python -m benchmarks builds [MODEL...] [--device ID]... [--precision P]...``; prints JSON, and a table on stderr. The build cache is off. Toolchains run in
processes that are kept from build to build, so each row is a build with its toolchain loaded; what loading it adds to the first one is measured for each
device with a model of one node (``start_seconds``). The vendor's tool runs in this process, right after, with its imports done. EfficientNet-Lite0 is a Keras file
with seeded weights: the one source that the tools of TFLite and Core ML read.
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

import msgspec

from benchmarks._keras_models import KERAS_MODELS, write_keras
from benchmarks._vendor_tools import vendor_seconds
from edgekit.converters import build_result
from edgekit.errors import EdgeKitError
from examples.models import MODELS, SHAPES, fetch

DEVICES = ("generic-x86", "intel-nuc", "raspberry-pi-5", "iphone-15", "jetson-orin", "rtx-pc")
PRECISIONS = ("fp32", "fp16")


def source(name: str, folder: Path) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A model's file and its shapes."""
    if name not in KERAS_MODELS:
        return Path(fetch(name)), SHAPES[name]
    path = folder / f"{name}.keras"
    return path if path.is_file() else write_keras(name, folder), {"image": KERAS_MODELS[name]}


def row(name: str, device: str, precision: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"model": name, "device": device, "precision": precision}
    path, shapes = source(name, folder)
    try:
        result = build_result(
            path,
            device=device,
            precision=precision,
            shapes=shapes,
            output=folder / f"{name}-{device}-{precision}",
            cache=False,
            reproducer=False,
        )
    except EdgeKitError as exc:
        return found | {"refused": str(exc)}
    manifest = result.bundle.manifest
    return found | {
        "engine": manifest.artifact.engine,
        "verified": manifest.verification.verified,
        "seconds": round(result.seconds, 2),
        "vendor_tool_seconds": vendor_seconds(manifest.artifact.engine, path, shapes, folder),
        "source_bytes": path.stat().st_size,
        "artifact_bytes": result.bytes,
        "metrics": msgspec.to_builtins(manifest.verification.metrics),
    }


def start_seconds(device: str, folder: Path) -> float:
    """What the first build for a device takes that a second one does not: loading its toolchain. One node, so hardly anything else counts."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "one.onnx")
    seconds = []
    for turn in range(2):
        started = time.perf_counter()
        build_result(folder / "one.onnx", device=device, precision="fp32", output=folder / f"one-{device}-{turn}", cache=False)
        seconds.append(time.perf_counter() - started)
    return round(seconds[0] - seconds[1], 2)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each row."""
    lines = [
        "| model | device | precision | ours, s | vendor's tool alone, s | artifact, bytes | verified |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        name = f"| {each['model']} | {each['device']} | {each['precision']} |"
        if "refused" in each:
            lines.append(f"{name} refused: {each['refused'][:120]} | | | |")
        else:
            lines.append(
                f"{name} {each['seconds']:.2f} | {_alone(each['vendor_tool_seconds'])} | {each['artifact_bytes']:,} | {each['verified']} |"
            )
    return "\n".join(lines)


def _alone(seconds: float | str) -> str:
    """A cell: seconds, a refusal, or that there is no such tool (`_vendor_tools` says why)."""
    return f"{seconds:.2f}" if isinstance(seconds, float) else seconds if seconds.startswith("refused") else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*MODELS, *KERAS_MODELS])
    parser.add_argument("--device", action="append", default=[], help="default: one of each engine")
    parser.add_argument("--precision", action="append", default=[], choices=PRECISIONS)
    arguments = parser.parse_args()
    rows, starts = [], {}
    with tempfile.TemporaryDirectory(prefix="edgekit-builds-") as folder:
        for device in arguments.device or DEVICES:
            starts[device] = start_seconds(device, Path(folder))
            for name in arguments.models:
                for precision in arguments.precision or PRECISIONS:
                    rows.append(row(name, device, precision, Path(folder)))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"start_seconds": starts, "rows": rows}, indent=2))
    rows.sort(key=lambda each: arguments.models.index(each["model"]))
    print(f"\n{table(rows)}\n\nloading the toolchain, s: {starts}", file=sys.stderr)


if __name__ == "__main__":
    main()
