"""OpenVINO: what it computes wrongly or does not take is lowered before it reads the model, and the rest is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from edgekit.converters._openvino_reading import read_for_openvino
from edgekit.errors import UnsupportedOperatorsError
from tests.converters.lowering.models import run, single

openvino = pytest.importorskip("openvino")
RNG = np.random.default_rng(7)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = {"x": floats(1, 1, 6, 6)}
CASES = {
    "scale is computed": ("DynamicQuantizeLinear", {"x": np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)}, {}, ("y", "s", "z"), {}),
    "cubic without what is outside": (
        "Resize",
        IMAGE,
        {"_roi": None, "k": np.array([1, 1, 1.5, 0.7], np.float32)},
        ("y",),
        {"mode": "cubic", "exclude_outside": 1},
    ),
    "antialiased": (
        "Resize",
        IMAGE,
        {"_roi": None, "k": np.array([1, 1, 0.6, 0.6], np.float32)},
        ("y",),
        {"mode": "linear", "antialias": 1},
    ),
    "last window behind the input": (
        "MaxPool",
        {"x": floats(1, 1, 2, 2)},
        {},
        ("y",),
        {"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1},
    ),
    "wrapped padding": ("Pad", IMAGE, {"p": np.array([0, 0, 1, 0, 0, 0, 2, 3])}, ("y",), {"mode": "wrap"}),
    "determinant": ("Det", {"x": floats(2, 3, 3)}, {}, ("y",), {}),
    "volume sampled": ("GridSample", {"x": floats(1, 2, 3, 4, 5)}, {"g": floats(1, 2, 2, 2, 3)}, ("y",), {"padding_mode": "border"}),
    "output is the input": ("Identity", {"x": floats(3)}, {}, ("y",), {}),
    "nothing to reduce": ("ReduceMax", {"x": np.empty((2, 0, 3), np.float32)}, {"a": np.array([1])}, ("y",), {"keepdims": 0}),
}


def answers(model, live):
    """Outputs by OpenVINO, and operators that were lowered."""
    read, lowered = read_for_openvino(model)
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(dict(live))
    return [np.array(results[index]) for index in range(len(compiled.outputs))], lowered.expanded


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_onnx_runtime(name):
    op, live, constants, outputs, attrs = CASES[name]
    model = single(op, live, constants, outputs, opset=22, **attrs)
    found, _ = answers(model, live)
    for want, got in zip(run(model, live), found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_what_openvino_takes_is_left_to_it():
    model = single("Resize", IMAGE, {"_roi": None, "k": np.array([1, 1, 2, 2], np.float32)}, mode="linear")
    assert answers(model, IMAGE)[1] == ()


def test_boxes_that_overlap_by_the_threshold_stay():
    """Two boxes with an overlap of exactly one half; ONNX drops what is above the threshold."""
    boxes = {"x": np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5]]], np.float32)}
    constants = {"s": np.array([[[0.9, 0.8]]], np.float32), "n": np.array([2]), "t": np.array([0.5], np.float32)}
    model = single("NonMaxSuppression", boxes, constants)
    found, _ = answers(model, boxes)
    np.testing.assert_array_equal(found[0], run(model, boxes)[0])
    assert len(found[0]) == 2


def test_a_node_that_nothing_helps_is_named():
    model = single("BitCast", {"x": floats(3)}, opset=26, to=TensorProto.INT32)
    with pytest.raises(UnsupportedOperatorsError, match=r"BitCast at 'BitCast_0' .*no conversion rule.*the bits of float32 as int32"):
        read_for_openvino(model)
