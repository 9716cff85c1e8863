"""Answers that were computed before: keys, and what is kept in memory.

The key is BLAKE3 (a cryptographic hash: no client can make an input that gets another client's answer) of the bundle's digest, the outputs that are
asked for, and every input's name, dtype, shape and bytes. The digest names the version's content, so another version never meets its answers. Eviction is
S3-FIFO's (`edgekit.runtime._s3fifo`), bounded in bytes.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edgekit.bundle import TensorSpec
from edgekit.errors import EnvironmentMissingError, RequestError, UsageError
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime._s3fifo import ByteCache

__all__ = ["CACHE_PARAMETER", "CacheOptions", "MemoryResults", "Outputs", "decode_outputs", "encode_outputs", "own_outputs", "result_key"]

CACHE_PARAMETER = "edgekit_cache"  # of an answer that was not computed for its request: hit, shared (from Redis) or coalesced
_ENTRY_BYTES = 500  # key, entry, its places in a dictionary and a queue, and as a remembered key; see tests
_TENSOR_BYTES = 300  # the array object, its name's reference, the tuple around them
_BYPASS = ("sequence_id", "sequence_start", "sequence_end")  # the answer depends on requests before it

Outputs = tuple[tuple[str, np.ndarray], ...]


class CacheOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are kept.

    Attributes:
        max_bytes: in memory; 0 keeps none and turns the cache off.
        ttl_s: seconds after which an answer is computed again.
        redis: URL of a Redis server that several devices share; empty for none.
    """

    max_bytes: int = 0
    ttl_s: float = 1800.0
    redis: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.max_bytes < 0:
            raise UsageError("result cache", f"{self.max_bytes} bytes", "0 bytes or more")
        if not 0.0 < self.ttl_s < float("inf"):
            raise UsageError("result cache", f"a time to live of {self.ttl_s:g} s", "more than 0 seconds")
        if self.redis and not self.max_bytes:
            raise UsageError(
                "result cache", "a Redis server, and no bytes in memory", "a first level in memory", "give --result-cache SIZE"
            )


def result_key(digest: str, request: InferRequest) -> bytes | None:
    """The key of a request's answer, 32 bytes; ``None`` when the answer is not to be kept: a sequence, or the parameter ``cache`` is false."""
    from blake3 import blake3

    parameters = request.parameters
    if parameters and (any(name in parameters for name in _BYPASS) or parameters.get("cache") is False):
        return None
    inputs = sorted(request.inputs, key=lambda tensor: tensor.name)
    head = (digest, [output.name for output in request.outputs], [(one.name, one.data.dtype.str, one.data.shape) for one in inputs])
    encoded = msgspec.msgpack.encode(head)
    hashed = blake3(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in inputs:
        if tensor.data.dtype.hasobject:
            for item in tensor.data.ravel().tolist():
                raw = item.encode() if isinstance(item, str) else bytes(item)
                hashed.update(len(raw).to_bytes(8, "little") + raw)
        else:
            hashed.update(np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data)
    return hashed.digest()


def own_outputs(tensors: Sequence[Tensor]) -> Outputs:
    """Copies of an answer's arrays, read-only: an engine may write its next answer over them, and a view may hold a whole batch in memory."""
    kept = []
    for tensor in tensors:
        copy = tensor.data.copy()
        copy.flags.writeable = False
        kept.append((tensor.name, copy))
    return tuple(kept)


def outputs_bytes(outputs: Outputs) -> int:
    """What an answer takes in memory, about."""
    total = _ENTRY_BYTES
    for _, array in outputs:
        total += _TENSOR_BYTES + array.nbytes
        if array.dtype.hasobject:
            total += sum(len(item) + 64 for item in array.ravel().tolist())  # 64: a bytes or str object without its content
    return total


class MemoryResults:
    """The first level. Safe from several threads.

    Args:
        options: bytes and time to live.
        clock: monotonic seconds.

    Raises:
        EnvironmentMissingError: blake3 is not installed.
    """

    def __init__(self, options: CacheOptions, clock: Callable[[], float] = time.monotonic) -> None:
        if importlib.util.find_spec("blake3") is None:
            raise EnvironmentMissingError.for_extra("the result cache", "blake3", "cache")
        self._clock = clock
        self._ttl_s = options.ttl_s
        self._lock = threading.Lock()
        self._kept: ByteCache[bytes, Outputs] = ByteCache(options.max_bytes)

    @property
    def size_bytes(self) -> int:
        """What the entries take."""
        return self._kept.bytes_used

    def get(self, key: bytes) -> Outputs | None:
        """The answer; its arrays are read-only."""
        with self._lock:
            return self._kept.get(key, self._clock())

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Keep an answer whose arrays nobody writes any more. One that is larger than the whole cache is not kept."""
        size = outputs_bytes(outputs)
        with self._lock:
            now_s = self._clock()
            self._kept.put(key, outputs, size, now_s, now_s + self._ttl_s)


def encode_outputs(outputs: Outputs) -> bytes | None:
    """For other processes; ``None`` for what is not carried (text)."""
    if any(array.dtype.hasobject for _, array in outputs):
        return None
    return msgspec.msgpack.encode([(name, array.dtype.str, array.shape, array.tobytes()) for name, array in outputs])


_DECODER = msgspec.msgpack.Decoder(list[tuple[str, str, tuple[int, ...], bytes]])


def decode_outputs(raw: bytes, expected: Sequence[TensorSpec]) -> Outputs | None:
    """What `encode_outputs` gave for answers with these outputs, in this order; ``None`` for anything else. Read-only, over ``raw``."""
    try:
        found = [(name, np.frombuffer(data, np.dtype(dtype)).reshape(shape)) for name, dtype, shape, data in _DECODER.decode(raw)]
        for (name, array), spec in zip(found, expected, strict=True):
            if name != spec.name:
                return None
            spec.check(array)
    except (msgspec.DecodeError, RequestError, ValueError, TypeError):
        return None
    return tuple(found)
