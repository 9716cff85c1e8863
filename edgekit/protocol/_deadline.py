"""When a request must be answered, from what its sender said. Pure: the caller gives the time."""

from __future__ import annotations

import math

import msgspec

from edgekit.errors import RequestError
from edgekit.protocol._types import InferRequest, Parameters

__all__ = [
    "DEADLINE_HEADER",
    "TIMEOUT_PARAMETER",
    "absolute_deadline",
    "call_deadline",
    "rounded_down",
    "timeout_from_header",
    "with_timeout",
]

DEADLINE_HEADER = "x-edgekit-deadline-ms"
TIMEOUT_PARAMETER = "timeout"  # microseconds, as Triton's scheduler extension has it; 0 is "none"


def timeout_from_header(text: str | None) -> float | None:
    """Seconds from the ``x-edgekit-deadline-ms`` header (milliseconds, a positive number); ``None`` when it is absent."""
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not (0 < milliseconds < math.inf):
        raise RequestError(f"header {DEADLINE_HEADER}", repr(text[:40]), "milliseconds, a number above 0")
    return milliseconds / 1e3


def absolute_deadline(parameters: Parameters, now_s: float, *timeouts_s: float | None) -> float | None:
    """The earliest of what the request parameter ``timeout`` and the transport ask for, absolute on the clock of ``now_s``.

    Raises:
        RequestError: ``timeout`` is not a whole number of microseconds.
    """
    remaining = [timeout for timeout in timeouts_s if timeout is not None]
    timeout_us = parameters.get(TIMEOUT_PARAMETER, 0)
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or not 0 <= timeout_us < 1 << 63:
        raise RequestError(f"parameter {TIMEOUT_PARAMETER!r}", str(timeout_us)[:40], "microseconds, a whole number of 0 (none) or more")
    if timeout_us:
        remaining.append(timeout_us / 1e6)
    return now_s + min(remaining) if remaining else None


def call_deadline(request: InferRequest, timeout_s: float, now_s: float) -> float:
    """When a client must have its answer: ``timeout_s`` from now or the request's own deadline, whichever is earlier."""
    return now_s + timeout_s if request.deadline_s is None else min(now_s + timeout_s, request.deadline_s)


def with_timeout(request: InferRequest, remaining_s: float) -> InferRequest:
    """The request with the parameter ``timeout`` that tells the server what is left of its time.

    Rounded down by a 512th at most: a server of ours remembers what it read, and so it meets the same JSON again and again.
    """
    timeout_us = rounded_down(max(1, int(min(remaining_s, 1e9) * 1e6)))
    return msgspec.structs.replace(request, parameters={**request.parameters, TIMEOUT_PARAMETER: timeout_us})


def rounded_down(number: int) -> int:
    """A whole number with ten binary digits, and zeros: less by a 512th at most."""
    return number - number % (1 << max(0, number.bit_length() - 10))
