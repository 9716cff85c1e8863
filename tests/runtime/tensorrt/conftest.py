"""A simulated TensorRT and a driver whose device memory is host memory; nothing here says anything about a GPU."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SIMULATOR = Path(__file__).parent / "simulator"


class HostDriver:
    """The driver functions that `Cuda` calls. Counts what is allocated."""

    def __init__(self, name: str = "", devices: int = 1, free_bytes: int = 8 * 2**30) -> None:
        self.devices = devices
        self.free = free_bytes
        self.memory: dict[int, Any] = {}

    def __getattr__(self, function: str) -> Callable[..., int]:
        return lambda *_: 0  # contexts and streams have no state here

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"Simulated Orin"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDriverGetVersion(self, value):
        value._obj.value = 12060
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = self.free, 2 * self.free
        return 0

    def cuMemAlloc_v2(self, address, size):
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.memory[address._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, address):
        return 0 if self.memory.pop(address.value, None) is not None else 1

    def cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        ctypes.memmove(target.value, source.value, size.value)
        return 0


@pytest.fixture
def driver() -> HostDriver:
    return HostDriver()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, driver: HostDriver) -> Iterator[Callable[..., Any]]:
    """``simulated("8.5", **trouble)`` installs that TensorRT and the host driver for this test, child processes included."""
    from edgekit.runtime import _cuda
    from edgekit.runtime.engines import _tensorrt

    def install(generation: str, **trouble: Any) -> Any:
        monkeypatch.setenv("SIMULATED_TENSORRT", generation)
        monkeypatch.setenv("SIMULATED_TENSORRT_TROUBLE", json.dumps(trouble))
        monkeypatch.setenv("PYTHONPATH", str(SIMULATOR))
        monkeypatch.syspath_prepend(str(SIMULATOR))
        monkeypatch.setattr(_tensorrt, "Cuda", lambda: _cuda.Cuda(lambda _: driver))
        sys.modules.pop("tensorrt", None)
        return importlib.import_module("tensorrt")

    yield install
    sys.modules.pop("tensorrt", None)


@pytest.fixture(scope="session")
def jetson_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_conv: Path) -> Path:
    """A real fp16 bundle for a Jetson, as `build` makes it."""
    from edgekit.converters import build

    return build(tiny_conv, device="jetson-orin", precision="fp16", output=tmp_path_factory.mktemp("jetson") / "bundle").path
