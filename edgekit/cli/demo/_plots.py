"""The demo's pictures: what was read, and latency over time with the events marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.cli.demo._load import Answer, Event
from edgekit.cli.demo._ocr import Reading
from edgekit.cli.demo._pictures import Picture

__all__ = ["plot_latency", "plot_readings"]

_COLOURS = {"edge": "#1b7f5c", "cloud": "#2563c9", "": "#c62f2f"}
_LABELS = {"edge": "answered on the device", "cloud": "answered by the cloud", "": "failed or refused"}


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot_readings(read: Sequence[tuple[Picture, Sequence[Reading]]], path: Path) -> None:
    """Each picture with its boxes, and the text beside it."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(len(read), 2, figsize=(11, 2.6 * len(read)), width_ratios=(1, 1))
    for (picture, readings), (left, right) in zip(read, axes, strict=True):
        left.imshow(picture.pixels)
        left.set_title(picture.name, loc="left", fontsize=10)
        for number, reading in enumerate(readings, start=1):
            x0, y0, x1, y1 = reading.box
            left.add_patch(pyplot.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#1b7f5c", linewidth=1.2))
            line = f"{number}. {reading.text}   ({reading.confidence:.2f})"
            right.text(0, 1 - number / (len(readings) + 1), line, fontsize=9, family="monospace", va="center")
        left.axis("off")
        left.set_anchor("W")  # pictures of other proportions begin at the same edge
        right.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_latency(runs: Mapping[str, Sequence[Answer]], events: Sequence[Event], sla_ms: float, seconds: float, path: Path) -> None:
    """One panel per policy: a point per request, coloured by who answered; events as shaded spans between begin and end."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(len(runs), 1, figsize=(11, 2.5 * len(runs) + 0.8), sharex=True, sharey=True)
    top = sla_ms * 1.35
    spans = list(zip(events[::2], events[1::2], strict=True))
    for (policy, answers), axis in zip(runs.items(), axes, strict=True):
        for begin, end in spans:
            axis.axvspan(begin.at_s, end.at_s, color="#000000", alpha=0.06, linewidth=0)
        for tier, colour in _COLOURS.items():
            points = [(answer.at_s, min(answer.latency_ms, top)) for answer in answers if answer.tier == tier]
            marker = {"marker": "x", "s": 18, "linewidths": 1.1} if tier == "" else {"marker": "o", "s": 11, "linewidths": 0}
            axis.scatter(*(zip(*points, strict=True) if points else ((), ())), color=colour, label=_LABELS[tier], **marker)
        hits = sum(1 for answer in answers if not answer.error and answer.latency_ms <= sla_ms)
        axis.axhline(sla_ms, color="#444444", linewidth=0.9, linestyle="--")
        axis.set_title(f"{policy}: {hits / len(answers):.1%} of {len(answers)} requests inside {sla_ms:g} ms", loc="left", fontsize=10)
        axis.set_ylabel("latency, ms")
        axis.set_ylim(0, top * 1.05)
        axis.set_xlim(0, seconds)
    for begin, end in spans:
        axes[0].annotate(begin.name, ((begin.at_s + end.at_s) / 2, top), ha="center", va="top", fontsize=8.5)
    axes[-1].set_xlabel(f"time of the request, s   (dashed: SLA; points above {top:g} ms are drawn there)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
