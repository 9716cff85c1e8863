"""The router against the oracle and simpler policies on a million requests, and how fast that is simulated.

Every scenario of docs/simulation.md, five seeds, 15,600 requests each, through all policies: the same as ``edgekit simulate --requests 15600 --seed 101 --seeds 5``. The
router's constants were tuned on seeds 1 to 16, so these are others. The document is that of ``edgekit simulate --json``, plus the wall time and simulated requests a second
(over all policies and processes, oracle and tuning included).

What it does not show: networks and engines; their times are drawn.

Run ``python -m benchmarks simulate [--requests N] [--seeds N] [--seed N] [--jobs N] [--keep]``; prints JSON. ``--keep`` writes docs/simulation/results.json and the plot; then
``python docs/generate.py`` writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._results import plain
from edgekit.router.simulation import Report, Row, simulate

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARKS = {
    "edgekit": ("o", "#1b6ac9"),
    "static-threshold": ("s", "#d9822b"),
    "least-expected": ("^", "#3d9970"),
    "always-hedge": ("v", "#b0413e"),
    "random": ("x", "#777777"),
}


def plot(report: Report, path: Path) -> None:
    """Share of the oracle's hits against attempts sent to the cloud, a panel per scenario; up and to the left is better."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.scenario for row in report.scenarios))
    columns = 5
    figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(15, 8), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        draw_panel(axis, name, [row for row in report.scenarios if row.scenario == name])
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("sent to the cloud, of all requests")
    for line in axes:
        line[0].set_ylabel("in time, of the oracle's")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=90, metadata={"Software": None})


def draw_panel(axis: Any, name: str, rows: list[Row]) -> None:
    oracle = next(row for row in rows if row.policy == "oracle")
    axis.axvline(oracle.cloud_share, color="#444444", linestyle=":", linewidth=1, label="the oracle's least cloud")
    for row in rows:
        if row.policy in MARKS and row.attainment_vs_oracle is not None:
            mark, colour = MARKS[row.policy]
            axis.errorbar(
                row.cloud_share,
                row.attainment_vs_oracle,
                xerr=row.half_width.cloud_share,
                yerr=row.half_width.attainment_vs_oracle,
                fmt=mark,
                color=colour,
                label=row.policy,
                zorder=3 if row.policy == "edgekit" else 2,
            )
    axis.set_title(f"{name}{' (fault)' if oracle.fault else ''}", fontsize=10)
    axis.set_xlim(0.0, 1.05)
    axis.set_ylim(0.75, 1.02)
    axis.grid(alpha=0.3)


def keep(document: dict[str, Any], report: Report) -> None:
    """Store the result with four significant digits, and draw it."""
    (DOCS / "simulation").mkdir(exist_ok=True)
    (DOCS / "simulation" / "results.json").write_text(json.dumps(plain(document), indent=1) + "\n", "utf-8")
    plot(report, DOCS / "images" / "simulation.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=15_600, help="a trace")
    parser.add_argument("--seeds", type=int, default=5, help="traces a scenario")
    parser.add_argument("--seed", type=int, default=101, help="of the first trace; none that constants were tuned on")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 for one a core")
    parser.add_argument("--keep", action="store_true", help="take the result into the documentation")
    arguments = parser.parse_args()
    asked = {name: value for name, value in vars(arguments).items() if name != "keep"}
    started = time.perf_counter()
    report = simulate(**asked, progress=lambda name: print(f"{name}: done", file=sys.stderr))
    seconds = time.perf_counter() - started
    simulated = sum(row.requests for row in report.scenarios)
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    figures = {"seconds": round(seconds, 1), "requests_simulated": simulated, "requests_per_s": round(simulated / seconds)}
    document = {**machine, "load_average": os.getloadavg()[0], **asked, **figures, "results": msgspec.to_builtins(report)}
    if arguments.keep:
        keep(document, report)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
