"""The cloud tier's telemetry: Triton's cumulative statistics, turned into deltas and sent as OTLP.

Triton keeps sums and no histogram (triton-inference-server issues 3060, 7672), so only counts, sums of time and therefore means leave here; percentiles of the
cloud tier come from the router, which measures each request. Read is either the statistics extension (``/v2/models/stats`` on the HTTP port) or the Prometheus
page (``/metrics`` on the metrics port), by what the URL ends in. Parsing and deltas are pure.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edgekit.errors import UnavailableError, UsageError
from edgekit.telemetry import Meter, start_telemetry

__all__ = ["Snapshot", "increase", "parse_prometheus", "parse_statistics", "report_triton"]

_log = logging.getLogger("edgekit.cloud.report")

FETCH_TIMEOUT_S = 5.0
BODY_LIMIT_BYTES = 16 << 20

ModelKey = tuple[str, str]
"""Model name and version."""


class Snapshot(msgspec.Struct, frozen=True):
    """What Triton said at one moment.

    Attributes:
        totals: per model, cumulative values by our names: requests (``ok``, ``error``), ``inferences``, ``executions``, and seconds of ``*.time``.
        pending: requests that wait now, per model; the statistics extension does not say.
    """

    totals: dict[ModelKey, dict[str, float]]
    pending: dict[ModelKey, float] = {}


_PROMETHEUS = {
    "nv_inference_request_success": ("ok", 1.0),
    "nv_inference_request_failure": ("error", 1.0),
    "nv_inference_count": ("inferences", 1.0),
    "nv_inference_exec_count": ("executions", 1.0),
    "nv_inference_request_duration_us": ("request.time", 1e-6),
    "nv_inference_queue_duration_us": ("queue.time", 1e-6),
    "nv_inference_compute_input_duration_us": ("compute_input.time", 1e-6),
    "nv_inference_compute_infer_duration_us": ("compute_infer.time", 1e-6),
    "nv_inference_compute_output_duration_us": ("compute_output.time", 1e-6),
}
_STATISTICS_TIMES = {
    "success": "request.time",
    "queue": "queue.time",
    "compute_input": "compute_input.time",
    "compute_infer": "compute_infer.time",
    "compute_output": "compute_output.time",
}
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\}\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def parse_prometheus(text: str) -> Snapshot:
    """Triton's part of a Prometheus text page; lines of other metrics, and those without a model, are passed over.

    Several samples of one model (one a GPU, or one a failure reason) are added up.
    """
    totals: dict[ModelKey, dict[str, float]] = {}
    pending: dict[ModelKey, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line.strip())
        if match is None:
            continue
        name, labels_text, number = match.groups()
        labels = {key: re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value) for key, value in _LABEL.findall(labels_text)}
        try:
            value = float(number)
        except ValueError:
            continue
        key = (labels.get("model", ""), labels.get("version", ""))
        if not key[0] or value - value != 0:
            continue
        if name in _PROMETHEUS:
            ours, factor = _PROMETHEUS[name]
            model = totals.setdefault(key, {})
            model[ours] = model.get(ours, 0.0) + value * factor
        elif name == "nv_inference_pending_request_count":
            pending[key] = pending.get(key, 0.0) + value
    return Snapshot(totals, pending)


def parse_statistics(body: bytes) -> Snapshot:
    """The answer of ``/v2/models/stats`` (Triton's statistics extension).

    Raises:
        UnavailableError: it is no such answer.
    """
    try:
        document = msgspec.json.decode(body)
        return Snapshot({(str(one["name"]), str(one.get("version", ""))): _model_totals(one) for one in document["model_stats"]})
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError) as exc:
        raise UnavailableError(
            "Triton statistics", "not what /v2/models/stats answers", "", "give Triton's HTTP address as --triton"
        ) from exc


def _model_totals(one: Mapping[str, Any]) -> dict[str, float]:
    stats = one.get("inference_stats", {})
    totals = {ours: float(stats.get(theirs, {}).get("ns", 0)) * 1e-9 for theirs, ours in _STATISTICS_TIMES.items()}
    totals["ok"] = float(stats.get("success", {}).get("count", 0))
    totals["error"] = float(stats.get("fail", {}).get("count", 0))
    totals["inferences"] = float(one.get("inference_count", 0))
    totals["executions"] = float(one.get("execution_count", 0))
    return totals


def increase(before: Snapshot | None, after: Snapshot) -> dict[ModelKey, dict[str, float]]:
    """What was added between two snapshots, zeros left out.

    The first snapshot is only a baseline: what Triton did before anyone watched is not of this interval. A model whose counts went back was reloaded or its server
    restarted: all it has now is new. A model that was not there before is new as a whole.
    """
    if before is None:
        return {}
    grown: dict[ModelKey, dict[str, float]] = {}
    for key, now in after.totals.items():
        then = before.totals.get(key, {})
        # Counts of events decide; sums of time are floats and may differ in the last bit.
        restarted = any(now.get(name, 0.0) < then.get(name, 0.0) for name in ("ok", "error", "inferences", "executions"))
        base = {} if restarted else then
        delta = {name: value - base.get(name, 0.0) for name, value in now.items() if value > base.get(name, 0.0)}
        if delta:
            grown[key] = delta
    return grown


def record(meter: Meter, before: Snapshot | None, after: Snapshot) -> None:
    """Put the increase into the meter's instruments."""
    for (model, version), delta in increase(before, after).items():
        attributes = {"edgekit.model": model, "edgekit.model.version": version, "edgekit.tier": "cloud"}
        for name, value in delta.items():
            if name in ("ok", "error"):
                counter = meter.counter("edgekit.triton.requests", "1", "requests that Triton answered or failed")
                counter.add(value, {**attributes, "edgekit.outcome": name})
            else:
                meter.counter(f"edgekit.triton.{name}", "s" if name.endswith(".time") else "1").add(value, attributes)
    for (model, version), waiting in after.pending.items():
        meter.gauge("edgekit.triton.pending", "1").set(waiting, {"edgekit.model": model, "edgekit.model.version": version})


def _source(triton_url: str) -> tuple[str, Callable[[bytes], Snapshot]]:
    try:
        parts = urllib.parse.urlsplit(triton_url)
        host = parts.hostname if parts.port is None or parts.port >= 0 else None
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("--triton", repr(triton_url), "http://HOST:PORT of Triton's HTTP server, or http://HOST:PORT/metrics")
    if parts.path.rstrip("/").endswith("/metrics"):
        return triton_url, lambda body: parse_prometheus(body.decode("utf-8", "replace"))
    return triton_url.rstrip("/") + "/v2/models/stats", parse_statistics


def fetch(url: str) -> bytes:
    """Body of a GET.

    Raises:
        UnavailableError: no answer, or not a 200.
    """
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:
            return bytes(answer.read(BODY_LIMIT_BYTES))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as exc:
        raise UnavailableError(f"Triton at {url}", " ".join(str(exc).split()), "an answer", "check that it runs and the URL") from exc


def report_triton(
    triton_url: str,
    collector_url: str,
    interval_s: float = 5.0,
    stop_event: threading.Event | None = None,
    *,
    device_id: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    started: Callable[[], object] | None = None,
) -> int:
    """Poll Triton and send what it did since the last poll, until ``stop_event`` is set. A Triton that does not answer is reported as down and tried again.

    Args:
        triton_url: Triton's HTTP address (the statistics extension is read), or its metrics page, ending in ``/metrics``.
        collector_url: base URL of the collector.
        interval_s: seconds between polls.
        stop_event: ends the loop; the last interval is polled and sent before it returns.
        device_id: name in the fleet, ``triton-HOST:PORT`` when left out.
        spool_dir: where telemetry waits while the collector is away.
        started: called once, when the arguments are known to be sound and before the first poll.

    Returns:
        Polls that Triton answered.

    Raises:
        UsageError: a URL that is none.
    """
    url, parse = _source(triton_url)
    stop = stop_event or threading.Event()
    name = device_id or f"triton-{urllib.parse.urlsplit(triton_url).netloc.rpartition('@')[2]}"
    answered, before, down = 0, None, False
    with start_telemetry("edgekit-triton", "cloud", collector_url, name, interval_s=interval_s, spool_dir=spool_dir) as telemetry:
        if started is not None:
            started()
        while True:
            last = stop.is_set()
            try:
                after = parse(fetch(url))
                record(telemetry.meter, before, after)
                answered, before, down = answered + 1, after, False
            except UnavailableError as exc:
                if not down:
                    _log.warning("Triton does not answer", extra={"error": str(exc)})
                down = True
            telemetry.meter.gauge("edgekit.triton.up", "1", "1 while Triton answers").set(0 if down else 1)
            if last:
                return answered
            stop.wait(interval_s)
