from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import EngineError

pytestmark = pytest.mark.slow  # importing the builder costs seconds

UNARY = {
    "abs": np.abs,
    "acos": lambda x: np.arccos(x / 4),
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": np.vectorize(math.erf),
    "exp": np.exp,
    "floor": np.floor,
    "round": np.round,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sign": np.sign,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sin": np.sin,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "square": lambda x: x * x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
}


def test_unary_ops_are_their_formulas(packages, rng):
    x = (rng.normal(size=(3, 5)) * 2).astype(np.float32)
    x[0, 0], x[0, 1] = 0.5, -2.5  # ties of round

    def body(mb, x):
        return [mb.identity(x=getattr(mb, name)(x=mb.mul(x=x, y=np.float32(0.25)) if name == "acos" else x)) for name in UNARY]

    x = np.clip(x, -3.9, 3.9)
    for name, value in zip(UNARY, packages.run({"x": x}, body), strict=True):
        np.testing.assert_allclose(value, UNARY[name](x.astype(np.float64)), rtol=2e-6, atol=2e-6, err_msg=name)


def test_half_precision_is_computed_wide_and_rounded_at_every_op(packages, rng):
    x = rng.normal(size=(4, 7)).astype(np.float16)
    y = rng.normal(size=(7,)).astype(np.float16)

    def body(mb, x, y):
        product = mb.mul(x=x, y=y)
        return product, mb.add(x=product, y=x), mb.exp(x=x), mb.sqrt(x=mb.abs(x=x))

    product, total, power, root = packages.run({"x": x, "y": y}, body)
    assert {array.dtype for array in (product, total, power, root)} == {np.dtype(np.float16)}
    wide, other = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_array_equal(product, (wide * other).astype(np.float16))
    np.testing.assert_array_equal(total, ((wide * other).astype(np.float16).astype(np.float64) + wide).astype(np.float16))
    np.testing.assert_allclose(power, np.exp(wide).astype(np.float16), rtol=1e-3)  # exp is off by at most one rounding
    np.testing.assert_array_equal(root, np.sqrt(np.abs(wide)).astype(np.float16))


def test_half_precision_overflows_to_infinity(packages):
    x = np.array([60000, 1], np.float16)
    (doubled,) = packages.run({"x": x}, lambda mb, x: mb.add(x=x, y=x))
    assert doubled.tolist() == [math.inf, 2.0]


def test_parametrised_activations(packages, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * 3
    alpha = np.array([0.1, 0.2, 0.3], np.float32)
    f = np.float32

    def body(mb, x):
        return [
            mb.leaky_relu(x=x, alpha=f(0.2)),
            mb.prelu(x=x, alpha=alpha),
            mb.elu(x=x, alpha=f(1.5)),
            mb.clamped_relu(x=x, alpha=f(0.3), beta=f(1.0)),
            mb.sigmoid_hard(x=x, alpha=f(0.2), beta=f(0.5)),
            mb.linear_activation(x=x, alpha=f(2), beta=f(-1)),
            mb.scaled_tanh(x=x, alpha=f(1.7), beta=f(0.6)),
            mb.thresholded_relu(x=x, alpha=f(1.0)),
            mb.clip(x=x, alpha=f(-1), beta=f(2)),
            mb.threshold(x=x, alpha=f(0.5)),
            mb.gelu(x=x, mode="EXACT"),
            mb.gelu(x=x, mode="TANH_APPROXIMATION"),
            mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
            mb.softmax(x=x, axis=1),
            mb.softplus_parametric(x=x, alpha=alpha, beta=alpha + 1),
            mb.inverse(x=x, epsilon=f(1e-3)),
            mb.rsqrt(x=mb.square(x=x), epsilon=f(1e-3)),
            mb.log(x=mb.square(x=x), epsilon=f(1e-3)),
        ]

    d = x.astype(np.float64)
    a = alpha.astype(np.float64)[:, None, None]
    shifted = np.exp(d - d.max(axis=1, keepdims=True))
    expected = [
        np.where(d > 0, d, 0.2 * d),
        np.where(d > 0, d, a * d),
        np.where(d > 0, d, 1.5 * (np.exp(d) - 1)),
        np.minimum(1.0, np.where(d > 0, d, 0.3 * d)),
        np.clip(0.2 * d + 0.5, 0, 1),
        2 * d - 1,
        1.7 * np.tanh(0.6 * d),
        np.where(d >= 1, d, 0),
        np.clip(d, -1, 2),
        np.maximum(d, 0.5),
        0.5 * d * (1 + np.vectorize(math.erf)(d / math.sqrt(2))),
        0.5 * d * (1 + np.tanh(math.sqrt(2 / math.pi) * (d + 0.044715 * d**3))),
        d / (1 + np.exp(-1.702 * d)),
        shifted / shifted.sum(axis=1, keepdims=True),
        a * np.log1p(np.exp((a + 1) * d)),
        1 / (d + 1e-3),
        1 / np.sqrt(d * d + 1e-3),
        np.log(d * d + 1e-3),
    ]
    for index, (value, want) in enumerate(zip(packages.run({"x": x}, body), expected, strict=True)):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5, err_msg=str(index))


def test_binary_ops_broadcast(packages, rng):
    x = rng.normal(size=(2, 3, 4)).astype(np.float32) + 5
    y = rng.normal(size=(3, 1)).astype(np.float32) + 3
    names = ["add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum"]
    values = packages.run({"x": x, "y": y}, lambda mb, x, y: [getattr(mb, name)(x=x, y=y) for name in names])
    a, b = x.astype(np.float64), y.astype(np.float64)
    expected = [a + b, a - b, a * b, a / b, a // b, a % b, a**b, np.maximum(a, b), np.minimum(a, b)]
    for name, value, want in zip(names, values, expected, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5, err_msg=name)


def test_integer_arithmetic_floors_and_takes_the_divisors_sign(packages):
    x = np.array([7, -7, 7, -7], np.int32)
    y = np.array([2, 2, -2, -2], np.int32)
    quotient, rest = packages.run({"x": x, "y": y}, lambda mb, x, y: (mb.floor_div(x=x, y=y), mb.mod(x=x, y=y)))
    assert quotient.tolist() == [3, -4, -4, 3]
    assert rest.tolist() == [1, 1, -1, -1]
    assert quotient.dtype == np.int32


def test_undocumented_integer_division_is_refused(packages):
    x = np.array([7, 8], np.int32)
    path = packages.save({"x": x}, lambda mb, x: mb.real_div(x=x, y=np.array([2, 2], np.int32)))
    from edgekit.converters.coreml_reference import run_package

    with pytest.raises(EngineError, match=r"real_div .*remainder"):
        run_package(path, {"x": x})
    assert run_package(path, {"x": np.array([6, -8], np.int32)})["real_div_0"].tolist() == [3, -4]


def test_comparisons_logic_and_select(packages, rng):
    x = rng.integers(0, 3, size=(4, 4)).astype(np.int32)
    y = rng.integers(0, 3, size=(4, 4)).astype(np.int32)
    names = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]

    def body(mb, x, y):
        results = [mb.cast(x=getattr(mb, name)(x=x, y=y), dtype="int32") for name in names]
        less, equal = mb.less(x=x, y=y), mb.equal(x=x, y=y)
        truths = [mb.logical_and(x=less, y=equal), mb.logical_or(x=less, y=equal), mb.logical_xor(x=less, y=equal), mb.logical_not(x=less)]
        results += [mb.cast(x=value, dtype="int32") for value in truths]
        return [*results, mb.select(cond=less, a=x, b=y)]

    values = packages.run({"x": x, "y": y}, body)
    expected = [x == y, x != y, x < y, x <= y, x > y, x >= y, np.zeros_like(x), x <= y, x <= y, x >= y, np.minimum(x, y)]
    for value, want in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, want.astype(np.int32))


def test_cast_truncates_towards_zero_and_rounds_halves_to_even(packages):
    x = np.array([1.9, -1.9, 0.0, 2049.0], np.float32)

    def body(mb, x):
        return mb.cast(x=x, dtype="int32"), mb.cast(x=x, dtype="fp16"), mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="int32")

    whole, half, truth = packages.run({"x": x}, body)
    assert whole.tolist() == [1, -1, 0, 2049]
    assert half.tolist() == np.array([1.9, -1.9, 0.0, 2048.0], np.float16).tolist()
    assert truth.tolist() == [1, 1, 0, 1]
