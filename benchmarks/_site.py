"""A real site: an edge server on a core of its own, a real Triton behind a network with faults, the router between them.

All are processes that the command line starts, as an operator would; the cloud, the router and the load share what cores are left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from edgekit.bundle import Bundle
from edgekit.cli.demo._ocr import LINE_SHAPE
from edgekit.cli.demo._stage import Child, Contention, cores, start
from edgekit.cloud.triton import TritonServer, write_repository
from edgekit.converters import build
from edgekit.protocol import connect
from edgekit.router.faults import Direction, FaultProxy, Faults

__all__ = ["ONE_WAY_S", "WELL", "Ran", "Site", "recogniser"]

ONE_WAY_S = 0.010  # a round trip of 20 ms, as from a wired site to a nearby region
WELL = Faults.both(Direction(delay_s=ONE_WAY_S))


class Ran(NamedTuple):
    """How often a server ran its model so far, and for how long in all."""

    runs: int
    seconds: float


def recogniser(folder: Path) -> tuple[Bundle, np.ndarray]:
    """PP-OCR's text recogniser for one line of 48 x 320 pixels, built for this machine, and a request for it."""
    from examples.models import fetch

    bundle = build(fetch("ppocr-rec"), device="generic-x86", name="ppocr-rec", shapes={"x": LINE_SHAPE}, output=folder / "rec.edgekit")
    return bundle, np.random.default_rng(0).standard_normal(LINE_SHAPE).astype(np.float32)


class Site:
    """Edge server and cloud, up until the block ends.

    Args:
        bundle: the model of both.
        folder: for Triton's repository.

    Attributes:
        edge_url: the device, asked directly.
        cloud_url: the cloud over the network.
        network: changes what is wrong with it.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._ends = contextlib.ExitStack()
        self.model = bundle.manifest.name
        self._device, self._rest = cores()
        try:
            write_repository([bundle.path], folder / "triton", "cpu")
            triton = self._ends.enter_context(TritonServer(folder / "triton", cpus=self._rest))
            self._triton_url = triton.url
            self._sharing = [triton.pid]
            self.network = self._ends.enter_context(FaultProxy(triton.http_port, WELL))
            self.cloud_url = f"http://127.0.0.1:{self.network.port}"
            edge = self._child(["serve", str(bundle.path)], self._device)
            self.edge_url = f"http://127.0.0.1:{edge.announced['http']}"
            os.sched_setaffinity(0, self._rest)  # the load is not the device's
            self._ends.callback(os.sched_setaffinity, 0, self._device | self._rest)
        except BaseException:
            self._ends.close()
            raise

    @contextlib.contextmanager
    def router(self, sla_ms: float) -> Iterator[str]:
        """The URL of a fresh router."""
        tiers = ["--edge", self.edge_url, "--cloud", self.cloud_url]
        child = start(["route", *tiers, "--sla-ms", f"{sla_ms:g}", "--http", "127.0.0.1:0", "--grpc", "off"], self._rest)
        self._sharing.append(child.pid)
        try:
            yield f"http://127.0.0.1:{child.announced['http']}"
        finally:
            self._sharing.remove(child.pid)
            child.close()

    def waited_s(self) -> float:
        """How long the threads of the cloud, and of the router while there is one, have waited so far for the core that they share, by the kernel's account."""
        return sum(_waited_s(pid) for pid in self._sharing)

    def ran(self) -> tuple[Ran, Ran]:
        """Device and cloud, by their own statistics; asked directly, past the network's faults."""
        return self._ran(self.edge_url), self._ran(self._triton_url)

    def _ran(self, url: str) -> Ran:
        with contextlib.closing(connect(url)) as client:
            steps = client.statistics(self.model)[0]["inference_stats"]["compute_infer"]
        return Ran(steps["count"], steps["ns"] / 1e9)

    def contention(self, processes: int) -> Contention:
        """Other work on the device's core, not begun yet."""
        work = Contention(processes, self._device)
        self._ends.callback(work.close)
        return work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ends.close()

    def _child(self, arguments: list[str], cpus: set[int]) -> Child:
        child = start([*arguments, "--http", "127.0.0.1:0", "--grpc", "off"], cpus)
        self._ends.callback(child.close)
        return child


def _waited_s(pid: int) -> float:
    """Of a process's present threads: the second field of schedstat, nanoseconds (Linux, Documentation/scheduler/sched-stats.rst)."""
    total_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            total_ns += int(path.read_text("ascii").split()[1])
    return total_ns / 1e9
