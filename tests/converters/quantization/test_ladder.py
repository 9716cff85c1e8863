from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from edgekit.converters.quantization import METHODS, calibrate, check_settings, climb, collect, make_plan, prepare, quantise
from edgekit.converters.quantization._agreement import agreement, decibel, divergence, noise
from edgekit.converters.quantization._expand import expand
from edgekit.converters.quantization._scheme import _COREML, _ONNXRUNTIME, _TENSORRT, _TFLITE, scheme_for
from edgekit.device_profiles import load_profile
from edgekit.errors import ModelError, UnknownNameError, UsageError, VerificationError

from .models import cnn, model, normalised, run, samples, signature


def test_a_good_model_needs_no_rung():
    proto = prepare(cnn(classes=2))
    given = samples(proto, 16)
    ladder = climb(proto, signature(proto), collect(proto, given), _TENSORRT, given, 0.9)
    assert ladder.kept == ()
    assert ladder.agreement >= 0.9
    assert set(ladder.methods) == set(METHODS)


def test_the_layer_with_an_outlier_channel_stays_in_float():
    """One channel of the depthwise convolution's input is 3,000 times wider than the others: per-tensor activations lose the others altogether."""
    proto = prepare(cnn(outlier=3000.0))
    given = samples(proto, 16)
    scheme = replace(_TENSORRT, weighted=frozenset({"Conv"}))
    ladder = climb(proto, signature(proto), collect(proto, given), scheme, given, 0.99, "minmax")
    assert ladder.rungs[0].agreement < 0.9
    assert ladder.held
    assert ladder.kept == ("conv1",)
    assert ladder.agreement >= 0.99
    assert min(ladder.layer_snr_db, key=ladder.layer_snr_db.get) == "conv1"
    report = ladder.report()
    assert report["kept_in_float"][0]["layer"] == "conv1"
    assert report["ladder"][0]["kept"] == []


def test_outputs_without_classes_are_judged_on_few_samples_too():
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        {"x": (1, 8)},
        {"y": (1, 1)},
        {"w": np.random.default_rng(4).standard_normal((8, 1)).astype(np.float32)},
    )
    given = samples(proto, 16)
    ladder = climb(proto, signature(proto), collect(proto, given), _TENSORRT, given, 0.99, few=4)
    assert ladder.kept == ()
    assert ladder.samples == 16


def test_what_is_kept_is_needed():
    proto = prepare(cnn(outlier=3000.0))
    given = samples(proto, 16)
    calibration = collect(proto, given)
    ladder = climb(proto, signature(proto), calibration, _ONNXRUNTIME, given, 0.99)
    again = climb(proto, signature(proto), calibration, _ONNXRUNTIME, given, 0.99)
    assert ladder.kept == again.kept
    assert ladder.agreement >= 0.99


def test_what_costs_most_for_least_work_is_kept_first():
    """Both products have the same outlier in their input, and so the same noise; one has sixteen times the multiplications."""
    rng = np.random.default_rng(2)
    small, large = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal((8, 64)).astype(np.float32)
    small[0] = large[0] = 0  # what is a thousand times wider has no effect, but for the range
    tensors = {"small": small, "large": large, "wide": np.array([1e3] + [1] * 7, np.float32)}
    nodes = [
        helper.make_node("Mul", ["x", "wide"], ["a"], "widen"),
        helper.make_node("MatMul", ["a", "small"], ["y"], "small_product"),
        helper.make_node("MatMul", ["a", "large"], ["z"], "large_product"),
    ]
    proto = model(nodes, {"x": (4, 8)}, {"y": (4, 4), "z": (4, 64)}, tensors)
    given = samples(proto, 8)
    ladder = climb(proto, signature(proto), collect(proto, given), _TENSORRT, given, 0.999, "minmax")
    assert [rung.kept for rung in ladder.rungs[:2]] == [(), ("small_product",)]
    assert ladder.kept == ("small_product", "large_product")


def test_a_gate_written_as_several_operators_is_one_layer():
    weights = {"w": np.random.default_rng(1).standard_normal((8, 3, 1, 1)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("HardSwish", ["c"], ["y"], "swish")]
    proto = prepare(model(nodes, {"x": (1, 3, 6, 6)}, {"y": (1, 8, 6, 6)}, weights))
    expanded, calibration = expand(proto, collect(proto, samples(proto, 4)), _TFLITE.expanded)
    plan = make_plan(expanded, calibration, _TFLITE, "minmax")
    assert [layer.name for layer in plan.layers] == ["conv", "swish/moved/part"]
    assert len(plan.layers[1].nodes) == 4
    assert plan.layers[1].values == 4 * 8 * 36


def test_quantise_writes_report_and_notes():
    source = normalised(cnn())
    given = samples(source.model, 16)
    found = quantise(source, calibrate(source, given, "16 test samples"), _TENSORRT, min_agreement=0.9)
    assert found.model.signature == source.signature
    assert found.report["calibration"]["source"] == "16 test samples"
    assert "layers" in found.notes[0]
    assert found.notes[1] == "int8 ranges come from 16 sample(s) only: 32 or more real inputs make them reliable"
    assert agreement(run(source.model, given), run(found.model.model, given), source.signature) >= 0.9


def test_a_model_without_products_is_refused():
    proto = model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": (1, 4)}, {"y": (1, 4)}, {})
    source = normalised(proto)
    with pytest.raises(ModelError, match="no convolution"):
        quantise(source, calibrate(source, samples(proto, 2)), _TENSORRT)


def test_a_target_that_no_layer_reaches_is_refused():
    weights = {"w": (np.random.default_rng(0).standard_normal((64, 4)) * 1e3).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "first"),
        helper.make_node("Sin", ["m"], ["y"], "sin"),
        helper.make_node("MatMul", ["x", "w"], ["n"], "second"),
        helper.make_node("Sin", ["n"], ["z"], "other_sin"),
    ]
    proto = model(nodes, {"x": (4, 64)}, {"y": (4, 4), "z": (4, 4)}, weights)
    source = normalised(proto)
    with pytest.raises(VerificationError, match=r"only with all 2 layers in float; with [01] in float it is -?0\.\d+"):
        quantise(source, calibrate(source, samples(proto, 4)), _TENSORRT, min_agreement=1.0)


@pytest.mark.parametrize(("device", "weights", "activations"), [("generic-x86", 7, True), ("iphone-15", 8, False), ("iphone-16", 8, True)])
def test_schemes_follow_the_profile(device, weights, activations):
    profile = load_profile(device)
    scheme = scheme_for(profile.engine.name, profile)
    assert (scheme.weight_bits, scheme.activations) == (weights, activations)


def test_weights_alone_need_no_range():
    proto = prepare(cnn())
    ladder = climb(
        proto, signature(proto), collect(proto, samples(proto, 1), []), replace(_COREML, activations=False), samples(proto, 8), 0.9
    )
    assert ladder.plan.quantisers == {}
    assert ladder.quantised == 4


@pytest.mark.parametrize(
    ("method", "target", "error"), [("median", 0.9, UnknownNameError), ("auto", 0.0, UsageError), ("auto", 1.5, UsageError)]
)
def test_settings_are_checked(method, target, error):
    with pytest.raises(error):
        check_settings(method, target)


def test_divergence_weighs_a_row_by_how_far_its_answer_moved():
    spec = signature(cnn())
    sure = np.full((1, 10), 0.01, np.float32)
    sure[0, 3] = 0.91
    other = np.roll(sure, 1, axis=1)
    nearly = (sure + 1e-3) / (1 + 1e-2)
    found = [divergence([{"y": sure}], [{"y": each}], spec) for each in (sure, nearly, other)]
    assert found[0] == 0.0
    assert 0 < found[1] < found[2] / 100
    assert found[2] == pytest.approx(0.9 * np.log(91), rel=1e-4)
    assert divergence([{"y": sure}], [{"y": sure * np.nan}], spec) == np.inf


def test_noise_and_agreement_of_equal_outputs():
    spec = signature(cnn())
    outputs = [{"y": np.eye(10, dtype=np.float32)[:1]}]
    assert agreement(outputs, outputs, spec) == 1.0
    assert decibel(noise(outputs, outputs, spec)) == 999.0
    wrong = [{"y": np.full((1, 10), np.nan, np.float32)}]
    assert decibel(noise(outputs, wrong, spec)) == -999.0
