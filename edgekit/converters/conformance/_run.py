"""Cases over guarded workers: a worker that crashes, hangs or grows too large costs its case, not the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from edgekit.converters.conformance._cases import Case
from edgekit.converters.conformance._judge import Verdict, judge_case

__all__ = ["Limits", "run_cases"]


@dataclass(frozen=True)
class Limits:
    """What one case may take.

    Attributes:
        seconds: wall time; a case takes well under a second, a toolchain's first import tens of them on a small machine.
        bytes: resident memory of the worker.
    """

    seconds: float = 180.0
    bytes: int = 6 << 30


_POLL_S = 0.25


def run_cases(
    cases: Sequence[Case],
    device: str,
    *,
    precision: str = "fp32",
    jobs: int = 0,
    limits: Limits | None = None,
    progress: Callable[[str, Verdict], None] | None = None,
) -> dict[str, Verdict]:
    """Verdict of each case by name, in the order of ``cases``.

    Args:
        cases: what to run.
        device: id of a profile.
        precision: as for `build`; the suite's tolerances are made for fp32.
        jobs: workers; 0 takes one per core.
        limits: per case.
        progress: called after each case, from the workers' threads.
    """
    waiting = list(reversed(cases))
    found: dict[str, Verdict] = {}
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker(device, precision, limits or Limits())
        try:
            while True:
                with lock:
                    if not waiting:
                        return
                    case = waiting.pop()
                verdict = worker.judge(case)
                with lock:
                    found[case.name] = verdict
                if progress is not None:
                    progress(case.name, verdict)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(min(jobs or os.cpu_count() or 1, len(cases)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {case.name: found[case.name] for case in cases}


class _Worker:
    """One child process; started on demand, again after each that ended."""

    def __init__(self, device: str, precision: str, limits: Limits) -> None:
        self._device, self._precision, self._limits = device, precision, limits
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def judge(self, case: Case) -> Verdict:
        started = time.monotonic()
        pipe = self._start()
        pipe.send(case)
        try:
            verdict = self._answer(pipe, started + self._limits.seconds)
        except (EOFError, ConnectionError):
            verdict = Verdict("failed", f"the worker died: {self._cause()}")
            self._stop()
        return Verdict(verdict.verdict, verdict.reason, round(time.monotonic() - started, 3))

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._stop()

    def _answer(self, pipe: Connection, deadline: float) -> Verdict:
        while not pipe.poll(_POLL_S):
            if time.monotonic() > deadline:
                self._stop()
                return Verdict("failed", f"no answer within {self._limits.seconds:g} s")
            if self._resident() > self._limits.bytes:
                self._stop()
                return Verdict("failed", f"took more than {self._limits.bytes >> 20} MB")
        verdict: Verdict = pipe.recv()
        return verdict

    def _start(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._device, self._precision), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe = ours
        return self._pipe

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process, self._pipe = None, None

    def _cause(self) -> str:
        if self._process is None:
            return "it could not be started"
        self._process.join(5)
        code = self._process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def _resident(self) -> int:
        """Resident bytes of the child (second field of /proc/PID/statm, in pages: proc(5)); 0 where there is no /proc."""
        try:
            fields = Path(f"/proc/{self._process.pid if self._process else 0}/statm").read_text().split()
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe: Connection, device: str, precision: str) -> None:
    """The child: judge what comes until the pipe closes. Its chatter goes nowhere; verdicts carry what matters."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    import warnings

    warnings.simplefilter("ignore")
    while True:
        try:
            case: Case = pipe.recv()
        except EOFError:
            return
        pipe.send(judge_case(case, device, precision))
