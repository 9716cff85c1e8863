"""Open-loop load: requests leave when the schedule says, whether or not earlier ones were answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import EdgeKitError
from edgekit.protocol import InferenceClient, InferRequest, Tensor

__all__ = ["Answer", "Event", "Summary", "arrivals", "drive", "summarise"]

# Enough that a stalled server does not stall the schedule: at the demo's rate this many seconds of requests can hang.
_WORKERS = 48


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        at_s: when the schedule sent it, from the start of the run.
        latency_ms: from then to the answer or the error, waiting for a free sender included.
        tier: ``edge`` or ``cloud``; empty for an error.
        error: class of the error, empty when answered.
    """

    at_s: float
    latency_ms: float
    tier: str
    error: str = ""


@dataclass(frozen=True)
class Event:
    """Something done to the system during a run."""

    at_s: float
    name: str
    act: Callable[[], object]


@dataclass(frozen=True)
class Summary:
    """One row of the demo's table."""

    policy: str
    requests: int
    sla_hit_rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    cloud_share: float


def arrivals(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrival times in seconds; the same for every policy."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate_per_s, int(rate_per_s * seconds * 2) + 20))
    return [float(at) for at in times if at < seconds]


def drive(
    client: InferenceClient,
    model: str,
    inputs: Sequence[np.ndarray],
    schedule: Sequence[float],
    sla_ms: float,
    tier: str,
    events: Sequence[Event],
) -> list[Answer]:
    """Send the schedule, act the events, and return one answer per request, in order of their times.

    Args:
        inputs: taken in turn as the model's input ``x``.
        sla_ms: the deadline that every request carries.
        tier: who answers, when the server does not say so itself.
    """
    answers: list[Answer | None] = [None] * len(schedule)
    turn = iter(range(len(schedule)))
    lock = threading.Lock()
    start = time.monotonic() + 0.1
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                index = next(turn, None)
            if index is None:
                return
            if stop.wait(max(0.0, start + schedule[index] - time.monotonic())):
                return
            answers[index] = _ask(client, model, inputs[index % len(inputs)], start + schedule[index], schedule[index], sla_ms, tier)

    # Daemons: a Ctrl-C inside Thread.start() can leave a thread that never gets to run, and nobody may wait for it at the end.
    workers = [threading.Thread(target=work, name=f"demo-load-{number}", daemon=True) for number in range(_WORKERS)]
    try:
        for worker in workers:
            worker.start()
        for event in events:
            threading.Event().wait(max(0.0, start + event.at_s - time.monotonic()))
            event.act()
        for worker in workers:
            worker.join()
    finally:
        stop.set()  # on Ctrl-C the senders must not hold the process
    return [answer for answer in answers if answer is not None]


def _ask(client: InferenceClient, model: str, x: np.ndarray, due: float, at_s: float, sla_ms: float, tier: str) -> Answer:
    request = InferRequest(model, [Tensor("x", x)], deadline_s=due + sla_ms / 1e3)
    error = ""
    try:
        response = client.infer(request, timeout_s=max(0.001, due + sla_ms / 1e3 - time.monotonic()))
        tier = str(response.parameters.get("edgekit_tier", tier))
    except EdgeKitError as exc:
        tier, error = "", type(exc).__name__
    return Answer(at_s, (time.monotonic() - due) * 1e3, tier, error)


def summarise(policy: str, answers: Sequence[Answer], sla_ms: float) -> Summary:
    """Hit rate counts answers inside the SLA over all requests; percentiles count every request, failed ones until their error."""
    latencies = [answer.latency_ms for answer in answers]
    hits = sum(1 for answer in answers if not answer.error and answer.latency_ms <= sla_ms)
    p50, p99 = (float(value) for value in np.percentile(latencies, [50, 99]))
    errors = sum(1 for answer in answers if answer.error)
    cloud = sum(1 for answer in answers if answer.tier == "cloud")
    return Summary(policy, len(answers), hits / len(answers), p50, p99, errors, cloud / max(1, len(answers) - errors))
