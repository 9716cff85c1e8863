from __future__ import annotations

import numpy as np
import pytest

from edgekit.converters.coreml_reference import _program  # noqa: F401 - registers the kernels
from edgekit.converters.coreml_reference._registry import find_op


def kernel(name):
    return find_op(name).kernel


SIZES = [((4, 5), (8, 10)), ((4, 5), (7, 3)), ((3, 2), (1, 9)), ((6, 6), (3, 12)), ((1, 1), (3, 3))]


def onnx_resize(onnx_op, x, size, **attributes):
    (value,) = onnx_op(
        "Resize", {"x": x, "roi": None, "scales": None, "sizes": np.array([*x.shape[:2], *size], np.int64)}, opset=18, **attributes
    )
    return value


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize(
    ("mode", "transform"), [("STRICT_ALIGN_CORNERS", "align_corners"), ("DEFAULT", "asymmetric"), ("UNALIGN_CORNERS", "half_pixel")]
)
def test_bilinear_sampling_equals_onnx_runtime(onnx_op, rng, source, target, mode, transform):
    x = rng.normal(size=(2, 3, *source)).astype(np.float32)
    want = onnx_resize(onnx_op, x, target, mode="linear", coordinate_transformation_mode=transform)
    height, width = (np.int32(size) for size in target)
    np.testing.assert_allclose(kernel("resize_bilinear")(x, height, width, mode), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernel("resize")(x, np.array([1, *target]), np.uint32(2), "LINEAR", mode), want, rtol=1e-5, atol=1e-5)


def test_the_docstrings_examples_of_every_sampling_mode():
    x = np.array([[[0, 1]]], np.float32)
    expected = {
        "UNALIGN_CORNERS": [[0, 0.1, 0.5, 0.9, 1], [0, 0, 1 / 3, 2 / 3, 1, 1]],
        "STRICT_ALIGN_CORNERS": [[0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]],
        "ALIGN_CORNERS": [[0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]],
        "DEFAULT": [[0, 0.4, 0.8, 1, 1], [0, 1 / 3, 2 / 3, 1, 1, 1]],
        "OFFSET_CORNERS": [[0.1, 0.3, 0.5, 0.7, 0.9], [1 / 12, 0.25, 5 / 12, 7 / 12, 0.75, 11 / 12]],
    }
    for mode, rows in expected.items():
        for row in rows:
            value = kernel("resize_bilinear")(x, np.int32(1), np.int32(len(row)), mode)
            np.testing.assert_allclose(value[0, 0], row, atol=1e-6, err_msg=mode)
    one = {"ALIGN_CORNERS": 0.5, "STRICT_ALIGN_CORNERS": 0, "DEFAULT": 0, "OFFSET_CORNERS": 0.5, "UNALIGN_CORNERS": 0.5}
    for mode, value in one.items():
        np.testing.assert_allclose(kernel("resize_bilinear")(x, np.int32(1), np.int32(1), mode), [[[value]]], err_msg=mode)


@pytest.mark.parametrize(
    ("align", "transform"),
    [((True,), "align_corners"), ((False,), "half_pixel"), ((False, True), "half_pixel"), ((False, False), "asymmetric")],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 2, 3, 1.5])
def test_upsample_bilinear_equals_onnx_runtime(onnx_op, rng, align, transform, scale):
    x = rng.normal(size=(1, 2, 4, 6)).astype(np.float32)
    target = (int(4 * scale), int(6 * scale))
    want = onnx_resize(onnx_op, x, target, mode="linear", coordinate_transformation_mode=transform)
    np.testing.assert_allclose(kernel("upsample_bilinear")(x, scale, scale, *align), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_nearest_by_target_size_has_half_pixel_centres(rng, source, target):
    x = rng.normal(size=(2, 3, *source)).astype(np.float32)
    rows, columns = (np.floor((np.arange(out) + 0.5) * size / out).astype(int) for size, out in zip(source, target, strict=True))
    want = x[:, :, rows][:, :, :, columns]
    np.testing.assert_array_equal(kernel("resize_nearest_neighbor")(x, np.int32(target[0]), np.int32(target[1])), want)
    np.testing.assert_array_equal(kernel("resize")(x, np.array(target), np.uint32(2), "NEAREST_NEIGHBOR"), want)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_nearest_by_target_size_equals_tensorflow(rng, source, target):
    tensorflow = pytest.importorskip("tensorflow")
    x = rng.normal(size=(2, 3, *source)).astype(np.float32)
    want = tensorflow.raw_ops.ResizeNearestNeighbor(images=x.transpose(0, 2, 3, 1), size=target, half_pixel_centers=True).numpy()
    value = kernel("resize_nearest_neighbor")(x, np.int32(target[0]), np.int32(target[1]))
    np.testing.assert_array_equal(value, want.transpose(0, 3, 1, 2))


def test_upsample_nearest_repeats_pixels_and_refuses_what_is_open(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    value = kernel("upsample_nearest_neighbor")(x, np.int32(2), np.float32(3))
    np.testing.assert_array_equal(value, x.repeat(2, axis=2).repeat(3, axis=3))
    np.testing.assert_array_equal(kernel("upsample_nearest_neighbor")(x, 1.5, 1), x[:, :, [0, 0, 1, 2, 2, 3]])
    with pytest.raises(ValueError, match="not documented"):
        kernel("upsample_nearest_neighbor")(x, 1, 2.5 - 0.15)
    with pytest.raises(ValueError, match="not documented"):
        kernel("resize")(x, np.array([8, 8]), np.uint32(2), "NEAREST_NEIGHBOR", "ALIGN_CORNERS")


def test_resize_keeps_a_dimension_given_as_zero(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(kernel("resize")(x, np.array([0, 5]), np.uint32(2)), x)
