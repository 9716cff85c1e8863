"""What every engine must do, the same tests for each that is installed here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import EngineError, EnvironmentMissingError, RequestError
from edgekit.runtime import EngineOptions, Session
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for
from edgekit.runtime.engines import Engine, open_engine

PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}
ENGINES = [
    "onnxruntime",
    "openvino",
    pytest.param("tflite", marks=pytest.mark.slow),  # its artifacts come out of TensorFlow, which takes seconds to import
]
Built = Callable[..., Bundle]


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


def test_run_after_close_is_told_so(engine: Engine, name: str, built: Built) -> None:
    inputs = built(name).golden()[0].inputs
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(inputs)


def test_threads_get_their_own_answers(engine: Engine) -> None:
    random = np.random.default_rng(7)
    requests = [{"image": random.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(24)]
    alone = [engine.run(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(engine.run, requests * 4))
    for index, answer in enumerate(together):
        for output, want in alone[index % len(requests)].items():
            np.testing.assert_array_equal(answer[output], want)


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


def test_says_what_really_runs(name: str, built: Built) -> None:
    engine = opened(built(name), EngineOptions(threads=1))
    facts = engine.describe()
    engine.close()
    assert facts["engine"] == name
    assert facts["version"][0].isdigit()
    assert facts["threads"] == "1"
    assert "CPU" in facts["device"]


def test_a_device_s_threads_are_capped_by_the_cpus_here(name: str, built: Built) -> None:
    bundle = built(name)
    changed = msgspec.structs.replace(bundle.manifest.artifact, options={"threads": "4096"})
    engine = open_engine(bundle.artifact_path(changed), changed, bundle.signature)
    threads = engine.threads()
    engine.close()
    assert 1 <= threads < 4096
