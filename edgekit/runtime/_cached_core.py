"""A core that remembers: equal requests to the same content are answered from memory, or wait for the one that is computed already."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgekit.bundle import TensorSpec
from edgekit.errors import DeadlineError, EdgeKitError, OverloadedError
from edgekit.protocol import (
    InferRequest,
    InferResponse,
    SteppingCore,
    Tensor,
    Ticket,
)
from edgekit.runtime._core import ResultObserver
from edgekit.runtime._delegating import DelegatingCore
from edgekit.runtime._job import Done
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._result_cache import (
    CACHE_PARAMETER,
    CacheOptions,
    MemoryResults,
    Outputs,
    decode_outputs,
    encode_outputs,
    own_outputs,
    result_key,
)
from edgekit.runtime._result_redis import RedisResults
from edgekit.telemetry import Meter

__all__ = ["CachedCore"]

_log = logging.getLogger(__name__)
_ENGINE = "cache"  # what the observer hears as the engine
_REDIS_THREADS = 4


class CacheCounts:
    """Hits and misses of one model version, with their seconds. Changed under the core's lock."""

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.hit_s = self.miss_s = 0.0


class _Follower:
    """A request that waits for an equal one."""

    __slots__ = ("cancelled", "done", "request", "started_s")

    def __init__(self, request: InferRequest, done: Done, started_s: float) -> None:
        self.request = request
        self.done = done
        self.started_s = started_s
        self.cancelled = False

    def cancel(self) -> None:
        """See `Ticket.cancel`."""
        self.cancelled = True


class _Leader:
    """A request that is computed, and those that wait for it."""

    __slots__ = ("_core", "cancelled", "followers", "key", "model", "request", "started_s", "ticket")

    def __init__(self, core: CachedCore, key: bytes, model: LoadedModel, request: InferRequest, started_s: float) -> None:
        self._core = core
        self.key = key
        self.model = model
        self.request = request
        self.started_s = started_s
        self.followers: list[_Follower] = []
        self.ticket: Ticket | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """See `Ticket.cancel`. The computation goes on when others wait for it."""
        self._core._cancel(self)


class CachedCore(DelegatingCore):
    """A `SteppingCore` over another.

    Args:
        core: what computes; closed by whoever made it.
        repository: the same that ``core`` has.
        options: with some bytes.
        on_result: told about answers that were not computed, with the engine ``cache``; the core tells about the others.
        meter: counts look-ups in ``edgekit.cache.lookups`` (by model, version, tier and ``edgekit.cache.result``: hit, shared, coalesced, miss), and shows
            ``edgekit.cache.bytes``.

    Raises:
        EnvironmentMissingError: a package of the extra is not installed.
        UsageError: the URL of the Redis server is none.
    """

    def __init__(
        self,
        core: SteppingCore,
        repository: ModelRepository,
        options: CacheOptions,
        on_result: ResultObserver | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(core)
        self._repository = repository
        self._memory = MemoryResults(options)
        self._redis = RedisResults(options.redis, options.ttl_s) if options.redis else None
        self._pool = ThreadPoolExecutor(_REDIS_THREADS if self._redis else 1, thread_name_prefix="edgekit-cache")
        self._on_result = on_result
        self._lookups = meter.counter("edgekit.cache.lookups", "1") if meter is not None else None
        self._size = meter.gauge("edgekit.cache.bytes", "By") if meter is not None else None
        self._lock = threading.Lock()
        self._leaders: dict[bytes, _Leader] = {}
        self._counts: dict[tuple[str, str], CacheCounts] = {}

    # Requests

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        """See `SubmittingCore.submit`."""
        started_s = time.monotonic()
        try:
            model = self._repository.get(request.model_name, request.model_version)
            key = result_key(model.bundle.digest, request)
        except (EdgeKitError, ValueError, TypeError):
            return self._core.submit(request, done)  # which says what is wrong
        if key is None:
            return self._core.submit(request, done)
        if (found := self._memory.get(key)) is not None:
            answered = _Follower(request, done, started_s)
            self._answer(answered, model, found, "hit")
            return answered
        with self._lock:
            leader = self._leaders.get(key)
            if leader is not None and _may_wait(request, leader.request):
                follower = _Follower(request, done, started_s)
                leader.followers.append(follower)
                return follower
            leads = leader is None
            leader = _Leader(self, key, model, request, started_s)
            if leads:
                self._leaders[key] = leader
        if self._redis is None or not self._redis.available or not self._later(self._look_up, leader, done):
            self._compute(leader, done)
        return leader

    def infer(self, request: InferRequest) -> InferResponse:
        """See `InferenceCore.infer`."""
        return self._submit_and_wait(request)

    def _look_up(self, leader: _Leader, done: Done) -> None:
        """In a thread of the pool: ask Redis, then compute."""
        assert self._redis is not None
        raw = self._redis.get(leader.key)
        outputs = decode_outputs(raw, _asked(leader.model, leader.request)) if raw is not None else None
        if outputs is None:
            if leader.cancelled and not leader.followers:
                self._leave(leader)
                return
            self._compute(leader, done)
            self._core.turn()
            return
        self._memory.put(leader.key, outputs)
        followers = self._leave(leader)
        for waiting in (_Follower(leader.request, done, leader.started_s), *followers):
            self._answer(waiting, leader.model, outputs, "shared")

    def _compute(self, leader: _Leader, done: Done) -> None:
        leader.ticket = self._core.submit(leader.request, lambda answer: self._computed(leader, done, answer))

    def _computed(self, leader: _Leader, done: Done, answer: InferResponse | Exception) -> None:
        outputs: Outputs | None = None
        version = ""
        if isinstance(answer, InferResponse):
            version = answer.model_version
            outputs = own_outputs(answer.outputs)
            if self._still(leader.model, answer):
                self._memory.put(leader.key, outputs)
                if self._redis is not None and (encoded := encode_outputs(outputs)) is not None:
                    self._later(self._redis.put, leader.key, encoded)
        followers = self._leave(leader)
        self._count(leader.model, "miss", time.monotonic() - leader.started_s)
        if not leader.cancelled:
            done(answer)
        for follower in followers:
            if outputs is not None:
                self._answer(follower, leader.model, outputs, "coalesced", version)
            elif isinstance(answer, (DeadlineError, OverloadedError)):
                # That the first had too little time says nothing about the others. Not from within the core's own turn.
                if not self._later(self._again, follower):
                    follower.done(answer)
            elif not follower.cancelled:
                follower.done(answer)

    def _later(self, work: Callable[..., object], *arguments: object) -> bool:
        """Do something in a thread of the pool; false when that has ended, since the server stops."""
        try:
            self._pool.submit(work, *arguments)
        except RuntimeError:
            return False
        return True

    def _again(self, follower: _Follower) -> None:
        if not follower.cancelled:
            self.submit(follower.request, follower.done)
            self.turn()

    def _answer(self, waiting: _Follower, model: LoadedModel, outputs: Outputs, how: str, version: str = "") -> None:
        """Give a request an answer that was not computed for it."""
        request = waiting.request
        now_s = time.monotonic()
        late_s = 0.0 if request.deadline_s is None else now_s - request.deadline_s
        self._count(model, how, now_s - waiting.started_s, "late" if late_s > 0 else "ok")
        if waiting.cancelled:
            return
        if late_s > 0:
            waiting.done(
                DeadlineError(f"model {model.name}", f"the answer came {late_s * 1e3:.1f} ms after the deadline", "", "allow more time")
            )
            return
        tensors = [Tensor(name, array) for name, array in outputs]
        waiting.done(InferResponse(model.name, version or model.version, tensors, request.id, {CACHE_PARAMETER: how}))

    def _still(self, model: LoadedModel, answer: InferResponse) -> bool:
        """The answer is this content's: its version answered, and was not replaced since the key was made (a closed model never comes back)."""
        try:
            return answer.model_version == model.version and self._repository.get(model.name, model.version) is model
        except EdgeKitError:
            return False

    def _leave(self, leader: _Leader) -> list[_Follower]:
        with self._lock:
            if self._leaders.get(leader.key) is leader:
                del self._leaders[leader.key]
            followers, leader.followers = leader.followers, []
            return followers

    def _cancel(self, leader: _Leader) -> None:
        with self._lock:
            leader.cancelled = True
            if any(not follower.cancelled for follower in leader.followers):
                return
            if self._leaders.get(leader.key) is leader:
                del self._leaders[leader.key]  # so that nobody begins to wait for what may never come
        if leader.ticket is not None:
            leader.ticket.cancel()

    def _count(self, model: LoadedModel, how: str, seconds: float, outcome: str = "ok") -> None:
        with self._lock:
            counts = self._counts.setdefault((model.name, model.version), CacheCounts())
            if how == "miss":
                counts.misses += 1
                counts.miss_s += seconds
            else:
                counts.hits += 1
                counts.hit_s += seconds
        if self._lookups is not None and self._size is not None:
            tier = {"edgekit.model": model.name, "edgekit.model.version": model.version, "edgekit.tier": "edge"}
            self._lookups.add(1, {**tier, "edgekit.cache.result": how})
            self._size.set(self._memory.size_bytes)
        if how != "miss" and self._on_result is not None:
            try:
                self._on_result(model.name, model.version, _ENGINE, 0.0, seconds, outcome)
            except Exception:  # noqa: BLE001 - telemetry must not cost an answer
                _log.exception("the result observer failed")

    # Everything else

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        return self._core.model_config(name, version) | {"response_cache": {"enable": True}}

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """The core's, with Triton's ``cache_hit`` and ``cache_miss``. Hits are successes and inferences, and no executions."""
        rows = self._core.statistics(name, version)
        for row in rows:
            with self._lock:
                counts = self._counts.get((row["name"], row["version"]), CacheCounts())
                hits, misses = (counts.hits, round(counts.hit_s * 1e9)), (counts.misses, round(counts.miss_s * 1e9))
            stats = row["inference_stats"]
            stats["cache_hit"], stats["cache_miss"] = ({"count": count, "ns": ns} for count, ns in (hits, misses))
            stats["success"] = {"count": stats["success"]["count"] + hits[0], "ns": stats["success"]["ns"] + hits[1]}
            row["inference_count"] += hits[0]
        return rows

    def close(self) -> None:
        """End the threads and the connections to Redis."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._redis is not None:
            self._redis.close()


def _asked(model: LoadedModel, request: InferRequest) -> list[TensorSpec]:
    """The outputs of the answer, in its order."""
    by_name = {spec.name: spec for spec in model.signature.outputs}
    return [by_name[output.name] for output in request.outputs if output.name in by_name] if request.outputs else list(by_name.values())


def _may_wait(request: InferRequest, leader: InferRequest) -> bool:
    """The leader is done, one way or another, before this request must be."""
    return request.deadline_s is None or (leader.deadline_s is not None and leader.deadline_s <= request.deadline_s)
