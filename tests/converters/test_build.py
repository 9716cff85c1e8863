from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle
from edgekit.converters import build, build_many, build_result, choose_precision
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._onnxruntime import OnnxRuntimeEmitter
from edgekit.converters._targets import precisions_to_try
from edgekit.device_profiles import load_profile
from edgekit.errors import BuildError, UsageError, VerificationError
from edgekit.runtime import load, verify_bundle

DEVICES = ["generic-x86", "intel-nuc"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_is_proven_and_says_how(tiny_conv: Path, tmp_path: Path, device: str, precision: str) -> None:
    said: list[str] = []
    result = build_result(tiny_conv, device=device, precision=precision, output=tmp_path / "b.edgekit", progress=said.append)
    manifest = result.bundle.manifest
    assert (manifest.device, manifest.precision, manifest.artifact.engine) == (device, precision, load_profile(device).engine.name)
    assert (manifest.name, manifest.version, manifest.source.filename) == ("tiny_conv", "1", "tiny_conv.onnx")
    assert manifest.verification.verified == "host"
    assert manifest.verification.samples == 3
    assert manifest.verification.sample_source == "synthetic"
    assert set(manifest.verification.metrics) == {"features", "scores"}
    assert manifest.verification.metrics["scores"].top1_agreement == 1.0
    assert manifest.verification.metrics["features"].top1_agreement is None
    assert result.bundle_bytes > result.bytes > 0
    assert result.seconds > 0
    assert said[0] == "reading the model"
    assert verify_bundle(result.bundle.path).ok


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_two_builds_are_the_same_bytes_in_one_process_and_in_two(tiny_conv: Path, tmp_path: Path, device: str) -> None:
    paths = [tmp_path / f"{index}.edgekit" for index in range(3)]
    for path in paths[:2]:
        build(tiny_conv, device=device, precision="fp16", output=path)
    code = f"import edgekit; edgekit.build({str(tiny_conv)!r}, device={device!r}, precision='fp16', output={str(paths[2])!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() == paths[2].read_bytes()


def test_several_devices_share_a_folder(tiny_conv: Path, tmp_path: Path) -> None:
    results = build_many(tiny_conv, devices=DEVICES, output=tmp_path, name="conv", model_version="7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny_conv-generic-x86.edgekit", "tiny_conv-intel-nuc.edgekit"]
    assert [(result.bundle.manifest.name, result.bundle.manifest.version) for result in results] == [("conv", "7")] * 2
    with pytest.raises(UsageError, match="one file for 2 devices"):
        build_many(tiny_conv, devices=DEVICES, output=tmp_path / "one.edgekit")


def test_the_default_place_is_the_current_folder(tiny_conv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert build(tiny_conv, device="x86").path == Path("tiny_conv-generic-x86.edgekit")
    assert (tmp_path / "tiny_conv-generic-x86.edgekit").is_file()


def test_a_given_shape_is_recorded(tiny_mlp: Path, tmp_path: Path) -> None:
    fixed = build(tiny_mlp, device="generic-x86", shapes={"x": (4, 8)}, output=tmp_path / "fixed").manifest
    assert fixed.fixed == {"N": 4}
    assert fixed.signature.inputs[0].shape == (4, 8)
    assert fixed.signature.outputs[0].shape == (4, 4)
    open_ = build(tiny_mlp, device="generic-x86", output=tmp_path / "open").manifest
    assert open_.fixed == {}
    assert open_.signature.inputs[0].shape == ("N", 8)


def test_calibration_samples_are_the_golden_ones(tiny_conv: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "one.npy", picture)
    bundle = build(tiny_conv, device="generic-x86", calibration=tmp_path / "one.npy", output=tmp_path / "b")
    assert bundle.manifest.verification.sample_source == "calibration"
    np.testing.assert_array_equal(bundle.golden()[0].inputs["image"], picture)


@pytest.mark.parametrize("device", ["raspberry-pi-5", "jetson-agx-orin", "iphone-15"])
def test_an_fp16_capable_device_gets_fp16_by_itself(device: str) -> None:
    assert choose_precision(load_profile(device), "auto", ("fp32", "fp16")) == "fp16"


@pytest.mark.parametrize(
    ("device", "calibrated", "expected"),
    [
        ("intel-nuc", True, ("int8", "fp32")),
        ("intel-nuc", False, ("fp32",)),
        ("jetson-agx-orin", True, ("int8", "fp16")),
        ("iphone-15", True, ("fp16",)),
        ("generic-x86", True, ("fp32",)),
        ("coral-edgetpu", True, ("int8",)),
    ],
)
def test_auto_takes_int8_only_where_it_is_fast_and_there_are_samples(device: str, calibrated: bool, expected: tuple[str, ...]) -> None:
    assert precisions_to_try(load_profile(device), "auto", ("fp32", "fp16", "int8"), calibrated=calibrated) == expected


REFUSED = {
    "int8 without samples": ("generic-x86", "int8", ("fp32", "int8"), "--precision int8: int8 needs real samples, and none were given"),
    "int8 where it is not": ("rtx-pc", "int8", ("fp32", "fp16", "int8"), "--precision int8: rtx-pc does not take it"),
    "unknown": ("generic-x86", "fp8", ("fp32", "fp16"), "unknown value 'fp8'; expected one of auto, fp32, fp16, int8"),
    "an emitter without it": ("generic-x86", "fp16", ("fp32",), "--precision fp16: generic-x86 does not take it"),
    "a device of int8 only": ("coral-edgetpu", "auto", ("fp32", "fp16"), "device coral-edgetpu: runs int8 only"),
    "the same without samples": ("coral-edgetpu", "auto", ("fp32", "int8"), "device coral-edgetpu: int8 needs real samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_precision_that_cannot_be_is_refused(case: str) -> None:
    device, wanted, emitted, expected = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        choose_precision(load_profile(device), wanted, emitted)
    assert expected in str(caught.value)


def test_a_device_that_takes_no_fp16_gets_fp32() -> None:
    profile = load_profile("generic-x86")
    assert choose_precision(profile, "auto", ("fp32", "fp16")) == "fp32"
    without = msgspec.structs.replace(profile, precisions={"fp32": "works", "fp16": "no"})
    with pytest.raises(UsageError, match="does not take it"):
        choose_precision(without, "fp16", ("fp32", "fp16"))


class _Wrong(OnnxRuntimeEmitter):
    """An emitter with a mistake in it: it changes the weights of the last layer."""

    def emit(self, job: EmitJob) -> Emitted:
        emitted = super().emit(job)
        path = job.directory / "model.onnx"
        model = onnx.load(path)
        producer = next(node for node in model.graph.node if "scores" in node.output)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == producer.input[1])
        weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
        onnx.save(model, path)
        return emitted


class _Crashing(OnnxRuntimeEmitter):
    """An emitter whose toolchain raises an exception of its own."""

    def emit(self, job: EmitJob) -> Emitted:
        raise ZeroDivisionError("inside\nthe toolchain")


class _Garbage(OnnxRuntimeEmitter):
    """An emitter whose file no engine takes."""

    def emit(self, job: EmitJob) -> Emitted:
        emitted = super().emit(job)
        path = job.directory / "model.onnx"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return emitted


class _Silent(OnnxRuntimeEmitter):
    """An emitter that can prove nothing here."""

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        return Proof("deferred", "none", left_to_device=("everything",))


@pytest.fixture
def emitter(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Put another emitter in the place of ONNX Runtime's, through the table that targets are registered in; for builds in this process."""
    import types

    def use(kind: type) -> None:
        module = types.ModuleType("emitter_of_this_test")
        module.EMITTERS = {"onnxruntime": kind()}
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(EMITTER_MODULES, "onnxruntime", module.__name__)

    return use


def test_wrong_numbers_fail_the_build_and_leave_a_reproducer_only(emitter: Callable[[type], None], tiny_conv: Path, tmp_path: Path) -> None:
    emitter(_Wrong)
    with pytest.raises(VerificationError) as caught:
        build(tiny_conv, device="generic-x86", precision="fp32", output=tmp_path / "b.edgekit", isolate=False)
    message = str(caught.value)
    assert "worst output 'scores'" in message
    assert "it diverged first at tensor 'scores' (Gemm at 'head_gemm')" in message
    assert [path.name for path in tmp_path.iterdir()] == ["b-reproducer.onnx"]


def test_a_toolchain_s_own_exception_is_one_line(emitter: Callable[[type], None], tiny_conv: Path, tmp_path: Path) -> None:
    emitter(_Crashing)
    with pytest.raises(BuildError, match="its toolchain failed: inside the toolchain") as caught:
        build(tiny_conv, device="generic-x86", output=tmp_path / "b.edgekit", reproducer=False, isolate=False)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_does_not_run_is_a_failed_build(emitter: Callable[[type], None], tiny_conv: Path, tmp_path: Path) -> None:
    emitter(_Garbage)
    with pytest.raises(BuildError, match="target onnxruntime: the artifact that was written does not run: engine onnxruntime: cannot load"):
        build(tiny_conv, device="generic-x86", output=tmp_path / "b.edgekit", reproducer=False, isolate=False)
    assert list(tmp_path.iterdir()) == []


def test_what_did_not_run_is_not_called_verified(emitter: Callable[[type], None], tiny_conv: Path, tmp_path: Path) -> None:
    emitter(_Silent)
    proof = build(tiny_conv, device="generic-x86", output=tmp_path / "b.edgekit", isolate=False).manifest.verification
    assert (proof.verified, proof.samples, proof.metrics, proof.left_to_device) == ("deferred", 0, {}, ("everything",))


def test_a_newer_opset_is_written_at_the_device_s(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"])],
        "newer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    path = tmp_path / "newer.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12), path)
    bundle = build(path, device="generic-x86", output=tmp_path / "b")
    written = onnx.load(bundle.artifact_path(bundle.manifest.artifact))
    assert next(entry.version for entry in written.opset_import if entry.domain == "") <= load_profile("generic-x86").engine.opset_max
    assert written.ir_version <= 10
    assert bundle.manifest.verification.metrics["y"].max_rel < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppocr-cls", "magika", "silero-vad"])
@pytest.mark.parametrize("device", [*DEVICES, "raspberry-pi-5"])
def test_real_models_build_and_load(real_model: Callable[[str], Path], tmp_path: Path, name: str, device: str) -> None:
    from examples.models import SHAPES

    path = tmp_path / "b.edgekit"
    built = build(real_model(name), device=device, shapes=SHAPES[name], output=path)
    assert built.manifest.verification.verified == "host"
    bundle = Bundle.open(path)
    with load(bundle) as session:
        assert session.fallback_reason == ""
        answer = session.run(bundle.golden()[0].inputs)
    assert list(answer) == [spec.name for spec in bundle.signature.outputs]
