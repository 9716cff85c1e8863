"""An artifact with one wrong operator in it: the proof finds which one, in every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.converters._divergence import Place, locate, matches
from edgekit.converters._emitter import EmitJob
from edgekit.converters._emitters import emitter_for
from edgekit.converters._normalise import normalise
from edgekit.converters._preparation import prepare
from edgekit.converters._samples import golden_samples
from edgekit.converters._source import load_source
from edgekit.converters.tflite._scopes import scope_of, scopes_in
from edgekit.device_profiles import load_profile

pytestmark = pytest.mark.slow

DEVICES = {
    "onnxruntime": "generic-x86",
    "openvino": "intel-nuc",
    "tflite": "raspberry-pi-5",
    "coreml": "iphone-15",
    "tensorrt": "jetson-agx-orin",
}

Hurt = Callable[[onnx.ModelProto], None]


def job_for(path: Path, engine: str, precision: str, directory: Path) -> EmitJob:
    source = load_source(path)
    normalised = normalise(source, {}, static=True)
    samples = golden_samples(source, normalised.signature, None)
    profile = load_profile(DEVICES[engine])
    return EmitJob("model", normalised, profile, profile.engine, precision, directory, samples.samples)


def found_after(hurt: Hurt, path: Path, engine: str, precision: str, directory: Path) -> Place:
    """What is located in an artifact that was emitted from a changed model."""
    job = job_for(path, engine, precision, directory)
    changed = onnx.ModelProto()
    changed.CopyFrom(job.source.model)
    hurt(changed)
    emitted = emitter_for(engine).emit(replace(job, source=replace(job.source, model=changed)))
    return locate(lambda _: None, job, emitted.artifact)


def scaled(tensor: str, factor: float) -> Hurt:
    def hurt(model: onnx.ModelProto) -> None:
        found = next(entry for entry in model.graph.initializer if entry.name == tensor)
        found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * np.float32(factor), tensor))

    return hurt


def unhurt(_: onnx.ModelProto) -> None:
    return


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("engine", DEVICES)
def test_the_operator_with_wrong_weights_is_named(tiny_conv: Path, tmp_path: Path, engine: str, precision: str) -> None:
    # The convolution is fused with its activation in TFLite: the first tensor that exists there is the activation's.
    place = found_after(scaled("kernel", 1.5), tiny_conv, engine, precision, tmp_path)
    assert (place.tensor, place.operator) in {("conv", "Conv"), ("features", "Relu")}
    assert place.index == (0 if place.operator == "Conv" else 1)
    if engine not in ("tflite", "openvino"):
        assert place.node == "conv"
    assert str(place).startswith(f"it diverged first at tensor {place.tensor!r} ({place.operator} at {place.node!r}")


@pytest.mark.parametrize("engine", DEVICES)
def test_what_came_before_the_wrong_operator_is_not_blamed(tiny_conv: Path, tmp_path: Path, engine: str) -> None:
    place = found_after(scaled("head", -1.0), tiny_conv, engine, "fp32", tmp_path)
    assert (place.tensor, place.operator, place.node) == ("scores", "Gemm", "head_gemm")
    assert 1 < place.compared <= place.inner


@pytest.mark.parametrize("engine", DEVICES)
def test_a_right_artifact_has_no_such_place(tiny_conv: Path, tmp_path: Path, engine: str) -> None:
    place = found_after(unhurt, tiny_conv, engine, "fp32", tmp_path)
    assert (place.tensor, place.index) == ("", -1)
    assert "diverges before it" in str(place)


@pytest.mark.parametrize("engine", ["tflite", "coreml", "openvino"])
def test_a_wrong_step_deep_in_a_real_model_is_found(real_model: Callable[[str], Path], tmp_path: Path, engine: str) -> None:
    path = tmp_path / "cls.onnx"
    model = onnx.load(real_model("ppocr-cls"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for axis, size in ((2, 48), (3, 192)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, path)
    (tmp_path / "artifact").mkdir()
    job = job_for(path, engine, "fp32", tmp_path / "artifact")
    nodes = job.source.model.graph.node
    index = [position for position, node in enumerate(nodes) if node.op_type == "Conv"][12]
    place = found_after(scaled(nodes[index].input[1], -1.0), path, engine, "fp32", tmp_path / "artifact")
    near = {name for node in nodes if nodes[index].output[0] in node.input for name in node.output} | {nodes[index].output[0]}
    assert place.tensor in near  # the convolution, or the activation that it was fused with
    assert place.compared > 50


def test_values_match_in_any_order_of_axes_and_within_the_precision() -> None:
    want = np.random.default_rng(3).standard_normal((1, 3, 4, 5)).astype(np.float32)
    assert matches(want, want.transpose(0, 2, 3, 1), "fp32")
    assert matches(want[0, 0, 0], want[0, 0, 0].reshape(1, 5), "fp32")
    assert matches(want, want.astype(np.float16), "fp16")
    assert not matches(want, want + np.float32(0.1), "fp32")
    assert not matches(want, np.where(np.arange(5) == 2, np.nan, want), "fp32")
    assert not matches(want, want[..., :4], "fp32")
    assert matches(np.array([True, False]), np.array([1, 0], np.int32), "fp32")


def test_a_place_says_what_was_not_compared() -> None:
    assert "2 of 9 inner tensors could be compared" in str(Place("x", "Conv", "c", 0, 2, 9))
    assert str(Place(inner=9)) == "where it diverged first cannot be told: the artifact keeps none of the 9 inner tensors"


@pytest.mark.parametrize("engine", DEVICES)
def test_models_with_an_open_batch_are_compared_too(tiny_mlp: Path, tmp_path: Path, engine: str) -> None:
    source = load_source(tiny_mlp)
    target = emitter_for(engine)
    profile = load_profile(DEVICES[engine])
    normalised, samples = prepare(lambda _: None, source, {}, target.static_only, None, target.batch_probes)
    job = EmitJob("model", normalised, profile, profile.engine, "fp32", tmp_path, samples.samples)
    changed = []
    for model in (normalised, *normalised.probes):
        copy = onnx.ModelProto()
        copy.CopyFrom(model.model)
        scaled("w2", 0.5)(copy)
        changed.append(replace(model, model=copy, probes=()))
    emitted = target.emit(replace(job, source=replace(changed[0], probes=tuple(changed[1:]))))
    place = locate(lambda _: None, job, emitted.artifact)
    assert (place.tensor, place.node) == ("logits", "second")


def test_a_file_s_tensors_are_tied_to_nodes_by_their_scopes() -> None:
    assert scope_of("/backbone/conv:0") == "t_backbone_conv_0"
    assert scopes_in(f"{scope_of('/act')}/Relu;{scope_of('conv.1')}/BiasAdd;Const_3") == ["t_act", "conv.1"]
    assert scopes_in("serving_default_x:0") == []
