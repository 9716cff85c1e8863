from __future__ import annotations

import numpy as np
import pytest

from edgekit.converters.coreml_reference import _program  # noqa: F401 - registers the kernels
from edgekit.converters.coreml_reference._registry import find_op, op


def kernel(name):
    return find_op(name).kernel


def ints(*values):
    return np.array(values, np.int32)


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 4, 6, 3)).astype(np.float32)


def test_reshape_inherits_from_the_right(x):
    assert kernel("reshape")(x, ints(0, -1, 3)).shape == (4, 12, 3)
    assert kernel("reshape")(np.zeros((2, 50)), ints(1, 0, -1, 0)).shape == (1, 1, 2, 50)  # the definition's own example
    with pytest.raises(ValueError, match="reshape"):
        kernel("reshape")(x, ints(5, 5))


def test_shape_changes(x):
    assert kernel("expand_dims")(x, ints(0, -1)).shape == (1, 2, 4, 6, 3, 1)
    assert kernel("squeeze")(x[:, :1], ints(0, 1)).shape == (2, 6, 3)
    assert kernel("squeeze")(x[:1, :1]).shape == (6, 3)
    assert kernel("flatten2d")(x, np.int32(-1)).shape == (48, 3)
    assert kernel("shape")(x).tolist() == [2, 4, 6, 3]
    np.testing.assert_array_equal(kernel("transpose")(x, ints(0, -1, 1, 2)), np.moveaxis(x, 3, 1))
    assert kernel("reshape_like")(x, [x[:, :, 0], x[0]], [ints(0), ints(1)], [ints(2), ints(0)], [False, True]).shape == (2, 4, 6, 3)


def test_joining_and_cutting(x):
    a, b = x[:, :1], x[:, 1:]
    np.testing.assert_array_equal(kernel("concat")([a, b], ints(-3)), x)
    np.testing.assert_array_equal(kernel("concat")([x[0], x[1]], ints(0), interleave=True), x.swapaxes(0, 1).reshape(8, 6, 3))
    np.testing.assert_array_equal(kernel("concat")([np.float32(1), np.float32(2)], ints(0)), [1, 2])
    np.testing.assert_array_equal(kernel("stack")([x, x], ints(-1)), np.stack([x, x], -1))
    assert [part.shape[1] for part in kernel("split")(x, ints(1), split_sizes=ints(1, 3))] == [1, 3]
    assert [part.shape[2] for part in kernel("split")(x, ints(2), num_splits=ints(3))] == [2, 2, 2]
    with pytest.raises(ValueError, match="split sizes"):
        kernel("split")(x, ints(1), split_sizes=ints(1, 2))


def test_slices(x):
    off, on = False, True
    slice_by_index = kernel("slice_by_index")
    np.testing.assert_array_equal(slice_by_index(x, ints(0, 1, -2, 0), ints(2, 4, 6, 3), ints(1, 2, 1, 1)), x[:, 1:4:2, -2:])
    np.testing.assert_array_equal(
        slice_by_index(x, ints(0, 9, 0, 0), ints(1, 9, -1, 9), None, np.array([off, on, off, off]), np.array([off, on, off, off])),
        x[:1, :, :-1],
    )
    np.testing.assert_array_equal(
        slice_by_index(x, ints(1, 0, 5, -1), ints(0, 4, 0, 0), ints(1, 1, -2, 1), squeeze_mask=np.array([on, off, off, on])),
        x[1, :, 5:0:-2, -1],
    )
    np.testing.assert_array_equal(kernel("slice_by_size")(x, ints(0, -2, 1, 0), ints(2, 2, -1, 1)), x[:, 2:, 1:, :1])
    with pytest.raises(ValueError, match="on a dimension of 6"):
        kernel("slice_by_size")(x, ints(0, 0, 5, 0), ints(2, 2, 3, 1))
    update = kernel("slice_update")(x, np.zeros((2, 1, 6, 3), np.float32), ints(0, 2, 0, 0), ints(2, 3, 6, 3))
    assert not update[:, 2].any()
    np.testing.assert_array_equal(update[:, [0, 1, 3]], x[:, [0, 1, 3]])
    windows = kernel("sliding_windows")(x, ints(2), ints(3), ints(2))
    np.testing.assert_array_equal(windows, np.stack([x[:, :, start : start + 3] for start in (0, 2)], axis=2))
    np.testing.assert_array_equal(kernel("crop")(x, ints(1, 2), ints(0, 1)), x[:, :, 1:4, :2])


def test_orders(x):
    np.testing.assert_array_equal(kernel("reverse")(x, ints(1, -1)), x[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(kernel("reverse")(x), x[::-1, ::-1, ::-1, ::-1])
    turned = kernel("reverse_sequence")(x, ints(3, 1), np.int32(1), np.int32(0))
    np.testing.assert_array_equal(turned[0], np.concatenate([x[0, 2::-1], x[0, 3:]]))
    np.testing.assert_array_equal(turned[1], x[1])
    row = ints(3, 1, 3, 2)
    values, places = kernel("topk")(row, np.int32(3), np.int32(0))
    assert (values.tolist(), places.tolist()) == ([3, 3, 2], [0, 2, 3])
    values, places = kernel("topk")(row, np.int32(2), np.int32(0), ascending=True, output_indices_dtype="uint16")
    assert (values.tolist(), places.tolist(), places.dtype) == ([1, 2], [1, 3], np.uint16)
    np.testing.assert_array_equal(kernel("argsort")(x, np.int32(2), ascending=True), np.argsort(x, 2))
    np.testing.assert_array_equal(kernel("argsort")(x, np.int32(2)), np.argsort(-x, 2))


@pytest.mark.parametrize(("mode", "onnx_mode"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")])
def test_pad_equals_onnx_runtime(onnx_op, x, mode, onnx_mode):
    (want,) = onnx_op(
        "Pad", {"x": x, "pads": np.array([0, 0, 1, 0, 0, 0, 2, 2], np.int64), "value": np.array(0.5, np.float32)}, mode=onnx_mode
    )
    np.testing.assert_array_equal(kernel("pad")(x, ints(1, 2, 0, 2), mode, np.float32(0.5)), want)


def test_pad_refuses_to_reflect_too_far(x):
    with pytest.raises(ValueError, match="reflect"):
        kernel("pad")(x, ints(0, 3), "reflect")


@pytest.mark.parametrize(("name", "mode"), [("depth_to_space", "DCR"), ("pixel_shuffle", "CRD")])
def test_depth_to_space_equals_onnx_runtime(onnx_op, rng, name, mode):
    x = rng.normal(size=(2, 12, 3, 4)).astype(np.float32)
    (want,) = onnx_op("DepthToSpace", {"x": x}, blocksize=2, mode=mode)
    np.testing.assert_array_equal(kernel(name)(x, np.int32(2)), want)
    back = {"depth_to_space": "space_to_depth", "pixel_shuffle": "pixel_unshuffle"}[name]
    np.testing.assert_array_equal(kernel(back)(want, np.int32(2)), x)


def test_space_to_depth_equals_onnx_runtime(onnx_op, x):
    (want,) = onnx_op("SpaceToDepth", {"x": x[..., :2]}, blocksize=2)
    np.testing.assert_array_equal(kernel("space_to_depth")(x[..., :2], np.int32(2)), want)


def test_space_to_batch_gathers_each_phase_and_back(x):
    batches = kernel("space_to_batch")(x, ints(2, 3), np.array([[0, 0], [1, 2]]))
    padded = np.pad(x, [(0, 0), (0, 0), (0, 0), (1, 2)])
    want = np.concatenate([padded[:, :, row::2, column::3] for row in range(2) for column in range(3)])
    np.testing.assert_array_equal(batches, want)
    np.testing.assert_array_equal(kernel("batch_to_space")(batches, ints(2, 3), np.array([[0, 0], [1, 2]])), x)


def test_generated_tensors():
    np.testing.assert_array_equal(kernel("fill")(ints(2, 3), np.float16(1.5)), np.full((2, 3), 1.5, np.float16))
    assert kernel("fill")(ints(2)).dtype == np.float32
    np.testing.assert_array_equal(kernel("fill_like")(np.zeros((2, 1)), np.int32(7)), [[7], [7]])
    assert kernel("range_1d")(np.int32(8), np.int32(1), np.int32(3)).tolist() == [1, 4, 7]
    assert kernel("range_1d")(np.float32(0), np.float32(1), np.float32(-0.5)).tolist() == [1.0, 0.5]
    np.testing.assert_array_equal(kernel("tile")(np.array([[1, 2]]), ints(2, 2)), [[1, 2, 1, 2]] * 2)
    square = np.arange(1, 17).reshape(4, 4)
    np.testing.assert_array_equal(kernel("band_part")(square, np.int32(1), np.int32(0)), np.tril(square) - np.tril(square, -2))
    np.testing.assert_array_equal(kernel("band_part")(square, np.int32(0), np.int32(-1)), np.triu(square))
    assert kernel("non_zero")(square > 14).tolist() == [[3, 2], [3, 3]]
    hot = kernel("one_hot")(ints(2, 0), np.int32(3), np.int32(0), np.float32(5), np.float32(-1))
    assert hot.tolist() == [[-1, 5], [-1, -1], [5, -1]]
    with pytest.raises(ValueError, match="outside 0 to 2"):
        kernel("one_hot")(ints(3), np.int32(3))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum_equals_onnx_runtime(onnx_op, x, exclusive, reverse):
    (want,) = onnx_op("CumSum", {"x": x, "axis": np.array(2, np.int64)}, exclusive=int(exclusive), reverse=int(reverse))
    np.testing.assert_allclose(kernel("cumsum")(x, np.int32(2), exclusive, reverse), want, rtol=1e-5, atol=1e-5)


# Gather and scatter --------------------------------------------------------------------------------------------------------------------------


def test_gathers_equal_onnx_runtime(onnx_op, x, rng):
    picks = rng.integers(0, 6, size=(2, 5)).astype(np.int32)
    (want,) = onnx_op("Gather", {"x": x, "i": picks}, axis=2)
    np.testing.assert_array_equal(kernel("gather")(x, picks, opset=7, axis=np.int32(-2)), want)
    places = rng.integers(0, 6, size=(2, 4, 3, 3)).astype(np.int32)
    (want,) = onnx_op("GatherElements", {"x": x, "i": places}, axis=2)
    np.testing.assert_array_equal(kernel("gather_along_axis")(x, places, opset=7, axis=np.int32(2)), want)
    pairs = np.stack([rng.integers(0, 2, size=(3, 2)), rng.integers(0, 4, size=(3, 2))], axis=-1)
    (want,) = onnx_op("GatherND", {"x": x, "i": pairs})
    np.testing.assert_array_equal(kernel("gather_nd")(x, pairs, opset=7), want)
    (want,) = onnx_op("GatherND", {"x": x, "i": pairs[:2] % 4}, batch_dims=1)
    np.testing.assert_array_equal(kernel("gather_nd")(x, pairs[:2] % 4, opset=7, batch_dims=np.int32(1)), want)


def test_gather_with_batches_picks_inside_each(x, rng):
    picks = rng.integers(0, 6, size=(2, 5)).astype(np.int32)
    value = kernel("gather")(x, picks, opset=6, axis=np.int32(2), batch_dims=np.int32(1))
    np.testing.assert_array_equal(value, np.stack([x[0][:, picks[0]], x[1][:, picks[1]]]))


def test_negative_indices_are_for_before_ios_17(x):
    np.testing.assert_array_equal(kernel("gather")(x, ints(-1), opset=6), x[-1:])
    with pytest.raises(ValueError, match="index -1 to -1 where 0 to 1 is defined"):
        kernel("gather")(x, ints(-1), opset=7)
    with pytest.raises(ValueError, match="index 2 to 2"):
        kernel("gather")(x, ints(2), opset=6)


@pytest.mark.parametrize(("mode", "reduction"), [("update", "none"), ("add", "add"), ("mul", "mul"), ("max", "max"), ("min", "min")])
def test_scatters_equal_onnx_runtime(onnx_op, x, rng, mode, reduction):
    places = rng.permuted(np.broadcast_to(np.arange(6)[None, None, :, None], x.shape), axis=2)[:, :, :4].astype(np.int64)
    updates = rng.normal(size=places.shape).astype(np.float32)
    (want,) = onnx_op("ScatterElements", {"x": x, "i": places, "u": updates}, axis=2, reduction=reduction)
    np.testing.assert_allclose(kernel("scatter_along_axis")(x, places, updates, opset=7, axis=np.int32(2), mode=mode), want, rtol=1e-6)
    pairs = np.array([[0, 1], [1, 3], [1, 0]])
    updates = rng.normal(size=(3, 6, 3)).astype(np.float32)
    (want,) = onnx_op("ScatterND", {"x": x, "i": pairs, "u": updates}, reduction=reduction)
    np.testing.assert_allclose(kernel("scatter_nd")(x, pairs, updates, opset=7, mode=mode), want, rtol=1e-6)


def test_scatter_along_a_dimension():
    data, updates = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[5, 6, 7], [8, 9, 10]])
    # The definition's example, computed by hand: row 1 gets the first update, row 0 the second.
    assert kernel("scatter")(data, ints(1, 0), updates, opset=7).tolist() == [[9, 11, 13], [9, 11, 13]]
    assert kernel("scatter")(data, ints(1, 1), updates, opset=7, mode="sub").tolist() == [[1, 2, 3], [-9, -10, -11]]
    divided = kernel("scatter")(np.ones((2, 2), np.float32), ints(1), np.full((2, 1), 4, np.float32), opset=7, axis=np.int32(1), mode="div")
    assert divided.tolist() == [[1, 0.25], [1, 0.25]]
    with pytest.raises(ValueError, match="mode 'div'"):
        kernel("scatter")(data, ints(1, 0), updates, opset=7, mode="div")


def test_a_second_kernel_of_one_name_is_refused():
    with pytest.raises(ValueError, match="two kernels for 'relu'"):
        op("relu")(lambda x: x)
