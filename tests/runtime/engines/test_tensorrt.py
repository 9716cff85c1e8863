"""The TensorRT engines as they are on this machine: what is missing is named; with a GPU, TensorRT-RTX really runs."""

import pytest

from edgekit.errors import EnvironmentMissingError
from edgekit.runtime import finalize, load
from edgekit.runtime._cuda import Cuda
from edgekit.runtime.engines import engine_class


def gpu_missing():
    try:
        Cuda().close()
    except EnvironmentMissingError as exc:
        return str(exc)
    return ""


MISSING = gpu_missing()


@pytest.fixture(scope="module")
def rtx_bundle(tmp_path_factory, tiny_conv):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from edgekit.converters import build

    return build(tiny_conv, device="rtx-pc", precision="fp16", output=tmp_path_factory.mktemp("rtx") / "bundle").path


def test_versions_are_those_of_the_packages():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    assert engine_class("tensorrt-rtx").version() == trt.__version__
    with pytest.raises(EnvironmentMissingError, match="the package tensorrt is not installed"):
        engine_class("tensorrt").version()


@pytest.mark.skipif(not MISSING, reason="there is a GPU")
def test_without_a_gpu_the_fallback_answers_and_finalize_says_why(rtx_bundle):
    with load(rtx_bundle) as session:
        assert session.engine.name == "onnxruntime"
        assert session.fallback_reason == f"tensorrt-rtx: {MISSING}"
        for sample in session.bundle.golden():
            assert set(session.run(sample.inputs)) == {"features", "scores"}
    with pytest.raises(EnvironmentMissingError, match=r"NVIDIA GPU: .*; until then `edgekit run .*` uses its fallback for onnxruntime"):
        finalize(rtx_bundle)


@pytest.mark.gpu
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
def test_with_a_gpu_the_engine_keeps_its_limits(rtx_bundle):
    receipt = finalize(rtx_bundle)
    assert receipt.verified == "host"
    assert receipt.engine["engine"] == "tensorrt-rtx"
