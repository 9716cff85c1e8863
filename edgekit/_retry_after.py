"""What the HTTP field ``Retry-After`` asks for (RFC 9110, 10.2.3). Pure."""

from __future__ import annotations

import email.utils
import math

__all__ = ["retry_after_s"]

CAP_S = 600.0  # a server must not be able to silence a device for a day


def retry_after_s(value: str, now_s: float) -> float | None:
    """Seconds to wait, ten minutes at most; ``None`` for a value that is neither seconds nor a date.

    Args:
        value: of the field.
        now_s: the wall clock, for a date.
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now_s
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), CAP_S) if not math.isnan(seconds) else None
