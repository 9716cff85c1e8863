"""The demo's small fleet: collector, Triton behind a link, an edge server, the router; and a load that fits this machine."""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from edgekit.bundle import Bundle
from edgekit.cli.demo._load import Event, drive
from edgekit.cli.demo._stage import Child, Contention, cores, start
from edgekit.router.faults import Direction, FaultProxy, Faults, State

__all__ = ["BURNERS", "LINK_DELAY_S", "Endpoints", "Fleet", "Load", "fitting_load"]

LINK_DELAY_S = 0.010  # each way: a round trip of 20 ms, as from a wired site to a nearby region
NETWORK = Faults.both(Direction(delay_s=LINK_DELAY_S))
# Silent, as with a pulled cable: harder on a client than a refused connection, which tells at once.
CUT = Faults(NETWORK.up, NETWORK.down, State.SILENT)
BURNERS = 4
_REPORT_INTERVAL_S = 2.0
_PROBES = 12
_JOIN_S = 15.0  # the last report is sent within telemetry's own limit, well below this
_PROBE_DEADLINE_MS = 30_000.0


class Endpoints(msgspec.Struct, frozen=True):
    """Where the demo's processes listen."""

    dashboard: str
    edge: str
    router: str
    cloud: str


class Load(msgspec.Struct, frozen=True):
    """What is asked of the fleet, and the two latencies that decided it.

    Attributes:
        sla_ms: deadline of every request.
        rate_per_s: mean rate of a Poisson process.
        edge_ms, cloud_ms: median latency of a request to the device, and to the cloud over the link, before the load.
    """

    sla_ms: float
    rate_per_s: float
    edge_ms: float
    cloud_ms: float


def fitting_load(edge_ms: float, cloud_ms: float) -> Load:
    """Pure. The deadline leaves each tier three times its own latency; the rate keeps the device a third busy, so that contention is what breaks it."""
    sla_ms = max(60.0, math.ceil(3 * max(edge_ms, cloud_ms) / 10) * 10.0)
    return Load(sla_ms, round(min(14.0, 330 / edge_ms, 450 / cloud_ms), 1), round(edge_ms, 1), round(cloud_ms, 1))


class Fleet:
    """Everything started, warm and measured; ends with the block.

    Args:
        bundle: the model that device and cloud serve.
        folder: for the store and Triton's repository.
        line: one input, to measure the tiers with.

    Attributes:
        endpoints: where it listens.
        cloud_url: Triton as the device sees it, over the link.
        load: deadline and rate for this machine.
        device_cores: cores of the edge server.
    """

    def __init__(self, bundle: Bundle, folder: Path, line: np.ndarray) -> None:
        self._ends = contextlib.ExitStack()
        try:
            self._start(bundle, folder, line)
        except BaseException:
            self._ends.close()
            raise

    def events(self, seconds: float) -> list[Event]:
        """Throttled in the second quarter of a run, cut off in the third; well in the first and the last."""
        return [
            Event(seconds * 0.20, "device throttled", self._burners.begin),
            Event(seconds * 0.45, "device recovers", self._burners.close),
            Event(seconds * 0.60, "cloud cut off", lambda: self._link.set(CUT)),
            Event(seconds * 0.85, "cloud back", lambda: self._link.set(NETWORK)),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ends.close()

    def _start(self, bundle: Bundle, folder: Path, line: np.ndarray) -> None:
        from edgekit.cloud.triton import TritonServer, write_repository

        self.device_cores, rest = cores()
        self.model = bundle.manifest.name
        write_repository([bundle.path], folder / "triton", "cpu")
        shutil.rmtree(folder / "store", ignore_errors=True)  # of an earlier demo: this one's figures stand alone
        collector = self._child(["collector", "--store", str(folder / "store"), "--otlp-grpc", "127.0.0.1:0"], rest)
        dashboard = f"http://127.0.0.1:{collector.announced['http']}"
        triton = self._ends.enter_context(TritonServer(folder / "triton", cpus=rest))
        self._link = self._ends.enter_context(FaultProxy(triton.http_port, NETWORK))
        self.cloud_url = f"http://127.0.0.1:{self._link.port}"
        telemetry = ["--grpc", "off", "--collector", dashboard, "--device-id", "demo-device"]
        edge = self._child(["serve", str(bundle.path), *telemetry], self.device_cores)
        edge_url = f"http://127.0.0.1:{edge.announced['http']}"
        self.load = fitting_load(self._median_ms(edge_url, line), self._median_ms(self.cloud_url, line))
        routing = ["route", "--edge", edge_url, "--cloud", self.cloud_url, "--sla-ms", f"{self.load.sla_ms:g}"]
        router = self._child([*routing, *telemetry], rest)
        self._report(triton.url, dashboard)
        self._burners = Contention(BURNERS, self.device_cores)
        self._ends.callback(self._burners.close)
        self.endpoints = Endpoints(f"{dashboard}/", edge_url, f"http://127.0.0.1:{router.announced['http']}", triton.url)

    def _child(self, arguments: list[str], cpus: set[int]) -> Child:
        child = start([*arguments, "--http", "127.0.0.1:0"], cpus)
        self._ends.callback(child.close)
        return child

    def _report(self, triton_url: str, dashboard: str) -> None:
        from edgekit.cloud import report_triton

        stop = threading.Event()
        settings = {"interval_s": _REPORT_INTERVAL_S, "stop_event": stop, "device_id": "demo-triton"}
        reporter = threading.Thread(target=report_triton, args=(triton_url, dashboard), kwargs=settings, name="demo-report", daemon=True)
        reporter.start()
        self._ends.callback(reporter.join, _JOIN_S)
        self._ends.callback(stop.set)

    def _median_ms(self, url: str, line: np.ndarray) -> float:
        from edgekit.protocol import connect

        client = connect(url)
        try:
            schedule = [0.2 * number for number in range(_PROBES)]
            answers = drive(client, self.model, [line], schedule, _PROBE_DEADLINE_MS, "", [])
        finally:
            client.close()
        return float(np.median([answer.latency_ms for answer in answers[2:]]))  # the first ones meet cold code
