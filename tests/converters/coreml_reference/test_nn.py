from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.converters.coreml_reference import _program  # noqa: F401 - registers the kernels
from edgekit.converters.coreml_reference._registry import find_op

QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def kernel(name):
    return find_op(name).kernel


@st.composite
def convolutions(draw, *, transposed: bool = False):
    """Shapes of a convolution that has at least one window."""
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    depthwise = draw(st.booleans())
    inside, outside = (1, draw(st.integers(1, 2))) if depthwise else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    sizes, kernels, strides, dilations, pads = [], [], [], [], []
    for _ in range(rank):
        taps, gap, before, after = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
        reach = (taps - 1) * gap + 1
        least = max(1, reach - before - after) if not transposed else 1 + before + after
        sizes.append(draw(st.integers(least, least + 5)))
        kernels.append(taps)
        strides.append(draw(st.integers(1, 3)))
        dilations.append(gap)
        pads.append((before, after))
    return {
        "batch": draw(st.integers(1, 2)),
        "groups": groups,
        "inside": inside,
        "outside": outside,
        "sizes": sizes,
        "kernels": kernels,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def onnx_pads(pads):
    return [before for before, _ in pads] + [after for _, after in pads]


def mil_pads(pads):
    return np.array(pads, np.int32).reshape(-1)


@given(case=convolutions())
@QUICK
def test_conv_equals_onnx_runtime(onnx_op, case):
    rng = np.random.default_rng(case["seed"])
    x = rng.normal(size=(case["batch"], case["groups"] * case["inside"], *case["sizes"])).astype(np.float32)
    weight = rng.normal(size=(case["groups"] * case["outside"], case["inside"], *case["kernels"])).astype(np.float32)
    bias = rng.normal(size=weight.shape[0]).astype(np.float32) if case["bias"] else None
    (want,) = onnx_op(
        "Conv",
        {"x": x, "w": weight, "b": bias},
        strides=case["strides"],
        dilations=case["dilations"],
        pads=onnx_pads(case["pads"]),
        group=case["groups"],
    )
    value = kernel("conv")(
        x, weight, bias, np.array(case["strides"]), "custom", mil_pads(case["pads"]), np.array(case["dilations"]), np.int32(case["groups"])
    )
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)


@given(case=convolutions(transposed=True), extra=st.integers(0, 2))
@QUICK
def test_conv_transpose_equals_onnx_runtime(onnx_op, case, extra):
    rng = np.random.default_rng(case["seed"])
    rank = len(case["sizes"])
    x = rng.normal(size=(case["batch"], case["groups"] * case["inside"], *case["sizes"])).astype(np.float32)
    weight = rng.normal(size=(x.shape[1], case["outside"], *case["kernels"])).astype(np.float32)
    bias = rng.normal(size=case["groups"] * case["outside"]).astype(np.float32) if case["bias"] else None
    output_padding = [min(extra, stride - 1) for stride in case["strides"]]
    lengths = [
        (size - 1) * stride + (taps - 1) * gap + 1 - before - after + more
        for size, stride, taps, gap, (before, after), more in zip(
            case["sizes"], case["strides"], case["kernels"], case["dilations"], case["pads"], output_padding, strict=True
        )
    ]
    if min(lengths) < 1:
        return
    (want,) = onnx_op(
        "ConvTranspose",
        {"x": x, "w": weight, "b": bias},
        strides=case["strides"],
        dilations=case["dilations"],
        pads=onnx_pads(case["pads"]),
        output_padding=output_padding,
        group=case["groups"],
    )
    shape = np.array([x.shape[0], case["groups"] * case["outside"], *lengths], np.int32)
    value = kernel("conv_transpose")(
        x,
        weight,
        bias,
        mil_pads(case["pads"]),
        shape if any(output_padding) else None,
        "custom",
        np.array(case["strides"]),
        np.array(case["dilations"]),
        np.int32(case["groups"]),
    )
    assert rank == value.ndim - 2
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)


@given(case=convolutions(), ceil=st.booleans(), kind=st.sampled_from(["MaxPool", "AveragePool"]), counted=st.booleans())
@QUICK
def test_pools_equal_onnx_runtime(onnx_op, case, ceil, kind, counted):
    rng = np.random.default_rng(case["seed"])
    # Padding must be smaller than the window; ceil_mode needs it symmetric, and MIL drops a last window that starts in it only where there is padding.
    pads = [
        (min(before, taps - 1), min(before if ceil else after, taps - 1))
        for (before, after), taps in zip(case["pads"], case["kernels"], strict=True)
    ]
    strides = [min(stride, taps) if ceil else stride for stride, taps in zip(case["strides"], case["kernels"], strict=True)]
    sizes = [max(size, taps) for size, taps in zip(case["sizes"], case["kernels"], strict=True)]
    x = rng.normal(size=(case["batch"], 2, *sizes)).astype(np.float32)
    more = {"count_include_pad": int(counted)} if kind == "AveragePool" else {}
    (want,) = onnx_op(
        kind, {"x": x}, opset=19, kernel_shape=case["kernels"], strides=strides, pads=onnx_pads(pads), ceil_mode=int(ceil), **more
    )
    arguments = {
        "kernel_sizes": np.array(case["kernels"]),
        "strides": np.array(strides),
        "pad_type": "custom",
        "pad": mil_pads(pads),
        "ceil_mode": ceil,
    }
    if kind == "AveragePool":
        arguments["exclude_padding_from_average"] = not counted
    value = kernel("max_pool" if kind == "MaxPool" else "avg_pool")(x, **arguments)
    assert value.shape == want.shape
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pad_type", "auto_pad"), [("same", "SAME_UPPER"), ("same_lower", "SAME_LOWER"), ("valid", "VALID")])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("taps", [2, 3])
def test_named_paddings_equal_onnx_runtime(onnx_op, rng, pad_type, auto_pad, size, taps):
    x = rng.normal(size=(1, 3, size, size)).astype(np.float32)
    weight = rng.normal(size=(4, 3, taps, taps)).astype(np.float32)
    (want,) = onnx_op("Conv", {"x": x, "w": weight}, strides=[2, 2], auto_pad=auto_pad)
    np.testing.assert_allclose(kernel("conv")(x, weight, strides=np.array([2, 2]), pad_type=pad_type), want, rtol=1e-4, atol=1e-4)
    (want,) = onnx_op("MaxPool", {"x": x}, kernel_shape=[taps, taps], strides=[2, 2], auto_pad=auto_pad)
    np.testing.assert_array_equal(kernel("max_pool")(x, np.array([taps, taps]), pad_type, np.array([2, 2])), want)
    (want,) = onnx_op("LpPool", {"x": x}, kernel_shape=[taps, taps], strides=[2, 2], auto_pad=auto_pad, p=2)
    np.testing.assert_allclose(kernel("l2_pool")(x, np.array([taps, taps]), pad_type, np.array([2, 2])), want, rtol=1e-5)


def test_a_convolution_in_several_pieces_equals_one_in_one(monkeypatch, rng):
    from edgekit.converters.coreml_reference import _nn

    x = rng.normal(size=(2, 4, 9, 11)).astype(np.float32)
    weight = rng.normal(size=(6, 2, 3, 3)).astype(np.float32)
    whole = kernel("conv")(x, weight, groups=np.int32(2))
    monkeypatch.setattr(_nn, "_COLUMN_BYTES", 4000)
    np.testing.assert_allclose(kernel("conv")(x, weight, groups=np.int32(2)), whole, rtol=1e-6)


def test_norms_equal_onnx_runtime(onnx_op, rng):
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    gamma, beta, mean = (rng.normal(size=3).astype(np.float32) for _ in range(3))
    variance = rng.uniform(0.5, 2, size=3).astype(np.float32)
    (want,) = onnx_op("BatchNormalization", {"x": x, "g": gamma, "b": beta, "m": mean, "v": variance}, epsilon=1e-3)
    np.testing.assert_allclose(kernel("batch_norm")(x, mean, variance, gamma, beta, np.float32(1e-3)), want, rtol=1e-5, atol=1e-6)
    (want,) = onnx_op("InstanceNormalization", {"x": x, "g": gamma, "b": beta}, epsilon=1e-3)
    np.testing.assert_allclose(kernel("instance_norm")(x, gamma, beta, np.float32(1e-3)), want, rtol=1e-4, atol=1e-5)
    scale, shift = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    (want,) = onnx_op("LayerNormalization", {"x": x, "g": scale, "b": shift}, axis=2, epsilon=1e-3)
    np.testing.assert_allclose(kernel("layer_norm")(x, np.array([-2, -1]), scale, shift, np.float32(1e-3)), want, rtol=1e-4, atol=1e-5)
    (want,) = onnx_op("LRN", {"x": x}, size=3, alpha=0.2, beta=0.6, bias=1.5)
    np.testing.assert_allclose(kernel("local_response_norm")(x, np.int32(3), 0.2, 0.6, 1.5), want, rtol=1e-5)


def test_products_equal_numpy(rng):
    x, y = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(kernel("matmul")(x, y, transpose_x=True), np.einsum("bki,bkj->bij", x, y))
    weight, bias = rng.normal(size=(6, 3)), rng.normal(size=6)
    np.testing.assert_allclose(kernel("linear")(x, weight, bias), np.einsum("bki,oi->bko", x, weight) + bias)
    left, right = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 5, 4, 6))
    value = kernel("einsum")([left, right], "nchw,nwhu->nchu")
    np.testing.assert_allclose(value, np.matmul(left.transpose(0, 2, 1, 3), right.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_type": "some"}, "pad_type"),
        ({"strides": np.array([1])}, "strides"),
        ({"groups": np.int32(2)}, "groups"),
        ({"dilations": np.array([9, 9])}, "no window"),
    ],
)
def test_a_contradictory_convolution_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel("conv")(np.zeros((1, 3, 8, 8), np.float32), np.zeros((4, 3, 3, 3), np.float32), **arguments)
