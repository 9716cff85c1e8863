from __future__ import annotations

import numpy as np
import pytest

from edgekit.converters.coreml_reference import run_package
from edgekit.converters.coreml_reference._registry import find_op
from edgekit.errors import EngineError


def kernel(name):
    return find_op(name).kernel


def packed(values, bits):
    """Elements of ``bits`` bits from each byte's least significant bit on, by arithmetic on one large integer."""
    total = sum(int(value) << (bits * index) for index, value in enumerate(values))
    return np.frombuffer(total.to_bytes((len(values) * bits + 7) // 8, "little"), np.uint8)


def test_affine_dequantize_by_tensor_and_by_channel(rng):
    data = rng.integers(-128, 128, size=(3, 4)).astype(np.int8)
    scale, zero = np.array([0.5, 0.25, 2], np.float32), np.array([1, -128, 127], np.int8)
    want = scale[:, None].astype(np.float64) * (data.astype(np.float64) - zero[:, None])
    np.testing.assert_allclose(kernel("constexpr_affine_dequantize")(data, zero, scale, np.int32(0)), want)
    np.testing.assert_allclose(kernel("dequantize")(data, scale[:1].reshape(())), data * 0.5)
    with pytest.raises(ValueError, match="without an axis"):
        kernel("dequantize")(data, scale)


def test_quantize_rounds_to_even_and_saturates():
    x = np.array([0.25, 0.75, 1.25, -0.25, 500, -500], np.float32)
    assert kernel("quantize")(x, np.float32(0.5), "int8").tolist() == [0, 2, 2, 0, 127, -128]
    assert kernel("quantize")(x, np.float32(0.5), "uint8", np.uint8(3)).tolist() == [3, 5, 5, 3, 255, 0]
    columns = kernel("quantize")(np.ones((2, 3), np.float32), np.array([0.5, 0.25], np.float32), "int8", None, np.int32(0))
    assert columns.tolist() == [[2] * 3, [4] * 3]


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_palettes(rng, bits):
    table = rng.normal(size=1 << bits).astype(np.float16)
    picks = rng.integers(0, 1 << bits, size=35)
    value = kernel("constexpr_lut_to_dense")(packed(picks, bits), table, np.array([5, 7], np.uint32))
    np.testing.assert_array_equal(value, table[picks].reshape(5, 7))


def test_palettes_by_group_and_of_vectors():
    # The two cases that the definition of iOS 18 works out by hand.
    picks = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    tables = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float16).reshape(2, 1, 4, 1)
    assert kernel("constexpr_lut_to_dense")(picks, tables).tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    picks = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    vectors = np.array([1, 2, 3, 4, 5, 6], np.int8).reshape(1, 1, 1, 2, 3)
    down = kernel("constexpr_lut_to_dense")(picks, vectors, vector_axis=np.int32(1))
    assert down[0].tolist() == [[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]]
    across = kernel("constexpr_lut_to_dense")(picks, vectors, vector_axis=np.int32(2))
    assert across[0].tolist() == [[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]]


def test_sparse_constants(rng):
    dense = rng.normal(size=(5, 7)).astype(np.float32) * (rng.random((5, 7)) > 0.6)
    mask = packed((dense.reshape(-1) != 0).astype(int), 1)
    np.testing.assert_array_equal(kernel("constexpr_sparse_to_dense")(dense[dense != 0], mask, np.array([5, 7])), dense)
    np.testing.assert_array_equal(kernel("constexpr_sparse_to_dense")(dense[dense != 0], (dense != 0).astype(np.uint8)), dense)
    with pytest.raises(ValueError, match="set bits"):
        kernel("constexpr_sparse_to_dense")(dense[dense != 0][1:], mask, np.array([5, 7]))


def test_blockwise_scales(rng):
    data, scale, offset = rng.integers(-8, 8, size=(4, 6)).astype(np.int8), rng.random((2, 3)).astype(np.float32), np.ones((2, 3), np.int8)
    want = [[scale[row // 2, column // 2] * (float(data[row, column]) - 1) for column in range(6)] for row in range(4)]
    np.testing.assert_allclose(kernel("constexpr_blockwise_shift_scale")(data, scale, offset), want, rtol=1e-6)


def test_compressed_constants_are_made_when_the_package_is_opened(writer):
    writer.input("x", np.float32, (2,))
    writer.const("half", np.array([0.5, 1.5], np.float16))
    writer.op("constexpr_cast", "w", np.float32, (2,), source_val="half", output_dtype=writer.const("t", "fp32"))
    writer.op("mul", "y", np.float32, (2,), x="x", y="w")
    writer.output("y", np.float32, (2,))
    assert run_package(writer.save(), {"x": np.array([2, 4], np.float32)})["y"].tolist() == [1, 6]


def test_a_compressed_constant_must_not_depend_on_an_input(writer):
    writer.input("x", np.float16, (2,))
    writer.op("constexpr_cast", "w", np.float32, (2,), source_val="x", output_dtype=writer.const("t", "fp32"))
    writer.output("w", np.float32, (2,))
    with pytest.raises(EngineError, match="input source_val is 'x', which nothing computed before"):
        run_package(writer.save(), {"x": np.zeros(2, np.float16)})
