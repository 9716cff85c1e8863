"""System shared memory as Triton's extension has it: clients on the same machine name a region, and tensors stay out of the body.

Reference: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md. Transport-free; safe from several threads.

Regions are read and written with ``preadv`` and ``pwrite`` on the file under ``/dev/shm``, not mapped: a client that truncates its file while the
server reads would end a process that has it mapped (SIGBUS); so it gets an error. The price is one copy of a tensor at memory speed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol._tensors import Limits, array_from_raw, raw_from_array, shorten
from edgekit.protocol._types import Parameters, Tensor

__all__ = ["REGION", "RegionStatus", "SharedMemoryRegions", "is_shared"]

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
SIZE = "shared_memory_byte_size"
_FOLDER = "/dev/shm"  # noqa: S108 - where Linux keeps POSIX shared memory (shm_overview(7))
_MAX_REGIONS = 256  # each holds a file descriptor; of the usual 1,024 a server needs most for connections


class RegionStatus(msgspec.Struct):
    """One registered region, as the status endpoint answers it. Offset and size are bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Region:
    """A registered region. Its descriptor closes with the last one who uses it, so that it is never another file's meanwhile."""

    __slots__ = ("descriptor", "status")

    def __init__(self, status: RegionStatus, descriptor: int) -> None:
        self.status = status
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def is_shared(parameters: Mapping[str, Any]) -> bool:
    """Whether a tensor with these parameters lives in a region."""
    return bool(parameters) and REGION in parameters


class SharedMemoryRegions:
    """The regions that clients have registered with one server, all transports together.

    Args:
        limits: a tensor in a region may be as large as one in a body.
        folder: where keys are looked up.
    """

    def __init__(self, limits: Limits | None = None, folder: str = _FOLDER) -> None:
        self._limits = limits or Limits()
        self._folder = folder
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int, *, local: bool) -> None:
        """Make ``byte_size`` bytes at ``offset`` of the shared memory object ``key`` known as ``name``.

        Args:
            local: the client is on this machine (loopback or a unix socket). Others cannot share memory with it, and are refused.

        Raises:
            RequestError: a name that is taken, a key that is no shared memory object, a range outside of it, or too many regions.
        """
        thing = f"shared memory region {shorten(name)!r}"
        self.require_local(thing, local=local)
        if not name:
            raise RequestError(thing, "no name", "a name")
        if offset < 0 or byte_size <= 0:
            raise RequestError(thing, f"offset {offset}, byte_size {byte_size}", "an offset of 0 or more and a size above 0")
        descriptor = self._open(thing, key)
        region = _Region(RegionStatus(name, key, offset, byte_size), descriptor)
        size = os.fstat(descriptor).st_size
        if offset + byte_size > size:
            raise RequestError(thing, f"bytes {offset} to {offset + byte_size}", f"a range within the {size} bytes of {shorten(key)!r}")
        with self._lock:
            if name in self._regions:
                raise RequestError(thing, "registered already", "a new name", "unregister it first")
            if len(self._regions) >= _MAX_REGIONS:
                raise RequestError(thing, f"{len(self._regions)} regions are registered", f"at most {_MAX_REGIONS}", "unregister some")
            self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; requests under way that use it finish. An unknown name is no error, as in Triton."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def status(self, name: str = "") -> list[RegionStatus]:
        """All regions, or the one of that name.

        Raises:
            NotFoundError: no such region.
        """
        with self._lock:
            if not name:
                return [region.status for region in self._regions.values()]
        return [self._find(name).status]

    def read(self, thing: str, parameters: Mapping[str, Any], datatype: str, shape: Sequence[int]) -> np.ndarray:
        """An input tensor from the region that its ``parameters`` name: a copy.

        Raises:
            NotFoundError: no such region.
            RequestError: a range outside of the region, or bytes that are not a tensor of this datatype and shape.
        """
        region, start, size = self._range(thing, parameters)
        if size > self._limits.body_bytes:
            raise RequestError(thing, f"{size} bytes", f"at most {self._limits.body_bytes}")
        raw = np.empty(size, np.uint8)
        done = 0
        while done < size:
            count = os.preadv(region.descriptor, [raw.data[done:]], start + done)
            if count == 0:
                raise RequestError(thing, f"region {region.status.name!r} was made smaller than registered", f"{size} bytes")
            done += count
        return array_from_raw(thing, datatype, shape, raw.data, self._limits)

    def write(self, thing: str, parameters: Mapping[str, Any], tensor: Tensor) -> Parameters:
        """Put an output tensor into the region that ``parameters`` (of the requested output) name.

        Returns:
            the parameters of the tensor in the response, which carries no data for it.

        Raises:
            NotFoundError: no such region.
            RequestError: the tensor does not fit into the range that was given for it.
        """
        region, start, size = self._range(thing, parameters)
        raw = memoryview(raw_from_array(tensor.data))
        if len(raw) > size:
            raise RequestError(thing, f"{SIZE} {size}", f"at least the {len(raw)} bytes of the tensor", "register and name a larger range")
        if os.fstat(region.descriptor).st_size < start + len(raw):
            raise RequestError(thing, f"region {region.status.name!r} was made smaller than registered", f"{len(raw)} bytes")
        done = 0
        while done < len(raw):
            done += os.pwrite(region.descriptor, raw[done:], start + done)
        return {REGION: region.status.name, OFFSET: start - region.status.offset, SIZE: len(raw)}

    def require_local(self, thing: str, *, local: bool) -> None:
        """Raise `RequestError` for a client on another machine."""
        if not local:
            raise RequestError(thing, "asked for from another machine", "a client on this machine", "send the tensor itself")

    def close(self) -> None:
        """Forget all regions."""
        self.unregister()

    def _find(self, name: str) -> _Region:
        with self._lock:
            region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"shared memory region {shorten(name)!r}", "not registered", "a registered region", "register it first")
        return region

    def _range(self, thing: str, parameters: Mapping[str, Any]) -> tuple[_Region, int, int]:
        """Region, first byte in its file and number of bytes that ``parameters`` speak of."""
        name, offset, size = parameters.get(REGION), parameters.get(OFFSET, 0), parameters.get(SIZE)
        if not isinstance(name, str):
            raise RequestError(thing, f"{REGION} {shorten(str(name))!r}", "a region's name")
        for key, value in ((OFFSET, offset), (SIZE, size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RequestError(thing, f"{key} {shorten(str(value))!r}", "a whole number of bytes")
        assert isinstance(offset, int)
        assert isinstance(size, int)
        region = self._find(name)
        if offset + size > region.status.byte_size:
            raise RequestError(
                thing, f"bytes {offset} to {offset + size}", f"a range within the {region.status.byte_size} of region {shorten(name)!r}"
            )
        return region, region.status.offset + offset, size

    def _open(self, thing: str, key: str) -> int:
        """A descriptor of the object ``key``, which is a file right in the folder (POSIX writes keys with one leading slash)."""
        name = key.removeprefix("/")
        if not name or "/" in name or "\0" in name or name in {".", ".."}:
            raise RequestError(thing, f"key {shorten(key)!r}", "the name of a POSIX shared memory object, such as '/input'")
        try:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(f"{self._folder}/{name}", flags)
        except (OSError, ValueError) as exc:
            found = f"key {shorten(key)!r} cannot be opened ({getattr(exc, 'strerror', None) or exc})"
            raise RequestError(thing, found, "a shared memory object that this server's user may read and write") from exc
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RequestError(thing, f"key {shorten(key)!r} is no shared memory object", "the name of one")
        return descriptor
