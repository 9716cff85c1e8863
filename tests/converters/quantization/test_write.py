import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.converters.quantization import collect, make_plan, prepare, write_quantised
from edgekit.converters.quantization._agreement import decibel, noise
from edgekit.converters.quantization._plan import Quantiser, weight_quantiser
from edgekit.converters.quantization._scheme import _COREML, _ONNXRUNTIME, _OPENVINO, _TENSORRT, _TFLITE
from edgekit.converters.quantization._simulate import Simulation

from .models import cnn, model, run, samples, signature

SCHEMES = {scheme.engine: scheme for scheme in (_ONNXRUNTIME, _OPENVINO, _TENSORRT, _TFLITE, _COREML)}


def quantised(proto, scheme, kept=()):
    given = samples(proto, 6)
    prepared = prepare(proto)
    plan = make_plan(prepared, collect(prepared, given), scheme, "minmax")
    return prepared, plan, write_quantised(prepared, plan, kept), given


@pytest.mark.parametrize("engine", SCHEMES)
def test_the_written_graph_is_near_the_float_model(engine):
    proto = cnn()
    _, _, written, given = quantised(proto, SCHEMES[engine])
    onnx.checker.check_model(written, full_check=True)
    assert decibel(noise(run(proto, given), run(written, given), signature(proto))) > 25


@pytest.mark.parametrize("engine", SCHEMES)
@pytest.mark.parametrize("kept", [(), ("conv1",), ("conv0", "dense"), ("sum",)])
def test_the_simulation_answers_as_the_written_graph(engine, kept):
    prepared, plan, written, given = quantised(cnn(), SCHEMES[engine], kept)
    on = [index for index, layer in enumerate(plan.layers) if layer.name not in kept]
    simulated = Simulation(prepared, plan, signature(prepared)).run(given, on)
    # An int32 bias rounds to half of scale_x * scale_w, some 1e-6 here; the simulation keeps it in float.
    for want, got in zip(simulated, run(written, given), strict=True):
        assert np.allclose(want["y"], got["y"], atol=2e-2 * np.abs(want["y"]).max())


def test_the_simulation_with_nothing_on_is_the_float_model():
    proto = cnn()
    prepared, plan, _, given = quantised(proto, _TFLITE)
    for want, got in zip(run(proto, given), Simulation(prepared, plan, signature(proto)).run(given, ()), strict=True):
        assert np.allclose(want["y"], got["y"], atol=1e-6)


def test_tensorrt_gets_no_zero_points_and_no_integer_bias():
    _, _, written, _ = quantised(cnn(), _TENSORRT)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    linear = [node for node in written.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert linear
    assert all(not np.any(constants[node.input[2]]) and constants[node.input[2]].dtype == np.int8 for node in linear)
    assert not any(value.dtype == np.int32 for value in constants.values())


def test_onnxruntime_runs_its_integer_kernels(tmp_path):
    import onnxruntime

    _, _, written, _ = quantised(cnn(), _ONNXRUNTIME)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert found.count("QLinearConv") == 3
    assert {"QGemm", "QLinearAdd", "QLinearGlobalAveragePool"} <= set(found)
    assert not {"Conv", "FusedConv", "Gemm"} & set(found)


def test_a_kept_layer_reads_float_and_writes_float():
    _, _, written, _ = quantised(cnn(), _OPENVINO, kept=("conv1",))
    node = next(node for node in written.graph.node if node.name == "conv1")
    assert list(node.input) == ["r0", "w1", "conv1/bias"]
    other = next(node for node in written.graph.node if node.name == "conv2")
    assert other.input[0] == "r1_dequantized" or other.input[0] == "r1"


def test_inputs_and_outputs_keep_names_and_dtypes():
    proto = cnn()
    _, _, written, _ = quantised(proto, _TFLITE)
    assert [(v.name, v.type) for v in written.graph.input] == [(v.name, v.type) for v in proto.graph.input]
    assert [v.name for v in written.graph.output] == ["y"]
    assert written.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_weights_are_exact_at_their_largest_value():
    values = np.random.default_rng(4).standard_normal((5, 7)).astype(np.float32)
    quantiser = weight_quantiser(values, 0)
    restored = quantiser.restore(quantiser.apply(values))
    assert np.all(np.abs(restored - values) <= quantiser.scale[:, None] * 0.5 + 1e-7)
    assert np.allclose(np.abs(restored).max(axis=1), np.abs(values).max(axis=1), rtol=1e-6)
    seven = weight_quantiser(values, 0, bits=7)
    assert np.abs(seven.apply(values).astype(int)).max() == 63


def test_a_channel_of_zeros_has_a_scale():
    quantiser = weight_quantiser(np.zeros((2, 3), np.float32), 0)
    assert np.array_equal(quantiser.scale, [1, 1])


def test_rounding_is_half_to_even_as_the_operator_is_defined():
    quantiser = Quantiser(np.float32(1.0), np.asarray(0, np.int8))
    assert quantiser.apply(np.array([0.5, 1.5, 2.5, 200.0, -200.0], np.float32)).tolist() == [0, 2, 2, 127, -128]


def test_tensors_that_share_values_share_a_scale():
    tensors = {"w": np.random.default_rng(5).standard_normal((4, 3, 1, 1)).astype(np.float32), "two": np.array([1, 4, 16], np.int64)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("MaxPool", ["c"], ["m"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Reshape", ["m", "two"], ["y"], "reshape"),
    ]
    proto = model(nodes, {"x": (1, 3, 5, 5)}, {"y": (1, 4, 16)}, tensors)
    _, plan, _, _ = quantised(proto, _TFLITE)
    assert plan.quantisers["c"].scale == plan.quantisers["m"].scale == plan.quantisers["y"].scale
    assert plan.layers[0].nodes == ("conv", "pool", "reshape")


def test_hard_swish_and_affine_are_folded_exactly():
    rng = np.random.default_rng(6)
    tensors = {
        "w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "scale": rng.uniform(0.5, 2, (1, 4, 1, 1)).astype(np.float32),
        "shift": rng.standard_normal((4, 1, 1)).astype(np.float32),
        "three": np.float32(3),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "scale"], ["m"], "mul"),
        helper.make_node("Add", ["shift", "m"], ["a"], "add"),
        helper.make_node("Add", ["a", "three"], ["p"], "plus"),
        helper.make_node("Clip", ["p", "zero", "six"], ["k"], "clip"),
        helper.make_node("Mul", ["a", "k"], ["g"], "gate"),
        helper.make_node("Div", ["g", "six"], ["y"], "div"),
    ]
    proto = model(nodes, {"x": (1, 3, 5, 5)}, {"y": (1, 4, 5, 5)}, tensors)
    prepared = prepare(proto)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "HardSwish"]
    given = samples(proto, 2)
    for want, got in zip(run(proto, given), run(prepared, given), strict=True):
        assert np.allclose(want["y"], got["y"], rtol=1e-5, atol=1e-5)


def test_what_another_node_reads_is_not_folded():
    tensors = {"w": np.ones((2, 3, 1, 1), np.float32), "two": np.float32(2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "two"], ["m"], "mul"),
        helper.make_node("Add", ["c", "m"], ["y"], "add"),
    ]
    prepared = prepare(model(nodes, {"x": (1, 3, 2, 2)}, {"y": (1, 2, 2, 2)}, tensors))
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Mul", "Add"]
