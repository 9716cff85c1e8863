"""The event loop that a server runs on, the same for HTTP and gRPC, and how clients that its thread calls may use it too."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # clients ask for a host, and need no asyncio when there is none
    import asyncio

__all__ = ["Guest", "Host", "host_here", "hosting", "new_event_loop"]

_here = threading.local()


def new_event_loop(*, uvloop: bool = True) -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's where it is installed and wanted, because it takes fewer system calls for each turn."""
    if uvloop and importlib.util.find_spec("uvloop") is not None:
        import uvloop as faster

        loop: asyncio.AbstractEventLoop = faster.new_event_loop()
        return loop
    import asyncio

    return asyncio.new_event_loop()


class Guest(Protocol):
    """Something of others that lives in a server's loop."""

    def loop_ends(self) -> None:
        """End now, in the loop's thread; the loop will not run again."""
        ...


class Host:
    """A server's loop, for clients that are called in its thread: they need no thread of their own, and so no hand-over. Only for the loop's thread.

    A server's loop never stands still for long, and is not closed before its guests are gone; of other loops nobody knows that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.guests: set[Guest] = set()


@contextlib.contextmanager
def hosting(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let this thread's ``loop`` have guests while the block runs it; what is left of them at the end is ended."""
    host = _here.host = Host(loop)
    try:
        yield
    finally:
        _here.host = None
        for guest in list(host.guests):
            guest.loop_ends()


def host_here() -> Host | None:
    """The loop of this thread, if it takes guests."""
    return getattr(_here, "host", None)
