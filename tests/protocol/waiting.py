"""Waiting for what another thread does."""

import time

__all__ = ["until"]

_LIMIT_S = 20.0


def until(condition):
    """Return once ``condition()`` is true."""
    limit_s = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.001)
