"""What an element type means for a result: computed wide, rounded once at each op."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.converters.coreml_reference import run_package

FORMULAS = {
    "exp": np.exp,
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0),
    "tanh": np.tanh,
    "round": np.round,
    "square": np.square,
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_elementwise_results_are_the_formula_rounded_once(writer, rng, dtype):
    x = np.concatenate([rng.normal(size=200) * 3, [0.5, 1.5, -2.5, 0, -80, 80]]).astype(dtype)
    writer.input("x", dtype, x.shape)
    for name in FORMULAS:
        writer.op(name, f"out_{name}", dtype, x.shape, x="x")
        writer.output(f"out_{name}", dtype, x.shape)
    outputs = run_package(writer.save(), {"x": x})
    step = np.finfo(dtype).eps
    for name, formula in FORMULAS.items():
        with np.errstate(over="ignore"):
            want = formula(x.astype(np.float64)).astype(dtype)
        assert outputs[f"out_{name}"].dtype == dtype
        # float32 kernels round a few times inside; float16 results may differ from the exact one in their last place only.
        np.testing.assert_allclose(
            outputs[f"out_{name}"], want, rtol=(4 if dtype == np.float32 else 1) * step, atol=np.finfo(dtype).tiny, err_msg=name
        )


def test_a_half_precision_convolution_accumulates_in_single(writer, onnx_op, rng):
    x, weight = rng.normal(size=(1, 64, 6, 6)).astype(np.float16), rng.normal(size=(3, 64, 3, 3)).astype(np.float16)
    writer.input("x", np.float16, x.shape)
    pad_type = writer.const("valid", "valid")
    writer.op("conv", "y", np.float16, (1, 3, 4, 4), x="x", weight=writer.const("w", weight), pad_type=pad_type)
    writer.output("y", np.float16, (1, 3, 4, 4))
    (want,) = onnx_op("Conv", {"x": x.astype(np.float32), "w": weight.astype(np.float32)})
    value = run_package(writer.save(), {"x": x})["y"]
    np.testing.assert_allclose(value, want.astype(np.float16), rtol=np.finfo(np.float16).eps, atol=1e-3)


def test_each_op_rounds_before_the_next(writer):
    """2048 + 1 is 2048 in float16, so 2048 + 1 + 1 is too; rounded at the end only it would be 2050."""
    writer.input("x", np.float16, (1,))
    writer.op("add", "a", np.float16, (1,), x="x", y=np.ones(1, np.float16))
    writer.op("add", "b", np.float16, (1,), x="a", y=np.ones(1, np.float16))
    writer.output("b", np.float16, (1,))
    assert run_package(writer.save(), {"x": np.array([2048], np.float16)})["b"].tolist() == [2048]


def test_half_precision_overflows_to_infinity(writer):
    writer.input("x", np.float16, (2,))
    writer.op("mul", "y", np.float16, (2,), x="x", y=np.full(2, 2, np.float16))
    writer.output("y", np.float16, (2,))
    assert run_package(writer.save(), {"x": np.array([60000, 1], np.float16)})["y"].tolist() == [math.inf, 2]
