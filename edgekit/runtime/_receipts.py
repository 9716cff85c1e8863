"""Receipts: what was probed, built and proven on a device, as one JSON file each.

They lie in ``receipts/`` below ``$EDGEKIT_STATE``, else ``$XDG_STATE_HOME/edgekit``, else ``~/.local/state/edgekit``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from edgekit._directories import state_directory
from edgekit.bundle import OutputMetrics, Verified, write_file
from edgekit.errors import StorageError

__all__ = ["RECEIPT_FORMAT", "Receipt", "list_receipts", "receipts_directory", "write_receipt"]

RECEIPT_FORMAT = "edgekit.receipt/1"


class Receipt(msgspec.Struct, frozen=True):
    """What happened on a device with one bundle.

    Attributes:
        format: `RECEIPT_FORMAT`.
        bundle: name of the bundle.
        version: its model version.
        digest: SHA-256 of its manifest.
        profile: device profile that it was built for.
        probe: result of `edgekit.device_profiles.probe` on this device.
        power_mode: as the device names it, "" when it does not say.
        engine: what ran: engine, version, device and more, as `Engine.describe`.
        precision: of the artifact that ran.
        built: an engine was built for this receipt; false when it was ready or cached.
        seconds: wall time of building (where it was) and loading.
        verified: ``host`` when every golden sample ran here and kept its limits, else ``deferred``.
        samples: golden samples that ran.
        metrics: per output.
        thresholds: the limits that applied.
        misses: what was beyond its limit, worst first.
        contradictions: where the probe denies the profile.
        created_at: ISO 8601, UTC.
    """

    bundle: str
    version: str
    digest: str
    profile: str
    probe: dict[str, Any]
    power_mode: str
    engine: dict[str, str]
    precision: str
    built: bool
    seconds: float
    verified: Verified
    samples: int
    metrics: dict[str, OutputMetrics]
    thresholds: dict[str, float]
    misses: tuple[str, ...]
    contradictions: tuple[str, ...]
    created_at: str
    format: str = RECEIPT_FORMAT


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_DECODER = msgspec.json.Decoder(Receipt)


def receipts_directory() -> Path:
    """Where receipts are kept; it need not exist."""
    return state_directory() / "receipts"


def write_receipt(receipt: Receipt, directory: Path | None = None) -> Path:
    """Write a receipt, whole or not at all, and return its file. Names sort by time; two in one microsecond replace each other.

    Raises:
        StorageError: the folder cannot be written.
    """
    stamp = re.sub(r"[^0-9T]", "", receipt.created_at.partition("+")[0])
    path = (directory or receipts_directory()) / f"{stamp}-{receipt.digest[:12]}.json"
    write_file(path, msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n")
    return path


def list_receipts(directory: Path | None = None) -> list[Receipt]:
    """All receipts, oldest first.

    Raises:
        StorageError: one of them cannot be read; names it.
    """
    found = []
    for path in sorted((directory or receipts_directory()).glob("*.json")):
        try:
            found.append(_DECODER.decode(path.read_bytes()))
        except (OSError, msgspec.DecodeError) as exc:
            raise StorageError(str(path), f"is no receipt: {exc}", RECEIPT_FORMAT, "move it away") from exc
    return found
