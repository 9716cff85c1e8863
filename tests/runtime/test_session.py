from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle, write_bundle
from edgekit.errors import BundleError, EngineError, IntegrityError, RequestError, UnknownNameError
from edgekit.runtime import Session, load, verify_bundle

Built = Callable[..., Bundle]


@pytest.fixture
def two_artifacts(built: Built, tmp_path: Path) -> Callable[[bytes, bool], Bundle]:
    """A bundle whose first artifact is ``content`` for OpenVINO, with the good ONNX file as fallback or without one."""
    good = built("onnxruntime", "mlp")

    def make(content: bytes, fallback: bool) -> Bundle:
        folder = tmp_path / "artifacts"
        folder.mkdir()
        (folder / "first.onnx").write_bytes(content)
        (folder / "model.onnx").write_bytes(good.artifact_path(good.manifest.artifact).read_bytes())
        artifact = good.manifest.artifact
        manifest = msgspec.structs.replace(
            good.manifest,
            artifact=msgspec.structs.replace(artifact, engine="openvino", path="first.onnx"),
            fallback=artifact if fallback else None,
        )
        return write_bundle(tmp_path / "two", manifest, folder, good.golden(), {})

    return make


def test_runs_on_the_fallback_and_says_so(two_artifacts: Callable[..., Bundle], caplog: pytest.LogCaptureFixture) -> None:
    bundle = two_artifacts(b"no model", True)
    with caplog.at_level(logging.WARNING), load(bundle) as session:
        assert session.artifact == bundle.manifest.fallback
        assert "first.onnx" in session.fallback_reason
        assert session.describe()["artifact"] == "fallback"
        assert session.describe()["fallback_reason"] == session.fallback_reason
        assert session.describe()["engine"] == "onnxruntime"
        answer = session.run(bundle.golden()[0].inputs)
    np.testing.assert_allclose(answer["probabilities"], bundle.golden()[0].outputs["probabilities"], rtol=1e-5)
    assert "runs on onnxruntime instead of openvino" in caplog.text
    result = verify_bundle(bundle.path)
    assert (result.ok, result.artifact) == (True, "fallback")
    assert result.fallback_reason


def test_without_a_fallback_the_first_artifact_s_error_comes_through(two_artifacts: Callable[..., Bundle]) -> None:
    with pytest.raises(EngineError, match=r"first\.onnx"):
        load(two_artifacts(b"no model", False))


def test_an_artifact_that_loads_needs_no_fallback(two_artifacts: Callable[..., Bundle], built: Built) -> None:
    good = built("onnxruntime", "mlp")
    bundle = two_artifacts(good.artifact_path(good.manifest.artifact).read_bytes(), True)
    with load(bundle) as session:
        assert session.fallback_reason == ""
        assert session.describe()["artifact"] == "primary"
        assert session.describe()["engine"] == "openvino"


def test_loads_from_a_path_an_archive_and_an_opened_bundle(built: Built, tmp_path: Path) -> None:
    bundle = built("onnxruntime", "mlp")
    archive = tmp_path / "one.edgekit"
    write_bundle(archive, bundle.manifest, _artifacts(bundle, tmp_path), bundle.golden(), bundle.report())
    sample = bundle.golden()[0]
    for source in (str(bundle.path), bundle.path, archive, bundle):
        with load(source, threads=1) as session:
            np.testing.assert_allclose(session.run(sample.inputs)["probabilities"], sample.outputs["probabilities"], rtol=1e-5)
            assert session.describe()["threads"] == "1"


def _artifacts(bundle: Bundle, folder: Path) -> Path:
    copied = folder / "files"
    copied.mkdir()
    path = bundle.manifest.artifact.path
    (copied / path).write_bytes((bundle.directory / path).read_bytes())
    return copied


def test_an_unknown_option_gets_the_nearest_name(built: Built) -> None:
    with pytest.raises(UnknownNameError, match="threads"):
        load(built("onnxruntime", "mlp"), thread=2)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        load(tmp_path / "nothing.edgekit")


def test_the_async_twin_gives_the_same_answer(built: Built) -> None:
    bundle = built("onnxruntime", "mlp")
    requests = [{"x": np.full((1, 8), value, np.float32)} for value in range(6)]
    with Session(bundle) as session:

        async def all_at_once() -> list[dict[str, np.ndarray]]:
            return await asyncio.gather(*(session.arun(request) for request in requests))

        together = asyncio.run(all_at_once())
        for request, answer in zip(requests, together, strict=True):
            np.testing.assert_array_equal(answer["probabilities"], session.run(request)["probabilities"])
        with pytest.raises(RequestError):
            asyncio.run(session.arun({}))


def test_a_closed_session_says_so(built: Built) -> None:
    bundle = built("onnxruntime", "mlp")
    with Session(bundle) as session:
        pass
    session.close()
    with pytest.raises(EngineError, match="was closed"):
        session.run(bundle.golden()[0].inputs)


def test_a_symbolic_batch_stays_open_and_is_checked(tiny_mlp: Path, tmp_path: Path) -> None:
    from edgekit.converters import build

    bundle = build(tiny_mlp, device="generic-x86", output=tmp_path / "dynamic")
    assert bundle.signature.inputs[0].shape == ("N", 8)
    batch = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    with load(bundle) as session:
        rows = [session.run({"x": batch[index : index + 1]})["probabilities"][0] for index in range(5)]
        np.testing.assert_allclose(session.run({"x": batch})["probabilities"], rows, rtol=1e-5)
        with pytest.raises(RequestError, match="shape"):
            session.run({"x": batch[:, :7]})


def test_verify_passes_a_good_bundle(built: Built) -> None:
    bundle = built("openvino", "conv")
    result = verify_bundle(bundle.path)
    assert (result.ok, result.artifact, result.misses, result.samples) == (True, "primary", (), len(bundle.golden()))
    assert result.digest == bundle.digest
    assert set(result.metrics) == {"features", "scores"}
    assert result.thresholds == bundle.manifest.verification.thresholds


def test_verify_finds_an_artifact_that_answers_wrong(built: Built, tmp_path: Path) -> None:
    import onnx

    bundle = built("onnxruntime", "mlp")
    folder = _artifacts(bundle, tmp_path)
    model = onnx.load(folder / "model.onnx")
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(model, folder / "model.onnx")
    changed = write_bundle(tmp_path / "wrong", bundle.manifest, folder, bundle.golden(), {})
    result = verify_bundle(changed.path)
    assert not result.ok
    assert "output 'probabilities'" in result.misses[0]


def test_verify_refuses_a_changed_file(built: Built, tmp_path: Path) -> None:
    bundle = built("onnxruntime", "mlp")
    copy = write_bundle(tmp_path / "copy", bundle.manifest, _artifacts(bundle, tmp_path), bundle.golden(), {})
    with open(copy.directory / "model.onnx", "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        verify_bundle(copy.path)


def test_no_inputs_at_all_is_the_requests_fault_also_with_symbolic_shapes(tiny_mlp: Path, tmp_path: Path) -> None:
    from edgekit.converters import build

    with load(build(tiny_mlp, device="generic-x86", output=tmp_path / "mlp")) as session, pytest.raises(RequestError, match="missing"):
        session.run({})
