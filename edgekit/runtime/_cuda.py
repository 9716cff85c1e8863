"""The part of the CUDA driver API that running an engine takes, by ctypes: memory, copies, one stream, graphs recorded from it.

``libcuda`` comes with every NVIDIA driver and with every JetPack, so no CUDA package for Python is needed. TensorRT works in the device's
primary context, which is the one retained here. Reference: CUDA Driver API, sections Device, Context, Memory, Stream and Graph Management.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import EngineError, EnvironmentMissingError

__all__ = ["Cuda", "CudaDevice", "DeviceBuffer", "HostBuffer"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUdevice_attribute of cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
# CUstreamCaptureMode of cuda.h: other threads' calls do not spoil the recording.
_CAPTURE_THREAD_LOCAL = 1


class CudaDevice(msgspec.Struct, frozen=True):
    """The GPU in use. ``cuda`` is the newest CUDA that the driver serves."""

    name: str
    compute_capability: str
    cuda: str


class Cuda:
    """Device 0 and its primary context.

    Args:
        load: opens the driver library by name; raises `OSError` when there is none.

    Raises:
        EnvironmentMissingError: no driver library, a driver that does not start, or no GPU.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        thing, step = "NVIDIA GPU", "run it on the device itself, with NVIDIA's driver or JetPack installed"
        try:
            self._api = load(_LIBRARY)
        except OSError as exc:
            raise EnvironmentMissingError(thing, f"the driver library {_LIBRARY} is not here", "", step) from exc
        if code := self._api.cuInit(0):
            raise EnvironmentMissingError(thing, f"the driver does not start (cuInit: error {code})", "", step)
        count = ctypes.c_int()
        if self._api.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
            raise EnvironmentMissingError(thing, "the driver sees no GPU", "at least one", step)
        self._ordinal = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._ordinal), 0)
        self.device = self._describe()
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._ordinal)
        self._stream = ctypes.c_void_p()
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """Handle of the stream that all copies and runs go through."""
        return int(self._stream.value or 0)

    def enter(self) -> None:
        """Make the context current in this thread; do it first in every call, which may come from any thread."""
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Free device memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.enter()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return int(free.value)

    def copy_in(self, target: DeviceBuffer, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the device; the array must live until `wait`."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target.address), source, ctypes.c_size_t(array.nbytes), self._stream)

    def copy_out(self, array: np.ndarray, source: DeviceBuffer) -> None:
        """Queue a copy into a contiguous array; its content is there after `wait`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(source.address), ctypes.c_size_t(array.nbytes), self._stream)

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self._call("cuStreamSynchronize", self._stream)

    def record(self, work: Callable[[], object]) -> int:
        """Record what ``work`` queues on the stream, without running it; `replay` runs it. Release it with `forget`.

        Raises:
            EngineError: something in ``work`` cannot be recorded. The stream is usable again.
        """
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            work()
        finally:
            # Ends a spoilt recording too, or the stream could not be used any more.
            code = self._api.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code:
            raise EngineError("CUDA", f"cuStreamEndCapture failed with error {code}", "", "run without graphs")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return int(ready.value or 0)

    def replay(self, graph: int) -> None:
        """Queue a recorded graph."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def forget(self, graph: int) -> None:
        """Release a recorded graph."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def allocate_host(self, size_bytes: int) -> int:
        """Address of page-locked host memory, 0 when the system gives none; `release_host` it."""
        address = ctypes.c_void_p()
        code = self._api.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)), 0)
        return 0 if code else int(address.value or 0)

    def release_host(self, address: int) -> None:
        """Give page-locked memory back."""
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def close(self) -> None:
        """Release the stream and the context."""
        if self._context.value is not None:
            self.enter()
            self._call("cuStreamDestroy_v2", self._stream)
            self._call("cuDevicePrimaryCtxRelease_v2", self._ordinal)
            self._context.value = None

    def allocate(self, size_bytes: int) -> int:
        """Device address of new memory; `release` it."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
        return int(address.value)

    def release(self, address: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def _describe(self) -> CudaDevice:
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), self._ordinal)
        numbers = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._ordinal)
            numbers.append(value.value)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))  # 12060 is 12.6
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return CudaDevice(name.value.decode("utf-8", "replace"), f"{numbers[0]}.{numbers[1]}", cuda)

    def _call(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._api, function)(*arguments):
            step = "close other processes that use the GPU" if code == 2 else "check the driver with nvidia-smi or dmesg"
            raise EngineError("CUDA", f"{function} failed with error {code}{' (out of memory)' if code == 2 else ''}", "", step)


class DeviceBuffer:
    """Device memory that grows when more is asked of it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._size_bytes = 0
        self.address = 0

    def reserve(self, size_bytes: int) -> int:
        """Address of at least this much memory; the content is lost when it moves."""
        if size_bytes > self._size_bytes or not self.address:
            self.release()
            self.address = self._cuda.allocate(size_bytes)
            self._size_bytes = size_bytes
        return self.address

    def release(self) -> None:
        """Give the memory back. May be called twice."""
        if self.address:
            self._cuda.release(self.address)
            self.address = self._size_bytes = 0


class HostBuffer:
    """Host memory that copies to and from the device go through; page-locked, so that they need no copy of the driver's, where the system gives that."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._size_bytes = 0
        self._address = 0
        self._plain = np.empty(0, np.uint8)
        self.pinned = False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The memory as an array, C-ordered; an earlier array of this buffer must not be used any more."""
        count = int(np.prod(shape, dtype=np.int64))
        size_bytes = count * dtype.itemsize
        if size_bytes > self._size_bytes or not self._size_bytes:
            self.release()
            self._size_bytes = max(size_bytes, 1)
            self._address = self._cuda.allocate_host(self._size_bytes)
            self.pinned = bool(self._address)
            if not self.pinned:
                self._plain = np.empty(self._size_bytes, np.uint8)
        memory: Any = (ctypes.c_char * self._size_bytes).from_address(self._address) if self.pinned else self._plain
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def release(self) -> None:
        """Give the memory back. May be called twice."""
        if self._address:
            self._cuda.release_host(self._address)
        self._address = self._size_bytes = 0
        self._plain = np.empty(0, np.uint8)
