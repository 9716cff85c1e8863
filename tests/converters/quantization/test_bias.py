"""Bias correction: the mean of what a layer writes stays what it was."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from edgekit.converters.quantization import collect, make_plan, prepare, write_quantised
from edgekit.converters.quantization._bias import MeanMaps
from edgekit.converters.quantization._scheme import _COREML, _ONNXRUNTIME, _TENSORRT

from .models import cnn, model, run, samples

_WEIGHTS_ONLY = replace(_COREML, activations=False)
LAYERS = {
    "padded": ("Conv", (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "asymmetric, strided": ("Conv", (8, 3, 3, 2), {"pads": [2, 0, 1, 1], "strides": [2, 3]}),
    "dilated": ("Conv", (8, 3, 3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "depthwise": ("Conv", (3, 1, 5, 5), {"pads": [2, 2, 2, 2], "group": 3}),
    "two groups": ("Conv", (4, 2, 1, 1), {"group": 2}),
    "gemm": ("Gemm", (12, 5), {}),
    "gemm, transposed": ("Gemm", (5, 12), {"transB": 1}),
}


def layer(kind):
    """One layer with a bias whose input has a mean far from zero, and its samples."""
    op, shape, attributes = LAYERS[kind]
    rng = np.random.default_rng(3)
    channels = {"Conv": shape[1] * attributes.get("group", 1), "Gemm": 12}[op]
    outputs = shape[0] if op == "Conv" or "transB" in attributes else shape[1]
    node = helper.make_node(op, ["x", "w", "b"], ["y"], "layer", **attributes)
    tensors = {"w": rng.standard_normal(shape).astype(np.float32), "b": rng.standard_normal(outputs).astype(np.float32)}
    size = (1, channels, 9, 8) if op == "Conv" else (4, channels)
    given = [
        {"x": (rng.standard_normal(size) + np.arange(channels).reshape(size[1:2] + (1,) * (len(size) - 2))).astype(np.float32)}
        for _ in range(5)
    ]
    return model([node], {"x": size}, {"y": ("a", "b", "c", "d")[: len(size)]}, tensors), given


def mean(outputs):
    stacked = np.stack([each["y"] for each in outputs]).astype(np.float64)
    return stacked.mean(axis=tuple(axis for axis in range(stacked.ndim) if axis != 2))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_every_channel_is_the_float_models(kind):
    proto, given = layer(kind)
    calibration = collect(proto, given)
    wanted = mean(run(proto, given))
    plain = mean(run(write_quantised(proto, make_plan(proto, replace(calibration, means={}), _WEIGHTS_ONLY, "minmax")), given))
    corrected = mean(run(write_quantised(proto, make_plan(proto, calibration, _WEIGHTS_ONLY, "minmax")), given))
    assert np.abs(plain - wanted).max() > 1e-3
    assert np.abs(corrected - wanted).max() < 2e-5


def test_integer_biases_are_corrected_too():
    proto, given = layer("depthwise")
    scheme = replace(_ONNXRUNTIME, weight_bits=7)
    calibration = collect(proto, given)
    wanted = mean(run(proto, given))
    errors = [
        np.abs(mean(run(write_quantised(proto, make_plan(proto, each, scheme, "minmax")), given)) - wanted).max()
        for each in (replace(calibration, means={}), calibration)
    ]
    assert errors[1] < errors[0] / 2


def test_a_convolution_without_a_bias_gets_one_to_correct():
    proto = cnn()
    assert len(proto.graph.node[2].input) == 2
    prepared = prepare(proto)
    plan = make_plan(prepared, collect(prepared, samples(proto, 4)), _TENSORRT, "minmax")
    written = write_quantised(prepared, plan)
    node = next(node for node in written.graph.node if node.name == "conv1")
    assert node.input[2] == "conv1/bias_corrected"


def test_a_layer_that_stays_in_float_keeps_its_bias():
    prepared = prepare(cnn())
    plan = make_plan(prepared, collect(prepared, samples(prepared, 4)), _TENSORRT, "minmax")
    written = write_quantised(prepared, plan, ["conv0"])
    inputs = {node.name: list(node.input) for node in written.graph.node}
    assert inputs["conv0"][2] == "b0"
    assert inputs["conv2"][2] == "conv2/bias_corrected"


def test_what_pads_by_itself_is_left_alone():
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer", auto_pad="SAME_UPPER")
    tensors = {"w": np.ones((2, 3, 3, 3), np.float32), "b": np.zeros(2, np.float32)}
    proto = model([node], {"x": (1, 3, 6, 6)}, {"y": (1, 2, 6, 6)}, tensors)
    assert collect(proto, samples(proto, 2)).means == {}


def test_means_of_samples_of_several_sizes():
    maps = MeanMaps()
    for value, width in ((1.0, 4), (3.0, 4), (5.0, 6), (9.0, 8)):
        maps.add(np.full((1, 2, width), value, np.float32))
    assert [(float(found.mean()), count) for found, count in maps.means()] == [(2.0, 2), (5.0, 1)]
