"""Constant indices and weights of Resize against ONNX Runtime, for attributes drawn at random; no TensorFlow needed."""

from __future__ import annotations

import numpy as np
import onnxruntime
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._graph import Node
from edgekit.converters._resampling import ResampledAxis, axis_matrix, source_positions

MODES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def by_onnx_runtime(x: np.ndarray, scale: float | None, result: int, attrs: dict[str, object]) -> np.ndarray:
    given_sizes = scale is None
    values = np.asarray([*x.shape[:3], result], np.int64) if given_sizes else np.asarray([1, 1, 1, scale], np.float32)
    node = helper.make_node("Resize", ["x", "", "", "v"] if given_sizes else ["x", "", "v"], ["y"], **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@given(
    size=st.integers(1, 17),
    result=st.integers(1, 40),
    scale=st.none() | st.sampled_from([0.3, 0.5, 0.6, 0.75, 1.25, 1.5, 1.7, 2.0, 2.5, 3.0]),
    coordinates=st.sampled_from(MODES),
    nearest=st.sampled_from(NEAREST),
    mode=st.sampled_from(("nearest", "linear", "cubic")),
    antialias=st.booleans(),
    exclude=st.booleans(),
)
def test_one_axis_as_onnx_runtime_does(size, result, scale, coordinates, nearest, mode, antialias, exclude):
    if scale is not None:
        result = int(np.floor(np.float32(size) * np.float32(scale)))
        assume(result >= 1)
        assume(result != size)  # ONNX Runtime then copies, whatever the scale says
    axis = ResampledAxis(size, result, scale or result / size)
    if mode == "nearest":
        # A point that only rounding puts beside the middle of two elements goes where the last bit of float32 sends it.
        twice = 2 * source_positions(coordinates, axis).astype(np.float64)
        assume(not np.any((twice != np.round(twice)) & (np.abs(twice - np.round(twice)) < 1e-5)))
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    if mode != "nearest":
        attrs["antialias"] = int(antialias)
    if mode == "cubic":
        attrs["exclude_outside"] = int(exclude)
    x = np.random.default_rng(size).standard_normal((1, 1, 4, size)).astype(np.float32)
    want = by_onnx_runtime(x, scale, result, attrs)[0, 0]
    matrix = axis_matrix(Node("Resize", "r", ("x",), ("y",), attrs, 19), axis)
    got = x[0, 0][:, matrix] if matrix.ndim == 1 else x[0, 0] @ matrix.astype(np.float32)
    assert got.shape == want.shape
    assert np.allclose(got, want, atol=1e-4)
