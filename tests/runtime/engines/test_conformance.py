"""What every engine must do, the same tests for each that is installed here."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import EngineError, EnvironmentMissingError, RequestError, UnknownNameError
from edgekit.runtime import EngineOptions, Session
from edgekit.runtime._bench import resident_bytes
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for
from edgekit.runtime.engines import Engine, engine_class, open_engine

PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}
TFLITE = pytest.param("tflite", marks=pytest.mark.slow)  # its artifacts come out of TensorFlow, which takes seconds to import
ENGINES = ["onnxruntime", "openvino", TFLITE]
WITH_NULL = pytest.mark.parametrize("name", [*ENGINES, "null"], indirect=True)
Built = Callable[..., Bundle]
Arrays = dict[str, np.ndarray]


def opened(bundle: Bundle, options: EngineOptions | None = None) -> Engine:
    artifact = bundle.manifest.artifact
    return open_engine(bundle.artifact_path(artifact), artifact, bundle.signature, options)


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(name: str, built: Built) -> Iterator[Engine]:
    engine = opened(built(name))
    yield engine
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "conv", "ids"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_like_the_source_model(name: str, model: str, precision: str, built: Built) -> None:
    bundle = built(name, model, precision)
    assert bundle.manifest.artifact.engine == name
    engine = opened(bundle)
    answers = [engine.run(sample.inputs) for sample in bundle.golden()]
    engine.close()
    for answer in answers:
        assert list(answer) == [spec.name for spec in bundle.signature.outputs]
        for spec in bundle.signature.outputs:
            assert answer[spec.name].dtype == np.dtype(spec.dtype)
            assert answer[spec.name].shape == spec.shape
    metrics = compare_outputs([sample.outputs for sample in bundle.golden()], answers, bundle.signature)
    assert check_metrics(metrics, thresholds_for(precision)) == []


WRONG = {
    "unknown name": (lambda good: {**good, "picture": good["image"]}, "no such input"),
    "missing": (lambda _: {}, "missing"),
    "dtype": (lambda good: {"image": good["image"].astype(np.float64)}, "dtype float64"),
    "rank": (lambda good: {"image": good["image"][0]}, "shape [3,16,16]"),
    "size": (lambda good: {"image": good["image"][:, :, :8]}, "shape [1,3,8,16]"),
    "layout": (lambda good: {"image": good["image"].transpose(0, 2, 3, 1)}, "axis order"),
    "a list": (lambda good: {"image": good["image"].tolist()}, "a list"),
    "not a mapping": (lambda good: good["image"], "mapping"),
}


@WITH_NULL
@pytest.mark.parametrize("case", WRONG)
def test_refuses_a_wrong_request_in_one_line(name: str, case: str, built: Built) -> None:
    bundle = built(name)
    change, expected = WRONG[case]
    with Session(bundle) as session:
        with pytest.raises(RequestError) as caught:
            session.run(change(dict(bundle.golden()[0].inputs)))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        session.run(bundle.golden()[0].inputs)  # and goes on working


@WITH_NULL
def test_run_after_close_is_told_so(engine: Engine, name: str, built: Built) -> None:
    inputs = built(name).golden()[0].inputs
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(inputs)


@WITH_NULL
def test_threads_get_their_own_answers(engine: Engine) -> None:
    random = np.random.default_rng(7)
    requests = [{"image": random.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(24)]
    alone = [engine.run(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(engine.run, requests * 4))
    for index, answer in enumerate(together):
        for output, want in alone[index % len(requests)].items():
            np.testing.assert_array_equal(answer[output], want)


@WITH_NULL
def test_close_while_others_run_neither_hangs_nor_crashes(engine: Engine, name: str, built: Built) -> None:
    inputs = built(name).golden()[0].inputs
    started = threading.Barrier(5)

    def until_closed() -> str:
        started.wait()
        try:
            while True:
                engine.run(inputs)
        except EngineError as exc:
            return str(exc)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(until_closed) for _ in range(4)]
        started.wait()
        engine.close()
        assert all("was closed" in each.result(timeout=30) for each in running)


@WITH_NULL
def test_inputs_are_only_read_and_need_no_special_memory(engine: Engine) -> None:
    plain = np.random.default_rng(8).standard_normal((1, 3, 16, 16)).astype(np.float32)
    want = engine.run({"image": plain})
    frozen = plain.copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    backwards = plain[:, ::-1].copy()[:, ::-1]
    for array in (frozen, strided, backwards):
        before = array.copy()
        answer = engine.run({"image": array})
        np.testing.assert_array_equal(array, before)
        for output, values in want.items():
            np.testing.assert_array_equal(answer[output], values)


@WITH_NULL
def test_outputs_belong_to_the_caller(engine: Engine) -> None:
    random = np.random.default_rng(9)
    first = engine.run({"image": random.standard_normal((1, 3, 16, 16)).astype(np.float32)})
    kept = {name: array.copy() for name, array in first.items()}
    engine.run({"image": random.standard_normal((1, 3, 16, 16)).astype(np.float32)})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert array.flags.writeable


def test_a_damaged_artifact_is_one_line(name: str, built: Built, tmp_path: object) -> None:
    bundle = built(name)
    artifact = bundle.manifest.artifact
    damaged = bundle.artifact_path(artifact).with_name("damaged" + bundle.artifact_path(artifact).suffix)
    damaged.write_bytes(b"this is no model")
    try:
        with pytest.raises(EngineError) as caught:
            open_engine(damaged, artifact, bundle.signature)
    finally:
        damaged.unlink()
    assert damaged.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(name: str, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = built(name)
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(EnvironmentMissingError, match=rf"edgekit-ml\[{name}\]"):
        opened(bundle)


@WITH_NULL
def test_an_accelerator_that_is_not_here_is_refused(name: str, built: Built) -> None:
    with pytest.raises(EngineError, match="'fpga'"):
        opened(built(name), EngineOptions(accelerator="fpga"))


def test_a_tensor_that_the_artifact_lacks_is_refused(name: str, built: Built) -> None:
    bundle = built(name)
    artifact = bundle.manifest.artifact
    wrong = msgspec.structs.replace(artifact.outputs[0], native_name="nothing")
    changed = msgspec.structs.replace(artifact, outputs=(wrong, *artifact.outputs[1:]))
    with pytest.raises(EngineError, match="'nothing'"):
        open_engine(bundle.artifact_path(artifact), changed, bundle.signature)


@WITH_NULL
def test_says_what_really_runs(name: str, built: Built) -> None:
    engine = opened(built(name), EngineOptions(threads=1))
    facts = engine.describe()
    engine.close()
    assert facts["engine"] == name
    assert facts["version"][0].isdigit()
    assert facts["threads"] == "1"
    assert facts["hint"] == "latency"
    assert facts["concurrent"] == ("yes" if engine.concurrent else "no")
    assert "CPU" in facts["device"]


@WITH_NULL
def test_a_device_s_threads_are_capped_by_the_cpus_here(name: str, built: Built) -> None:
    bundle = built(name)
    changed = msgspec.structs.replace(bundle.manifest.artifact, options={"threads": "4096"})
    engine = open_engine(bundle.artifact_path(changed), changed, bundle.signature)
    threads = engine.threads()
    engine.close()
    assert 1 <= threads < 4096


def pictures(count: int, seed: int = 11) -> list[Arrays]:
    random = np.random.default_rng(seed)
    return [{"image": random.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def assert_equal(answer: Arrays, want: Arrays) -> None:
    assert list(answer) == list(want)
    for output, values in want.items():
        np.testing.assert_array_equal(answer[output], values)


def like(answer: Arrays) -> Arrays:
    return {output: np.full_like(values, 77) for output, values in answer.items()}


@WITH_NULL
def test_a_batch_may_have_any_size(name: str, built: Built) -> None:
    engine = opened(built(name, "open"))
    rows = np.random.default_rng(12).standard_normal((7, 8)).astype(np.float32)
    alone = np.concatenate([engine.run({"x": rows[index : index + 1]})["probabilities"] for index in range(7)])
    for size in (7, 1, 3, 7, 2):
        answer = engine.run({"x": rows[:size]})["probabilities"]
        assert answer.shape == (size, 4)
        np.testing.assert_allclose(answer, alone[:size], rtol=1e-5, atol=1e-7)
    engine.close()


@WITH_NULL
def test_an_empty_batch_is_answered_or_refused_in_one_line(name: str, built: Built) -> None:
    with Session(built(name, "open")) as session:
        one = {"x": np.ones((1, 8), np.float32)}
        want = session.run(one)
        refusal = ""
        try:
            shape = session.run({"x": np.zeros((0, 8), np.float32)})["probabilities"].shape
        except EngineError as exc:
            refusal, shape = str(exc), (0, 4)
        assert shape == (0, 4)
        assert refusal.count("\n") == 0
        assert_equal(session.run(one), want)


@WITH_NULL
def test_big_tensors(name: str, built: Built) -> None:
    engine = opened(built(name, "open"))
    rows = np.random.default_rng(13).standard_normal((150_000, 8)).astype(np.float32)  # 4.8 MB in, 2.4 MB out
    whole = engine.run({"x": rows})["probabilities"]
    part = engine.run({"x": rows[-100:]})["probabilities"]
    np.testing.assert_allclose(whole[-100:], part, rtol=1e-5, atol=1e-7)
    mine = np.empty((150_000, 4), np.float32)  # large enough for ONNX Runtime to write to it directly
    assert engine.run({"x": rows}, {"probabilities": mine})["probabilities"] is mine
    np.testing.assert_array_equal(mine, whole)
    engine.close()


@WITH_NULL
def test_outputs_of_the_caller_get_the_same_numbers_and_are_kept_by_nobody(engine: Engine) -> None:
    first, second = pictures(2)
    want = engine.run(first)
    out = like(want)
    counts = {output: sys.getrefcount(array) for output, array in out.items()}
    answer = engine.run(first, out)
    assert all(answer[output] is out[output] for output in want)
    assert_equal(answer, want)
    del answer
    assert {output: sys.getrefcount(array) for output, array in out.items()} == counts
    engine.run(second)
    engine.run(second, like(want))
    assert_equal(out, want)


@WITH_NULL
def test_outputs_of_the_caller_may_be_few_and_of_any_memory_order(engine: Engine) -> None:
    (request,) = pictures(1)
    want = engine.run(request)
    few = {"features": np.full_like(want["features"], 77)}
    assert_equal(engine.run(request, few), want)
    np.testing.assert_array_equal(few["features"], want["features"])
    strided = np.full((1, 4, 8, 16), 77, np.float32)[..., ::2]
    channels_last = np.full((1, 8, 8, 4), 77, np.float32).transpose(0, 3, 1, 2)
    for array in (strided, channels_last):
        assert engine.run(request, {"features": array})["features"] is array
        np.testing.assert_array_equal(array, want["features"])


WRONG_OUT = {
    "unknown name": ({"nothing": np.zeros((1, 5), np.float32)}, "no such output"),
    "dtype": ({"scores": np.zeros((1, 5), np.float64)}, "dtype float64"),
    "shape": ({"scores": np.zeros((5,), np.float32)}, "shape [5]"),
    "a list": ({"scores": [0.0]}, "a list"),
    "not a mapping": ([1], "a list"),
    "read-only": ({"scores": np.broadcast_to(np.float32(0), (1, 5))}, "writable"),
}


@WITH_NULL
@pytest.mark.parametrize("case", WRONG_OUT)
def test_refuses_outputs_that_do_not_fit(engine: Engine, case: str) -> None:
    out, expected = WRONG_OUT[case]
    (request,) = pictures(1)
    with pytest.raises(RequestError) as caught:
        engine.run(request, out)  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    engine.run(request)


@WITH_NULL
def test_an_output_of_another_batch_is_refused(name: str, built: Built) -> None:
    engine = opened(built(name, "open"))
    with pytest.raises(RequestError, match=r"shape \[2,4\]"):
        engine.run({"x": np.zeros((3, 8), np.float32)}, {"probabilities": np.zeros((2, 4), np.float32)})
    assert engine.run({"x": np.zeros((3, 8), np.float32)})["probabilities"].shape == (3, 4)
    engine.close()


@WITH_NULL
@pytest.mark.parametrize("model", ["conv", "ids"])
def test_native_layout_there_and_back(name: str, model: str, built: Built) -> None:
    bundle = built(name, model)
    artifact, inputs = bundle.manifest.artifact, bundle.golden()[0].inputs
    with Session(bundle) as session:
        want = session.run(inputs)
        native = {
            binding.name: np.ascontiguousarray(inputs[binding.name].transpose(binding.perm)).astype(binding.native_dtype)
            if binding.perm is not None
            else inputs[binding.name].astype(binding.native_dtype)
            for binding in artifact.inputs
        }
        before = {input_name: array.copy() for input_name, array in native.items()}
        answer = session.run(native, native=True)
        out = like(answer)
        assert session.run(native, out, native=True).keys() == out.keys()
    assert_equal(native, before)
    assert_equal(out, answer)
    for binding, spec in zip(artifact.outputs, session.native_signature.outputs, strict=True):
        got = answer[binding.name]
        assert (got.dtype.name, got.shape) == (spec.dtype, spec.shape)
        logical = got if binding.perm is None else got.transpose(np.argsort(binding.perm))
        np.testing.assert_array_equal(logical.astype(want[binding.name].dtype), want[binding.name])


@pytest.mark.slow
def test_native_layout_is_checked_as_such(built: Built) -> None:
    with Session(built("tflite")) as session:
        (request,) = pictures(1)
        assert session.native_signature.inputs[0].shape == (1, 16, 16, 3)
        with pytest.raises(RequestError, match=r"shape \[1,3,16,16\]; expected float32\[1,16,16,3\]"):
            session.run(request, native=True)
        assert session.run({"image": np.zeros((1, 16, 16, 3), np.float32)}, native=True)["features"].shape == (1, 8, 8, 4)


@WITH_NULL
def test_threads_write_to_their_own_outputs(engine: Engine) -> None:
    requests = pictures(12)
    alone = [engine.run(request) for request in requests]

    def fill(index: int) -> Arrays:
        out = like(alone[index])
        engine.run(requests[index], out if index % 2 else None)
        return engine.run(requests[index], out)

    with ThreadPoolExecutor(6) as pool:
        for index, answer in enumerate(pool.map(fill, list(range(12)) * 3)):
            assert_equal(answer, alone[index % 12])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the system's threads")
@WITH_NULL
def test_on_one_thread_it_needs_no_other(name: str, built: Built) -> None:
    bundle = built(name)
    artifact, one = bundle.manifest.artifact, EngineOptions(threads=1)
    engine = engine_class(artifact.engine)
    assert engine.starts_threads(artifact, EngineOptions(threads=2))
    assert engine.starts_threads(artifact, EngineOptions(threads=1, accelerator="npu"))
    if engine.starts_threads(artifact, one):
        assert name == "openvino"  # it does, even then
        return
    before = {task.name for task in Path("/proc/self/task").iterdir()}
    loaded = opened(bundle, one)
    loaded.run(pictures(1)[0])
    assert {task.name for task in Path("/proc/self/task").iterdir()} <= before
    loaded.close()


ROUNDS, SETTLED = 30, 10
LEAK_BYTES_A_ROUND = 30_000
"""Resident growth a round that counts as a leak. Measured alone, with this graph: 110 kB (LiteRT) to 425 kB (OpenVINO) a round when sessions are not closed,
below 1 kB when they are; the rest of the bound is the allocator's noise in a process full of other tests."""


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Collections look at new objects only: the rest of a test process takes long to walk."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@WITH_NULL
@pytest.mark.usefixtures("frozen_heap")
def test_loading_and_unloading_leaks_nothing(name: str, built: Built) -> None:
    bundle = built(name)
    (request,) = pictures(1)
    sizes: list[int] = []
    descriptors: list[int] = []
    for _ in range(ROUNDS):
        engine = opened(bundle, EngineOptions(threads=1))
        engine.run(request)
        engine.run(request, like(engine.run(request)))
        engine.close()
        del engine
        gc.collect()
        sizes.append(resident_bytes())
        descriptors.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    slope = np.polyfit(range(ROUNDS - SETTLED), sizes[SETTLED:], 1)[0]
    assert slope < LEAK_BYTES_A_ROUND, f"{slope:.0f} bytes a round: {sizes}"
    assert descriptors[-1] == descriptors[SETTLED]


@pytest.fixture
def keeps_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT keeps what it makes of small files too."""
    from edgekit.runtime.engines import _tflite

    monkeypatch.setattr(_tflite, "KEPT_FROM_BYTES", 0)


@pytest.mark.usefixtures("keeps_small_files")
def test_what_is_made_of_a_model_is_kept(name: str, built: Built, tmp_path: Path) -> None:
    bundle = built(name)
    options = EngineOptions(threads=1, cache_dir=str(tmp_path / "cache"))
    (request,) = pictures(1)
    plain = opened(bundle, EngineOptions(threads=1))
    want = plain.run(request)
    assert plain.describe()["cache"] == "off"
    plain.close()
    for state in ("stored", "hit", "hit"):
        engine = opened(bundle, options)
        assert engine.describe()["cache"] == state
        answer = engine.run(request)
        engine.close()
        for output, values in want.items():
            np.testing.assert_allclose(answer[output], values, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("keeps_small_files")
@pytest.mark.parametrize("name", ["onnxruntime", TFLITE], indirect=True)  # OpenVINO looks after its own cache
def test_a_damaged_cache_is_made_again_and_a_missing_one_does_no_harm(
    name: str, built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = built(name)
    (request,) = pictures(1)
    options = EngineOptions(threads=1, cache_dir=str(tmp_path / "cache"))
    engine = opened(bundle, options)
    want = engine.run(request)
    engine.close()
    (kept,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "entry.json"]
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    for state in ("stored", "hit"):
        engine = opened(bundle, options)
        assert engine.describe()["cache"] == state
        assert_equal(engine.run(request), want)
        engine.close()
    assert "damaged, made again" in caplog.text
    (tmp_path / "file").write_bytes(b"")
    engine = opened(bundle, EngineOptions(threads=1, cache_dir=str(tmp_path / "file")))
    assert engine.describe()["cache"] == "off"
    assert_equal(engine.run(request), want)
    engine.close()
    assert "nothing is kept" in caplog.text


@WITH_NULL
def test_hints(name: str, built: Built) -> None:
    (request,) = pictures(1)
    alone = opened(built(name))
    engine = opened(built(name), EngineOptions(hint="throughput"))
    assert engine.describe()["hint"] == "throughput"
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(engine.run, [request] * 8):
            for output, values in alone.run(request).items():
                np.testing.assert_allclose(answer[output], values, rtol=1e-5, atol=1e-6)
    engine.close()
    alone.close()
    with pytest.raises(UnknownNameError, match="throughput"):
        opened(built(name), EngineOptions(hint="troughput"))
