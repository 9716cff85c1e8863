"""The proxy: one listening port, one server behind it, one thread with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Self

import msgspec

from edgekit.router.faults._shape import CHUNK_BYTES, Direction, Faults, Shaper, State

__all__ = ["Counts", "FaultProxy"]

_QUEUED_CHUNKS = 64  # 4 MiB at most on their way; then the sender has to wait, as before a full buffer
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Counts(msgspec.Struct):
    """What a proxy has carried.

    Attributes:
        connections: accepted, refused ones not counted.
        resets: connections that it reset.
        stalls: chunks that a lost segment held up.
    """

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    resets: int = 0
    stalls: int = 0


class FaultProxy:
    """A proxy from a free loopback port to a server, with faults that can be changed while it runs. Use as a context manager.

    Bytes that are under way when the faults change leave when they would have; those of a silent link are held back.

    Args:
        target_port: where the server listens.
        faults: at the beginning; none by default.
        seed: of jitter and losses.
        host: of the server.
    """

    def __init__(self, target_port: int, faults: Faults | None = None, *, seed: int = 0, host: str = "127.0.0.1") -> None:
        self._target = (host, target_port)
        self._faults = faults or Faults()
        draws = random.Random(seed)
        self._shapers = (Shaper(draws), Shaper(draws))
        self._connections: set[_Connection] = set()
        self._counts = Counts()
        self._changed: asyncio.Event
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._main, name="edgekit-faults", daemon=True)
        self.port = 0
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            raise self._failed

    @property
    def faults(self) -> Faults:
        """In force now."""
        return self._faults

    @property
    def counts(self) -> Counts:
        """So far."""
        return msgspec.structs.replace(self._counts, stalls=sum(shaper.stalls for shaper in self._shapers))

    def set(self, faults: Faults) -> None:
        """Put ``faults`` in the place of those in force; they hold when this returns."""
        asyncio.run_coroutine_threadsafe(self._set(faults), self._loop).result()

    def reset(self) -> None:
        """Reset every connection, once; new ones are as before."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result()

    def close(self) -> None:
        """Close every connection and join the thread. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except OSError as exc:
            self._failed = exc
            self._started.set()
        else:
            self._started.set()
            self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _start(self) -> None:
        self._changed = asyncio.Event()
        await self._listen()
        if self._faults.state is State.DOWN:
            await self._refuse()

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # a connection accepted in this very turn gets its task started, so that it can close itself
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _set(self, faults: Faults) -> None:
        before, self._faults = self._faults.state, faults
        self._changed.set()
        self._changed = asyncio.Event()
        if faults.state is State.DOWN and before is not State.DOWN:
            await self._refuse()
        elif faults.state is not State.DOWN and before is State.DOWN:
            await self._listen()

    async def _reset(self) -> None:
        for connection in list(self._connections):
            connection.reset()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._counts.connections += 1
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            await self.passing(up=True)
            await connection.run(reader, *await asyncio.open_connection(*self._target))
        except (OSError, asyncio.CancelledError):
            pass  # either end hung up, it was reset, or the proxy ends
        finally:
            self._connections.discard(connection)
            connection.close()

    async def passing(self, up: bool) -> None:
        """Wait while the link, or this direction of it, is silent."""
        while self._faults.state is not State.UP or self.direction(up).silent:
            await self._changed.wait()

    def direction(self, up: bool) -> Direction:
        """The faults of one direction at present."""
        return self._faults.up if up else self._faults.down

    def leaves_at(self, up: bool, size_bytes: int, previous_s: float) -> float:
        """When a chunk that came now leaves."""
        return self._shapers[0 if up else 1].due(self.direction(up), size_bytes, self._loop.time(), previous_s)

    def carried(self, connection: _Connection, up: bool, size_bytes: int) -> None:
        """Count what is handed on, and reset a connection that has had its share."""
        if up:
            self._counts.up_bytes += size_bytes
        else:
            self._counts.down_bytes += size_bytes
        connection.carried_bytes += size_bytes
        if 0 < self._faults.reset_after_bytes <= connection.carried_bytes:
            connection.reset()

    def was_reset(self) -> None:
        """Count it."""
        self._counts.resets += 1


class _Connection:
    """One client's connection and the one to the server."""

    def __init__(self, proxy: FaultProxy, near: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writers = [near]
        self._task = asyncio.current_task()
        self.carried_bytes = 0

    async def run(self, near_reader: asyncio.StreamReader, far_reader: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        """Carry both directions until both have ended."""
        self._writers.append(far)
        ways = [asyncio.ensure_future(self._carry(near_reader, far, up=True))]
        ways.append(asyncio.ensure_future(self._carry(far_reader, self._writers[0], up=False)))
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()

    def reset(self) -> None:
        """End both connections with a reset."""
        self._proxy.was_reset()
        for writer in self._writers:
            peer: socket.socket | None = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if peer is not None:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """End both connections."""
        for writer in self._writers:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        """Each chunk leaves when it is due, in order; chunks on their way do not wait for each other."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        sender = asyncio.ensure_future(self._send(queue, writer, up))
        due_s = -math.inf
        try:
            data = b"-"
            while data:
                data = await reader.read(CHUNK_BYTES)
                due_s = self._proxy.leaves_at(up, len(data), due_s)
                await queue.put((due_s, data))
            await sender
        finally:
            sender.cancel()

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, up: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._proxy.passing(up)
            if not data:
                await asyncio.sleep(self._proxy.direction(up).close_delay_s)
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            piece = self._proxy.direction(up).slice_bytes or len(data)
            for start in range(0, len(data), piece):
                writer.write(data[start : start + piece])
                await writer.drain()
                if piece < len(data):
                    await asyncio.sleep(self._proxy.direction(up).slice_delay_s)
            self._proxy.carried(self, up, len(data))
