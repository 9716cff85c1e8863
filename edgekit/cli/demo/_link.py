"""The network between device and cloud: a TCP proxy on loopback that adds delay and can be cut.

A cut link is silent: bytes stop in both directions and new connections get no answer, as with a pulled cable; nothing is reset. That is harder
on a client than a refused connection, which tells at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

__all__ = ["Link"]

_CHUNK_BYTES = 65536


class Link:
    """A proxy from a free loopback port to ``target_port``. Use as a context manager.

    Args:
        target_port: where the server listens on 127.0.0.1.
        delay_s: added to every chunk in each direction.
    """

    def __init__(self, target_port: int, delay_s: float) -> None:
        self._target_port = target_port
        self._delay_s = delay_s
        self._open: asyncio.Event
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself refers to tasks weakly
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="demo-link", daemon=True)
        self.port = 0
        self._thread.start()
        self._started.wait()

    def cut(self) -> None:
        """Stop carrying bytes."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def restore(self) -> None:
        """Carry bytes again, those held back included."""
        self._loop.call_soon_threadsafe(self._open.set)

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
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        await asyncio.sleep(0)  # a connection accepted in this very turn gets its task started, so that it can close itself
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    async def _listen(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # we run in one
        self._keep(task)
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            try:
                await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, asyncio.CancelledError):
            pass  # either end hung up, or the demo ends
        finally:
            writer.close()

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each chunk leaves ``delay_s`` after it came, in order; chunks on their way do not wait for each other."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._open.wait()
                if not data:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        sender = self._keep(asyncio.ensure_future(send()))
        try:
            data = b"-"
            while data:
                data = await reader.read(_CHUNK_BYTES)
                queue.put_nowait((self._loop.time() + self._delay_s, data))
            await sender
        finally:
            sender.cancel()
