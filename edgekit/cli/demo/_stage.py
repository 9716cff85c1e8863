"""The demo's processes: started through the command line as a user would, pinned to cores, and always ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any, cast

from edgekit.cloud._child import following_parent
from edgekit.errors import EngineError

__all__ = ["Child", "Contention", "cores", "start"]


def cores() -> tuple[set[int], set[int]]:
    """Cores of the device, and of everything else (cloud, load, collector): apart where there are two, so that contention is the device's own."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, set(usable[1:])) if len(usable) > 1 else (set(usable), set(usable))


class Child:
    """A running ``edgekit`` command and what it announced on stdout.

    Attributes:
        announced: the JSON document it printed when it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], announced: dict[str, Any], log: IO[str]) -> None:
        self._process = process
        self._log = log
        self.announced = announced

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def close(self) -> None:
        """Ask it to stop, and make it. May be called twice."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        cast("IO[str]", self._process.stdout).close()
        self._log.close()


def start(arguments: list[str], cpus: set[int]) -> Child:
    """Run ``edgekit ARGUMENTS --json`` and wait until it says that it is ready.

    Raises:
        EngineError: it ended first; carries its last line.
    """
    log = cast("IO[str]", tempfile.TemporaryFile("w+"))  # noqa: SIM115 - lives as long as the child
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        # Ctrl-C reaches the whole terminal group: children keep to their own, and end when we tell them.
        start_new_session=True,
        preexec_fn=following_parent(cpus),  # noqa: PLW1509 - the only way to pin and to follow the parent before exec
    )
    text = ""
    for line in cast("IO[str]", process.stdout):
        text += line
        try:
            return Child(process, json.loads(text), log)
        except json.JSONDecodeError:
            continue
    status = process.wait()
    log.seek(0)
    last = (log.read().strip().splitlines() or ["no message"])[-1]
    raise EngineError(f"edgekit {arguments[0]}", f"ended with status {status}: {last}")


class Contention:
    """Real load on the device's cores: processes that do nothing but compute, as another application would."""

    def __init__(self, count: int, cpus: set[int]) -> None:
        self._count = count
        self._cpus = cpus
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start the processes."""
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-S", "-c", "while True: pass"],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=following_parent(self._cpus),  # noqa: PLW1509 - see `start`
            )
            for _ in range(self._count)
        ]

    def close(self) -> None:
        """End them. May be called twice."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []
