"""Starting and stopping a real Triton on this machine, for development and the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edgekit.cloud._child import following_parent
from edgekit.cloud.triton._environment import TritonEnvironment, find_environment
from edgekit.errors import BindError, EngineError, UsageError

__all__ = ["TritonServer"]

_READY_TIMEOUT_S = 60.0
_POLL_S = 0.1


class TritonServer:
    """A child process running ``tritonserver`` on a model repository. Use as a context manager, or call `stop`.

    Args:
        repository: directory that `write_repository` made.
        http_port, grpc_port, metrics_port: 0 picks a free one.
        host: address to listen on; loopback by default.
        environment: where Triton is installed; found when not given.
        log: file for the server's output; a temporary one by default, whose end is quoted in errors.
        cpus: CPU cores the server may use; all by default.

    Raises:
        EnvironmentMissingError: Triton is not installed.
        BindError: a port is in use.
        EngineError: Triton ended or did not become ready; carries its first error line.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        environment: TritonEnvironment | None = None,
        log: Path | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        self.repository = Path(repository)
        if not any(self.repository.glob("*/config.pbtxt")):
            raise UsageError(str(repository), "no model in it", "a Triton model repository", "make one: edgekit cloud repository")
        self._environment = environment or find_environment()
        self.host = host
        self.http_port = _port(host, http_port, "--http")
        self.grpc_port = _port(host, grpc_port, "--grpc")
        self.metrics_port = _port(host, metrics_port, "--metrics")
        self._log: IO[bytes] = open(log, "w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._cpus = cpus
        self._process = self._start()
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Base URL of the HTTP endpoint."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """Base URL of the Prometheus endpoint."""
        return f"http://{self.host}:{self.metrics_port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Block until the server ends; its exit status."""
        return self._process.wait()

    def stop(self, grace_s: float = 5.0) -> None:
        """End the server and its back-end processes. May be called twice."""
        if self._process.poll() is None:
            _signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        # The back end's stubs are in the same group: whoever is left goes now.
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            str(self._environment.server),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={self._environment.backend_directory()}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=3",
            f"--http-address={self.host}",
            f"--http-port={self.http_port}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
        ]
        # Another thread may end long before the process does, and would take the server with it.
        main = threading.current_thread() is threading.main_thread()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment.variables(),
            start_new_session=True,
            preexec_fn=following_parent(self._cpus) if main else None,  # noqa: PLW1509 - the only way to set PDEATHSIG before exec
        )

    def _wait_ready(self) -> None:
        until = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise EngineError("tritonserver", f"ended with status {self._process.returncode}: {self._first_error()}")
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                threading.Event().wait(_POLL_S)
        raise EngineError("tritonserver", f"not ready after {_READY_TIMEOUT_S:.0f} s: {self._first_error()}")

    def _first_error(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if line.startswith(("E", "error", "I")) and "rror" in line]
        return (errors or lines or ["no output"])[0][:300]


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _port(host: str, port: int, flag: str) -> int:
    """A port that can be bound now; Triton itself reports a taken one late and in its log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise BindError.in_use("Triton", host, port, flag) from exc
        chosen: int = probe.getsockname()[1]
        return chosen
