"""int8 through the emitters: integer kernels are in the written files, and their numbers are those that were promised."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from edgekit.bundle import GoldenSample
from edgekit.converters._emitter import EmitJob
from edgekit.converters._emitters import emitter_for
from edgekit.converters.quantization import Quantization, calibrate, collect, make_plan, prepare, quantise, scheme_for, write_quantised
from edgekit.converters.quantization._agreement import decibel, noise
from edgekit.device_profiles import load_profile

from .models import cnn, model, normalised, run, samples

pytestmark = pytest.mark.slow


def built(proto, device, folder, **settings):
    """Artifact, proof and quantisation of a model on a device, and the float answers."""
    source, profile = normalised(proto), load_profile(device)
    given = samples(proto, 16)
    emitter = emitter_for(profile.engine.name)
    quantization = quantise(source, calibrate(source, given), scheme_for(emitter.engine, profile), **settings)
    golden = [GoldenSample(inputs, outputs) for inputs, outputs in zip(given[:4], run(proto, given[:4]), strict=True)]
    job = EmitJob("test", source, profile, profile.engine, "int8", folder, golden, quantization)
    emitted = emitter.emit(job)
    proof = emitter.prove(job, emitted)
    return emitted, proof, quantization, [sample.outputs for sample in golden]


def quality(proof, wanted, proto):
    return decibel(noise(wanted, proof.outputs, normalised(proto).signature))


@pytest.mark.parametrize(
    "device", ["generic-x86", "intel-nuc", "raspberry-pi-5", "coral-edgetpu", "iphone-15", "iphone-16", "jetson-agx-orin"]
)
def test_every_engine_answers_as_the_float_model(device, tmp_path):
    proto = cnn()
    emitted, proof, _, wanted = built(proto, device, tmp_path, min_agreement=0.8)
    assert emitted.artifact.precision == "int8"
    assert quality(proof, wanted, proto) > 22


def test_openvino_runs_its_integer_kernels(tmp_path):
    import openvino

    built(cnn(), "intel-nuc", tmp_path, min_agreement=0.8)
    compiled = openvino.Core().compile_model(str(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    info = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in info]
    assert [precision for kind, precision in kinds if kind in ("Convolution", "FullyConnected")] == ["u8"] * 4


def test_tflite_is_integer_from_end_to_end_on_the_edge_tpu(tmp_path):
    from edgekit.converters.tflite._integer import operations

    emitted, _, _, _ = built(cnn(), "coral-edgetpu", tmp_path, min_agreement=0.8)
    found = list(operations((tmp_path / "model.tflite").read_bytes()))
    assert all(operation.is_integer for operation in found)
    binding = emitted.artifact.inputs[0]
    assert binding.native_dtype == "int8"
    assert binding.scale > 0
    assert emitted.report["edgetpu"]["mapped"] == emitted.report["edgetpu"]["operators"] == len(found)


def test_tflite_weights_have_a_scale_for_each_channel(tmp_path):
    from tensorflow.lite.python import schema_py_generated as schema

    _, _, quantization, _ = built(cnn(), "raspberry-pi-5", tmp_path, min_agreement=0.8)
    parsed = schema.ModelT.InitFromPackedBuf((tmp_path / "model.tflite").read_bytes(), 0)
    scales = [
        t.quantization.scale
        for t in parsed.subgraphs[0].tensors
        if t.type == schema.TensorType.INT8 and parsed.buffers[t.buffer].data is not None
    ]
    assert sorted(len(each) for each in scales) == [10, 16, 16, 16]
    first = np.sort(next(each for each in scales if len(each) == 10))
    weights = next(t for t in quantization.model.model.graph.initializer if t.name.endswith("w3_quantized_scale"))
    from onnx import numpy_helper

    assert np.allclose(first, np.sort(numpy_helper.to_array(weights)), rtol=1e-6)


def test_a_layer_that_stays_in_float_is_float_in_tflite(tmp_path):
    """Both its neighbours are int8, from which TensorFlow's converter would make it int8 too."""
    from edgekit.converters.tflite._integer import operations

    proto, profile = cnn(), load_profile("raspberry-pi-5")
    source, given = normalised(proto), samples(proto, 8)
    prepared = prepare(proto)
    plan = make_plan(prepared, collect(prepared, given), scheme_for("tflite", profile), "minmax")
    integer = frozenset(name for layer in plan.layers if layer.name != "conv1" for name in layer.nodes)
    written = replace(source, model=write_quantised(prepared, plan, ("conv1",)))
    quantization = Quantization(written, plan.scheme, ("conv1",), integer)
    golden = [GoldenSample(inputs, outputs) for inputs, outputs in zip(given, run(proto, given), strict=True)]
    job = EmitJob("test", source, profile, profile.engine, "int8", tmp_path, golden, quantization)
    emitter = emitter_for("tflite")
    proof = emitter.prove(job, emitter.emit(job))
    found = list(operations((tmp_path / "model.tflite").read_bytes()))
    assert [each.is_integer for each in found if each.name == "DEPTHWISE_CONV_2D"] == [False]
    assert [each.is_integer for each in found if each.name == "CONV_2D"] == [True, True]
    assert quality(proof, [sample.outputs for sample in golden], proto) > 22


def test_a_float_concatenation_is_not_cut_to_the_range_of_an_operand(tmp_path):
    """One operand is int8 in [-1, 1], the other float and a thousand times wider: all operands of TensorFlow Lite's concatenation share a scale."""
    rng = np.random.default_rng(7)
    tensors = {
        "w": rng.standard_normal((8, 8)).astype(np.float32),
        "wide": np.float32(1000),
        "v": rng.standard_normal((8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["m"], "small"),
        helper.make_node("Tanh", ["m"], ["u"], "squash"),
        helper.make_node("Exp", ["x"], ["e"], "exp"),
        helper.make_node("Mul", ["e", "wide"], ["b"], "big"),
        helper.make_node("Concat", ["u", "b"], ["y"], "join", axis=1),
        helper.make_node("MatMul", ["u", "v"], ["z"], "head"),
    ]
    proto = model(nodes, {"x": (2, 8)}, {"y": (2, 16), "z": (2, 4)}, tensors)
    source, profile = normalised(proto), load_profile("raspberry-pi-5")
    given = samples(proto, 16)
    calibrated = calibrate(source, given)
    scheme = replace(scheme_for("tflite", profile), others=frozenset({"Tanh"}))
    quantization = quantise(source, calibrated, scheme, min_agreement=0.5, method="minmax")
    assert "join" not in quantization.integer_nodes
    golden = [GoldenSample(inputs, outputs) for inputs, outputs in zip(given[:4], run(proto, given[:4]), strict=True)]
    job = EmitJob("test", source, profile, profile.engine, "int8", tmp_path, golden, quantization)
    emitter = emitter_for("tflite")
    proof = emitter.prove(job, emitter.emit(job))
    for sample, outputs in zip(golden, proof.outputs, strict=True):
        assert np.allclose(outputs["y"][:, 8:], sample.outputs["y"][:, 8:], rtol=1e-4)


@pytest.mark.parametrize(("device", "pairs"), [("iphone-15", 0), ("iphone-16", 4)])
def test_core_ml_stores_weights_in_int8_and_quantises_where_it_can(device, pairs, tmp_path):
    emitted, _, _, _ = built(cnn(), device, tmp_path, min_agreement=0.8)
    operators = emitted.report["operators"]
    assert operators.get("quantize", 0) == operators.get("dequantize", 0) == pairs
    assert operators.get("constexpr_affine_dequantize", 0) + operators.get("constexpr_blockwise_shift_scale", 0) == 4
    assert emitted.report["int8_weights"] == 4


def test_tensorrt_kit_lets_older_versions_use_float16_beside_int8(tmp_path):
    emitted, proof, _, _ = built(cnn(), "jetson-agx-orin", tmp_path, min_agreement=0.8)
    assert proof.verified in ("parser", "deferred")
    assert emitted.fallback.precision == "fp32"
    generations = emitted.report["recipe"]["generations"]
    assert all(set(each["builder_flags"]) == {"FP16", "INT8"} for each in generations[:2])


def test_hard_gates_have_integer_kernels_on_the_edge_tpu(tmp_path):
    rng = np.random.default_rng(8)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("HardSwish", ["c"], ["h"], "swish"),
        helper.make_node("GlobalAveragePool", ["h"], ["p"], "pool"),
        helper.make_node("HardSigmoid", ["p"], ["g"], "gate"),
        helper.make_node("Mul", ["h", "g"], ["y"], "scale"),
    ]
    proto = model(nodes, {"x": (1, 3, 6, 6)}, {"y": (1, 8, 6, 6)}, {"w": rng.standard_normal((8, 3, 1, 1)).astype(np.float32)})
    emitted, proof, _, wanted = built(proto, "coral-edgetpu", tmp_path, min_agreement=0.9)
    assert emitted.report["edgetpu"]["first_on_host"] is None
    assert quality(proof, wanted, proto) > 22


def test_tflite_keeps_weights_that_float16_would_cut_in_float32(tmp_path):
    weights = np.random.default_rng(9).standard_normal((4, 8)).astype(np.float32)
    weights[0, 0] = 2e5
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"x": (2, 4)}, {"y": (2, 8)}, {"w": weights})
    profile, given = load_profile("pixel-9"), samples(proto, 2)
    golden = [GoldenSample(inputs, outputs) for inputs, outputs in zip(given, run(proto, given), strict=True)]
    emitter = emitter_for("tflite")
    job = EmitJob("test", normalised(proto), profile, profile.engine, "fp16", tmp_path, golden)
    emitted = emitter.emit(job)
    proof = emitter.prove(job, emitted)
    assert np.allclose(proof.outputs[0]["y"], golden[0].outputs["y"], rtol=1e-5)
    assert "'w' of MatMul at 'product' reaches 2e+05" in emitted.notes[0]
    assert "a GPU delegate computes" in emitted.notes[1]
