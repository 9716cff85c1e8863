"""Reader of ``weight.bin``, from the documented storage format (coremltools ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``, version 2).

The file is little-endian::

    0    u32 count of blobs, u32 version (2), 56 bytes reserved
    at each offset that the program names, 64-byte aligned:
         u32 sentinel 0xDEADBEEF, u32 data type, u64 size in bytes, u64 offset of the data, u64 unused bits in the last byte, 32 bytes reserved
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from edgekit._storage_errors import storage_errors
from edgekit.errors import BundleError

__all__ = ["BLOB_TYPES", "Blob", "BlobFile"]

_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_ALIGNMENT_BYTES = 64
_REBUILD = "the weights are damaged or belong to another model; build the package again"

# Blob data type (the storage's own enumeration) to the name of the MIL data type.
BLOB_TYPES = {
    1: "FLOAT16",
    2: "FLOAT32",
    3: "UINT8",
    4: "INT8",
    6: "INT16",
    7: "UINT16",
    8: "INT4",
    9: "UINT1",
    10: "UINT2",
    11: "UINT4",
    12: "UINT3",
    13: "UINT6",
    14: "INT32",
    15: "UINT32",
}


@dataclass(frozen=True)
class Blob:
    """One record: the MIL data type's name and the packed little-endian bytes."""

    type_name: str
    data: memoryview


class BlobFile:
    """A weights file, read whole once and checked at every access.

    Raises:
        BundleError: the file is shorter than its header says, or of another version.
        StorageError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise BundleError(str(path), "no such file", "the weights that the program names", _REBUILD)
        with storage_errors(path):
            self._data = memoryview(path.read_bytes())
        if len(self._data) < _HEADER.size:
            raise BundleError(str(path), f"{len(self._data)} bytes", f"a header of {_HEADER.size} bytes", _REBUILD)
        self.count, version = _HEADER.unpack_from(self._data)
        if version != _VERSION:
            raise BundleError(str(path), f"storage version {version}", f"version {_VERSION}", _REBUILD)

    def read(self, offset: int) -> Blob:
        """The record whose metadata starts at ``offset``."""
        thing = f"{self.path} at {offset}"
        if offset % _ALIGNMENT_BYTES or not _HEADER.size <= offset <= len(self._data) - _METADATA.size:
            raise BundleError(thing, f"outside the file's {len(self._data)} bytes or not aligned", "a blob's metadata", _REBUILD)
        sentinel, kind, size_bytes, start, padding_bits = _METADATA.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise BundleError(thing, f"sentinel {sentinel:#010x}", f"{_SENTINEL:#010x}", _REBUILD)
        if kind not in BLOB_TYPES:
            raise BundleError(thing, f"blob data type {kind}", f"one of {sorted(BLOB_TYPES)}", _REBUILD)
        if start % _ALIGNMENT_BYTES or start + size_bytes > len(self._data) or padding_bits > 7:
            raise BundleError(thing, f"{size_bytes} bytes at {start} in a file of {len(self._data)}", "data inside the file", _REBUILD)
        return Blob(BLOB_TYPES[kind], self._data[start : start + size_bytes])
