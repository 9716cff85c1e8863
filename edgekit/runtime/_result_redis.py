"""The second level of the result cache: a Redis server that a site's devices share. What goes wrong there is a miss, never an error of a request."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any

from edgekit.errors import EnvironmentMissingError, UsageError

__all__ = ["RedisResults"]

_log = logging.getLogger(__name__)
_PREFIX = b"edgekit:result:1:"
_TIMEOUT_S = 0.1  # a look-up that takes longer costs more than many a model
_PAUSE_S = 5.0  # after a failure; so a server that hangs costs one timeout in that time, not one a request


class RedisResults:
    """Safe from several threads; blocks, for `_TIMEOUT_S` at most.

    Args:
        url: ``redis://host:6379/0``, ``rediss://`` or ``unix://``.
        ttl_s: seconds.
        clock: monotonic seconds.

    Raises:
        EnvironmentMissingError: redis is not installed.
        UsageError: not such a URL.

    Attributes:
        failures: calls that the server did not answer.
    """

    def __init__(self, url: str, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if importlib.util.find_spec("redis") is None:
            raise EnvironmentMissingError.for_extra("the shared result cache", "redis", "redis")
        import redis

        self._error: type[Exception] = redis.RedisError
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=None, decode_responses=False
            )
        except ValueError as exc:
            raise UsageError("--result-cache-redis", repr(url[:96]), "redis://HOST:PORT/DB, rediss:// or unix://") from exc
        self._ttl_ms = max(1, round(ttl_s * 1e3))
        self._clock = clock
        self._paused_until_s = 0.0
        self.failures = 0

    @property
    def available(self) -> bool:
        """It is worth asking: the last failure is some seconds ago."""
        return self._clock() >= self._paused_until_s

    def get(self, key: bytes) -> bytes | None:
        """What is kept, or ``None``."""
        found = self._call(lambda: self._client.get(_PREFIX + key))
        return found if isinstance(found, bytes) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Keep for the time to live."""
        self._call(lambda: self._client.set(_PREFIX + key, value, px=self._ttl_ms))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, call: Callable[[], Any]) -> Any:
        if not self.available:
            return None
        try:
            return call()
        except (self._error, OSError) as exc:
            if not self.failures or self._clock() - self._paused_until_s > _PAUSE_S:
                _log.warning("the shared result cache does not answer: %s; going on without it", exc)
            self.failures += 1
            self._paused_until_s = self._clock() + _PAUSE_S
            return None
