"""The router against the oracle and simpler policies on a million requests, and how fast that is simulated.

Twelve scenarios (docs/simulation.md), three seeds, 28,000 requests each, through all policies: the same as ``edgekit simulate --requests 28000``. The document is that of
``edgekit simulate --json``, plus the wall time and simulated requests a second (over all policies and processes, oracle and tuning included).

What it does not show: networks and engines; their times are drawn.

Run ``python -m benchmarks simulate [--requests N] [--seeds N] [--seed N] [--jobs N]``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.router.simulation import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=28_000, help="a trace")
    parser.add_argument("--seeds", type=int, default=3, help="traces a scenario")
    parser.add_argument("--seed", type=int, default=1, help="of the first trace")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 for one a core")
    arguments = parser.parse_args()
    started = time.perf_counter()
    report = simulate(**vars(arguments), progress=lambda name: print(f"{name}: done", file=sys.stderr))
    seconds = time.perf_counter() - started
    simulated = sum(row.requests for row in report.scenarios)
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    figures = {"seconds": round(seconds, 1), "requests_simulated": simulated, "requests_per_s": round(simulated / seconds)}
    print(
        json.dumps(
            {**machine, "load_average": os.getloadavg()[0], **vars(arguments), **figures, "results": msgspec.to_builtins(report)}, indent=2
        )
    )


if __name__ == "__main__":
    main()
