"""The streaming calls of gRPC's standard services: health that is watched, and reflection. Belongs to the loop's thread."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from edgekit.errors import OverloadedError
from edgekit.protocol._grpc_call import Call
from edgekit.protocol._grpc_reflection import reflect
from edgekit.protocol._grpc_service import ControlService, health_status, watched_service
from edgekit.protocol._grpc_wire import Message, inflate, prefixed

__all__ = ["HealthWatch", "ReflectionStreams"]

_log = logging.getLogger(__name__)
_MOST_BYTES = 64 << 10  # of a request; names are short
_AT_ONCE = 16  # reflection requests of one stream before others have their turn


class HealthWatch:
    """Tells the watchers of ``grpc.health.v1.Health/Watch`` when the server becomes ready, and when it is not any more.

    Args:
        loop: the event loop.
        control: knows whether the server is ready.
        pool: where that is asked, since it may block.
        touched: told about connections with something to send.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, control: ControlService, pool: ThreadPoolExecutor, touched: Callable[[object], None]
    ) -> None:
        self._loop = loop
        self._control = control
        self._pool = pool
        self._touched = touched
        self._told: dict[Call, bytes] = {}  # what each watcher was told last
        self._asking = False

    def begin(self, call: Call, message: Message) -> None:
        """A new watcher. A service that is not here is told so, and may come later as far as the client knows: the call stays open."""
        known = watched_service(bytes(_small(message)))
        if known:
            self._told[call] = b""
            self.check()
        else:
            self._send(call, health_status(known=False, ready=False))

    def check(self) -> None:
        """Ask whether the server is ready, if anybody wants to know. Called now and then."""
        if self._told and not (self._asking or self._control.stopping):
            self._asking = True
            self._pool.submit(self._ask)

    def tell(self, *, ready: bool) -> None:
        """Tell those who were told otherwise. A server that is stopping is not ready, whatever it answered just before."""
        self._asking = False
        status = health_status(known=True, ready=ready and not self._control.stopping)
        for call, last in list(self._told.items()):
            if call.closed:
                del self._told[call]
            elif status != last:
                self._told[call] = status
                self._send(call, status)

    def _ask(self) -> None:
        """In a thread."""
        try:
            ready = self._control.ready()
        except Exception:  # noqa: BLE001 - a server that cannot even say so is not ready
            _log.exception("readiness could not be told")
            ready = False
        try:
            self._loop.call_soon_threadsafe(functools.partial(self.tell, ready=ready))
        except RuntimeError:  # the loop has ended: nobody waits
            self._told.clear()

    def _send(self, call: Call, status: bytes) -> None:
        call.connection.send(call, prefixed([status]))
        self._touched(call.connection)


class ReflectionStreams:
    """Answers the requests of reflection streams, a few at a time.

    Args:
        loop: the event loop.
        touched: as for `HealthWatch`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, touched: Callable[[object], None]) -> None:
        self._loop = loop
        self._touched = touched

    def pump(self, call: Call) -> None:
        """Answer what a stream has brought; ends it after its last request."""
        try:
            for _ in range(_AT_ONCE):
                if call.closed or not call.waiting:
                    break
                if call.connection.is_clogged():
                    raise OverloadedError("connection", "too many answers wait to be read", "", "read them first")
                call.connection.send(call, prefixed([reflect(_small(call.waiting.popleft()))]))
        except Exception as exc:  # noqa: BLE001 - becomes the call's status
            call.connection.fail(call, exc)
        self._touched(call.connection)
        if call.closed:
            return
        if call.waiting:
            self._loop.call_soon(functools.partial(self.pump, call))
            return
        call.connection.acknowledge_held(call)
        if call.ended:
            call.connection.finish(call)


def _small(message: Message) -> bytes | memoryview:
    """The bytes of a message that has no reason to be long; raises `OverloadedError` for one that is."""
    if len(message.data) > _MOST_BYTES:
        raise OverloadedError("message", f"{len(message.data)} bytes", f"at most {_MOST_BYTES}")
    return inflate(message, _MOST_BYTES)
