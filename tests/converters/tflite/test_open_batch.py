"""Files with an open batch: right at every batch, and refused where the graph depends on its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekit.converters import build
from edgekit.converters._open_sizes import at_sizes, open_symbols
from edgekit.converters._source import load_source
from edgekit.errors import EngineError, UsageError
from edgekit.runtime import load
from tests.converters.open_batch_models import CASES
from tests.converters.open_size_models import node, saved

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(77)


@pytest.mark.parametrize(("make", "tail"), CASES.values(), ids=CASES)
def test_every_batch_is_right(make: Callable[[Path], Path], tail: tuple[int, ...], tmp_path):
    path = make(tmp_path / "net.onnx")
    reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bundle = build(path, device="raspberry-pi-5", precision="fp32", shapes={"x": (-1, *tail)}, output=tmp_path / "bundle", isolate=False)
    assert isinstance(bundle.manifest.signature.inputs[0].shape[0], str)
    assert any("proven at 1, 2, 5" in note for note in bundle.manifest.verification.notes)
    with load(bundle.path) as session:
        for batch in (1, 2, 5, 3, 1):
            x = RANDOM.standard_normal((batch, *tail)).astype(np.float32)
            (want,) = reference.run(None, {"x": x})
            (got,) = session.run({"x": x}).values()
            assert got.shape == want.shape
            assert np.allclose(got, want, atol=1e-5)


def build_open(path: Path, shape: tuple[int, ...], **more: Any) -> None:
    build(path, device="raspberry-pi-5", shapes={"x": shape}, output=path.parent / "bundle", isolate=False, reproducer=False, **more)


def test_a_mean_over_the_batch_is_refused(tmp_path):
    """Its divisor is the batch."""
    nodes = [
        node("ReduceSum", ["x", "axes"], ["s"]),
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Cast", ["n"], ["f"], to=1),
        node("Div", ["s", "f"], ["y"]),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"axes": np.asarray([0])}, ["N", 4])
    with pytest.raises(UsageError, match=r"an open batch: .*depends on the batch.* give --shape with a number"):
        build_open(path, (-1, 4), precision="fp32")
    assert not (tmp_path / "bundle").exists()


def test_another_size_is_refused_by_the_engine(tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, ["N", 4])
    bundle = build(path, device="raspberry-pi-5", precision="fp32", shapes={"x": (-1, 4)}, output=tmp_path / "bundle", isolate=False)
    from edgekit.bundle import Artifact
    from edgekit.runtime.engines import EngineOptions, open_engine

    artifact: Artifact = bundle.manifest.artifact
    engine = open_engine(bundle.directory / artifact.path, artifact, bundle.manifest.signature, EngineOptions())
    try:
        with pytest.raises(EngineError):
            engine.run({"x": np.zeros((2, 5), np.float32)})
        assert engine.run({"x": -np.ones((3, 4), np.float32)})["y"].shape == (3, 4)  # and it still works
    finally:
        engine.close()


def test_what_leaves_the_batch_open(tmp_path):
    signature = load_source(saved(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, ["N", 4])).signature
    assert open_symbols(signature, {"x": (-1, 4)}) == ("N",)
    assert open_symbols(signature, {"x": ("N", 4)}) == ("N",)
    assert not open_symbols(signature, {})
    assert not open_symbols(signature, {"x": (2, 4)})
    assert at_sizes(signature, {"x": (-1, 4)}, {"N": 7}) == {"x": (7, 4)}
