from __future__ import annotations

import numpy as np
import pytest

from edgekit.converters.coreml_reference import _program  # noqa: F401 - registers the kernels
from edgekit.converters.coreml_reference._registry import find_op

ONNX_NAMES = {
    "reduce_sum": "ReduceSum",
    "reduce_mean": "ReduceMean",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_l1_norm": "ReduceL1",
    "reduce_l2_norm": "ReduceL2",
    "reduce_sum_square": "ReduceSumSquare",
    "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp",
}


@pytest.mark.parametrize("name", ONNX_NAMES)
@pytest.mark.parametrize(("axes", "keep"), [([1], True), ([0, -1], False), (None, False)])
def test_reductions_equal_onnx_runtime(onnx_op, rng, name, axes, keep):
    x = rng.uniform(0.1, 2, size=(2, 3, 4)).astype(np.float32)
    inputs = {"x": x} if axes is None else {"x": x, "axes": np.array(axes, np.int64)}
    (want,) = onnx_op(ONNX_NAMES[name], inputs, keepdims=int(keep))
    value = find_op(name).kernel(x, None if axes is None else np.array(axes), keep)
    assert value.shape == want.shape
    np.testing.assert_allclose(value, want, rtol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("name", "onnx_name"), [("reduce_argmax", "ArgMax"), ("reduce_argmin", "ArgMin")])
def test_positions_equal_onnx_runtime(onnx_op, rng, name, onnx_name, keep):
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    (want,) = onnx_op(onnx_name, {"x": x}, axis=1, keepdims=int(keep))
    value = find_op(name).kernel(x, np.int32(1), keep, "uint16")
    assert value.dtype == np.uint16
    np.testing.assert_array_equal(value, want)


def test_log_sum_exp_of_large_and_of_no_mass_is_exact():
    x = np.array([[1000, 1000], [-np.inf, -np.inf]], np.float32)
    with np.errstate(divide="ignore"):
        value = find_op("reduce_log_sum_exp").kernel(x, np.array([1]))
    np.testing.assert_allclose(value, [1000 + np.log(2), -np.inf])


def test_a_half_precision_sum_is_accumulated_in_single(writer):
    """4096 times 1.0009765625: in float16 steps the sum would stall; rounded once it is 4100."""
    from edgekit.converters.coreml_reference import run_package

    writer.input("x", np.float16, (4096,))
    writer.op("reduce_sum", "y", np.float16, (1,), x="x", axes=np.array([0], np.int32), keep_dims=np.True_)
    writer.output("y", np.float16, (1,))
    x = np.full(4096, 1.0009765625, np.float16)
    stalled = np.float16(0)
    for item in x:
        stalled = np.float16(stalled + item)
    (value,) = run_package(writer.save(), {"x": x})["y"]
    assert value == np.float16(4100)
    assert stalled == np.float16(2048) or stalled < value
