"""`start_telemetry`: the one call that a server, the router or a tool makes."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from edgekit._directories import state_directory
from edgekit._version import __version__
from edgekit.errors import StorageError
from edgekit.telemetry._exporter import DropCounts, ExportCycle, Exporter
from edgekit.telemetry._http import HttpTransport, Transport
from edgekit.telemetry._meter import AttributeValue, Meter
from edgekit.telemetry._otlp import Resource
from edgekit.telemetry._spool import DEFAULT_CAP_BYTES, Spool, open_spool

__all__ = ["Telemetry", "default_device_id", "default_spool_directory", "start_telemetry"]

_log = logging.getLogger("edgekit.telemetry")


class Telemetry:
    """A meter and, where there is a collector, what carries it there. Nothing here raises into the program that it observes.

    Attributes:
        meter: make instruments with it; works with and without a collector.
        resource: the attributes that travel with every batch.
    """

    def __init__(
        self, meter: Meter, resource: Mapping[str, AttributeValue], exporter: Exporter | None, cycle: ExportCycle | None, drops: DropCounts
    ) -> None:
        self.meter = meter
        self.resource = dict(resource)
        self._exporter = exporter
        self._cycle = cycle
        self._drops = drops
        self._closed = False

    @property
    def exporting(self) -> bool:
        """There is a collector to send to."""
        return self._exporter is not None and not self._closed

    @property
    def dropped(self) -> dict[str, int]:
        """Rows lost so far, by reason."""
        return self._drops.by_reason()

    @property
    def backlog(self) -> int:
        """Batches that wait for the collector."""
        return self._cycle.backlog if self._cycle is not None and not self._closed else 0

    def set_bundle(self, digest: str, profile: str) -> None:
        """Say which bundle runs now, and for which device profile it was built; holds for the batches from here on."""
        now = {"edgekit.bundle.digest": digest, "edgekit.device_profile": profile}
        self.resource |= now
        if self._cycle is not None:
            self._cycle.set_resource(now)

    def send_receipt(self, receipt: Mapping[str, Any]) -> bool:
        """Queue a receipt (any JSON-like mapping); true when it is in the spool, false when there is no collector or it was dropped (counted).

        The fleet page shows its ``verified`` beside the device when its ``bundle_digest``, if any, is the one that the device reports.
        """
        if self._cycle is None or self._closed:
            return False
        try:
            return self._cycle.queue_receipt(receipt, time.time_ns())
        except Exception:  # noqa: BLE001 - a receipt must not stop what it reports on
            _log.exception("receipt was not queued")
            self._drops.add(1, "internal")
            return False

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Collect and send now; true when everything was delivered (or there is no collector), false when it stays in the spool."""
        return self._exporter.flush(timeout_s) if self._exporter is not None else True

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what can be sent within ``timeout_s``, leave the rest in the spool, end the thread. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._exporter is not None and not self._exporter.stop(timeout_s):
            _log.warning("telemetry thread did not end in time")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def default_device_id() -> str:
    """``<host name>-<8 hex digits>``; the digits are a hash of the machine id, which must not leave the machine itself (machine-id(5))."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            machine = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if machine:
            return f"{socket.gethostname()}-{hashlib.sha256(b'edgekit' + machine.encode()).hexdigest()[:8]}"
    return socket.gethostname()


def default_spool_directory() -> Path:
    """Where telemetry waits for the collector."""
    return state_directory() / "telemetry"


def _spool(directory: Path | None, service_name: str, drops: DropCounts) -> Spool:
    try:
        return open_spool(directory if directory is not None else default_spool_directory(), service_name, DEFAULT_CAP_BYTES, drops.add)
    except (StorageError, RuntimeError) as exc:  # RuntimeError: no home directory
        _log.warning("telemetry spool is in memory only", extra={"error": str(exc)})
        return Spool(None, DEFAULT_CAP_BYTES, drops.add)


def start_telemetry(
    service_name: str,
    tier: Literal["edge", "cloud"],
    collector_url: str | None = None,
    device_id: str | None = None,
    interval_s: float = 5.0,
    spool_dir: str | os.PathLike[str] | None = None,
    *,
    transport: Transport | None = None,
) -> Telemetry:
    """Start telemetry for this process; `Telemetry.set_bundle` says later which bundle runs.

    Args:
        service_name: the role: ``edgekit-runtime``, ``edgekit-router``, ``edgekit-triton``.
        tier: ``edge`` or ``cloud``.
        collector_url: base URL of an OTLP/HTTP receiver; without one the meter works and nothing is sent.
        device_id: ``device.id``; host name and a hash of the machine id when left out.
        interval_s: seconds between collections.
        spool_dir: where batches wait on disk, see `default_spool_directory`; where it cannot be written they wait in memory, with a warning.
        transport: replaces HTTP, for tests and other carriers.

    Raises:
        UsageError: the collector's URL is none.
    """
    meter = Meter()
    drops = DropCounts(meter)
    resource: dict[str, AttributeValue] = {
        "service.name": service_name,
        "service.version": __version__,
        "device.id": device_id or default_device_id(),
        "edgekit.tier": tier,
        "edgekit.device_profile": "",
        "edgekit.bundle.digest": "",
        "edgekit.boot.id": uuid.uuid4().hex,
    }
    if transport is None and collector_url:
        transport = HttpTransport(collector_url)
    if transport is None:
        return Telemetry(meter, resource, None, None, drops)
    spool = _spool(Path(spool_dir) if spool_dir is not None else None, service_name, drops)
    cycle = ExportCycle(meter, Resource(resource), spool, transport, drops, random.Random())
    return Telemetry(meter, resource, Exporter(cycle, transport, interval_s), cycle, drops)
