"""Every real model built for one device of each engine, in fp32 and fp16: time beside the vendor's own tool, size, error against the source.

What it does not show: latency (see ``engines.py``), and errors on real data (the samples are synthetic; give ``--calibration`` to a build for that).

Run ``python -m benchmarks builds [MODEL...]``; prints JSON. The build cache is off; the vendor's tool runs in the same process, right after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from benchmarks.vendor_tools import vendor_seconds
from edgekit.converters import build_result
from edgekit.errors import EdgeKitError
from examples.models import MODELS, SHAPES, fetch

DEVICES = ("generic-x86", "intel-nuc", "raspberry-pi-5", "iphone-15", "jetson-orin", "rtx-pc")


def row(name: str, device: str, precision: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"model": name, "device": device, "precision": precision}
    try:
        result = build_result(
            fetch(name),
            device=device,
            precision=precision,
            shapes=SHAPES[name],
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
        "vendor_tool_seconds": vendor_seconds(manifest.artifact.engine, Path(fetch(name)), SHAPES[name], folder),
        "artifact_bytes": result.bytes,
        "metrics": msgspec.to_builtins(manifest.verification.metrics),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    names = parser.parse_args().models
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for device in DEVICES:
                for precision in ("fp32", "fp16"):
                    rows.append(row(name, device, precision, Path(folder)))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    print(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
