"""Child processes of a benchmark: what they use, a pause between their turns, and their end."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

END_S = 5.0
SETTLE_S = 2.0
SETTLE_STEP_S = 0.1
IDLE = 0.3  # of a core: some servers are never quite idle
SHOWN_OF_OUTPUT = 300  # characters of what a process said, in a message


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def without_folders(text: str) -> str:
    """Absolute paths as their last part: what is kept must not name this machine's folders."""
    return re.sub(r"(?<![\w:/])(/[\w.+-]+)+/(?=[\w.+-])", "", text)


class Child:
    """A process with all that it starts. Its output goes to a file, so that nothing it says can block it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        # Byte code is kept, as it is where a server is installed.
        variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})}
        self.process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT)

    def family(self) -> list[psutil.Process]:
        """The process and its descendants that are there now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        """The end of its output, on one line."""
        # Read at a place: the child shares the position of this file.
        written = os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0)
        return without_folders(" ".join(written.decode(errors="replace").split())[-SHOWN_OF_OUTPUT:])

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return float(sum(times.user + times.system for times in self._ask("cpu_times")))

    def rss_bytes(self) -> int:
        """Resident memory of all its processes; what they share counts for each."""
        return sum(memory.rss for memory in self._ask("memory_info"))

    def settle(self) -> None:
        """Wait until it has nothing more to do, at most `SETTLE_S`: what is under way when it is paused would seem to have taken all of the pause."""
        end = time.monotonic() + SETTLE_S
        before = self.cpu_s()
        while time.monotonic() < end:
            time.sleep(SETTLE_STEP_S)
            now = self.cpu_s()
            if now - before < SETTLE_STEP_S * IDLE:
                return
            before = now

    def pause(self) -> None:
        """Stop all of it where it is, so that what it does while idle costs its neighbours nothing."""
        self._ask("suspend")

    def resume(self) -> None:
        self._ask("resume")

    def stop(self) -> None:
        """End it and everything it started."""
        family = self.family()
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(family[1:], END_S)
        self._output.close()

    def _ask(self, what: str) -> list[Any]:
        answers = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                answers.append(getattr(process, what)())
        return answers
