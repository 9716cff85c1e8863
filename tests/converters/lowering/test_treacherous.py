"""Pools, Resize, samplers and recurrent networks with attributes drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.converters._lowering import lower_model
from tests.converters.lowering.models import operators, refusing, run, single

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(4)
QUICK = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def runs(model, live):
    """Whether ONNX Runtime itself takes the drawn form."""
    try:
        return run(model, live)
    except Exception:  # noqa: BLE001 - its errors have no common base
        return None


@QUICK
@given(
    op=st.sampled_from(["MaxPool", "AveragePool", "LpPool"]),
    sizes=st.lists(st.integers(5, 9), min_size=1, max_size=2),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 1),
    ceil=st.booleans(),
    padded=st.booleans(),
    auto=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_pools(same, op, sizes, kernel, stride, dilation, pad, ceil, padded, auto):
    rank = len(sizes)
    attrs = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "dilations": [dilation] * rank, "ceil_mode": int(ceil)}
    attrs |= {"auto_pad": auto} if auto != "NOTSET" else {"pads": [min(pad, kernel - 1)] * 2 * rank}
    attrs |= {"count_include_pad": int(padded)} if op == "AveragePool" else {}
    # ONNX Runtime 1.31 and the specification differ in what padding counts when the last window leans over it.
    assume(not (op == "AveragePool" and padded and ceil))
    # ONNX Runtime leaves dilations out of account when it pads by itself.
    assume(not (auto.startswith("SAME") and dilation > 1))
    x = {"x": floats(2, 2, *sizes)}
    model = single(op, x, opset=22, **attrs)
    assume(runs(model, x) is not None)
    same(model, x, op)


@QUICK
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
    dilation=st.integers(1, 2),
    columns=st.booleans(),
    kind=st.sampled_from(["f4", "i1"]),
)
def test_indices_of_pools(same, kernel, stride, pad, dilation, columns, kind):
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [min(pad, kernel - 1)] * 4, "dilations": [dilation] * 2}
    x = {"x": np.round(floats(2, 2, 6, 5) * 2).astype(kind)}
    model = single("MaxPool", x, outputs=("y", "i"), storage_order=int(columns), **attrs)
    assume(runs(model, x) is not None)
    same(model, x, "MaxPool")


def test_a_window_that_jumps_over_places_becomes_a_plain_one():
    x = {"x": floats(1, 1, 60, 50)}
    model = single("MaxPool", x, kernel_shape=[5, 4], strides=[4, 6], dilations=[4, 3], pads=[4, 2, 4, 2])

    def dilated(node, _):
        return "dilated" if max(node.attrs.get("dilations", [1])) > 1 else ""

    lowered = lower_model(model, dilated, static=True)
    assert not lowered.refused
    assert operators(lowered.model) == ["Pad", "Slice", "MaxPool"]
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(model, x)[0])


@QUICK
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    transform=st.sampled_from(
        ["half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize"]
    ),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    antialias=st.booleans(),
    exclude=st.booleans(),
    by_sizes=st.booleans(),
    policy=st.sampled_from(["stretch", "not_larger", "not_smaller"]),
    target=st.tuples(st.integers(2, 11), st.integers(2, 11)),
)
def test_resize(same, mode, transform, nearest, antialias, exclude, by_sizes, policy, target):
    x = {"x": floats(1, 2, 6, 5)}
    attrs = {"mode": mode, "coordinate_transformation_mode": transform, "nearest_mode": nearest, "extrapolation_value": 7.0}
    attrs |= {"antialias": int(antialias and mode != "nearest"), "exclude_outside": int(exclude and mode == "cubic")}
    roi = np.array([0, 0, 0.2, 0.1, 1, 1, 0.7, 1.2], np.float32)
    constants = {"roi": roi} if transform == "tf_crop_and_resize" else {"_roi": None}
    if by_sizes:
        constants |= {"_scales": None, "sizes": np.array([1, 2, *target])}
        if policy != "stretch":
            constants["sizes"] = np.array(target)
            attrs |= {"keep_aspect_ratio_policy": policy, "axes": [2, 3]}
            assume(transform != "tf_crop_and_resize")
    else:
        constants["scales"] = np.array([1, 1, target[0] / 6, target[1] / 5], np.float32)
    model = single("Resize", x, constants, opset=19, **attrs)
    wanted = runs(model, x)
    assume(wanted is not None and wanted[0].size > 0)
    # A form that cannot be taken apart axis by axis is refused, never answered differently.
    assume(not lower_model(model, refusing("Resize"), static=True).refused)
    same(model, x, "Resize", atol=1e-4)


@QUICK
@given(
    mode=st.sampled_from(["linear", "nearest", "cubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    align=st.booleans(),
    live=st.booleans(),
    volume=st.booleans(),
)
def test_grid_sample(same, mode, padding, align, live, volume):
    assume(not (volume and mode == "cubic"))
    sizes = (3, 4, 5) if volume else (4, 5)
    x, grid = floats(2, 3, *sizes), (floats(2, *sizes, len(sizes)) * 0.9)
    inputs = {"x": x, "grid": grid} if live else {"x": x}
    model = single("GridSample", inputs, {} if live else {"grid": grid}, mode=mode, padding_mode=padding, align_corners=int(align))
    same(model, inputs, "GridSample", atol=1e-4)


@QUICK
@given(
    op=st.sampled_from(["RNN", "GRU", "LSTM"]),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    lengths=st.booleans(),
    bias=st.booleans(),
    states=st.booleans(),
    clip=st.sampled_from([0.0, 0.4]),
    odd=st.booleans(),
)
def test_recurrent_networks(same, op, direction, lengths, bias, states, clip, odd):
    count, gates = (2 if direction == "bidirectional" else 1), {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    x = {"x": floats(4, 2, 3)}
    constants = {"w": floats(count, gates * 5, 3), "r": floats(count, gates * 5, 5)}
    constants |= {"b": floats(count, 2 * gates * 5)} if bias else {"_b": None}
    constants |= {"n": np.array([4, 2], np.int32)} if lengths else {"_n": None}
    constants |= {"h": floats(count, 2, 5)} if states else {"_h": None}
    if op == "LSTM":
        constants |= {"c": floats(count, 2, 5)} if states else {"_c": None}
        constants |= {"p": floats(count, 15)} if odd else {}
    attrs = {"hidden_size": 5, "direction": direction} | ({"clip": clip} if clip else {})
    attrs |= {"linear_before_reset": int(odd)} if op == "GRU" else {}
    attrs |= {"activations": ["LeakyRelu"] * count, "activation_alpha": [0.2] * count} if op == "RNN" and odd else {}
    outputs = ("y", "h_out", "c_out") if op == "LSTM" else ("y", "h_out")
    same(single(op, x, constants, outputs, **attrs), x, op)


@pytest.mark.parametrize(("groups", "moved"), [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolutions(same, groups, moved):
    x, constants = {"x": floats(1, 4, 5, 5)}, {"w": floats(4, 4 // groups, 2, 2), "o": floats(1, moved * 8, 4, 4)}
    constants |= {"b": floats(4), "m": np.abs(floats(1, moved * 4, 4, 4))}
    same(single("DeformConv", x, constants, group=groups, offset_group=moved), x, "DeformConv")


@pytest.mark.parametrize(("dilations", "strides", "pads"), [([1, 1], [1, 1], [0, 0, 0, 0]), ([2, 1], [1, 2], [1, 0, 1, 1])])
def test_columns_go_back_to_an_image(same, dilations, strides, pads):
    image, block = [6, 7], [2, 3]
    steps = [(image[i] + pads[i] + pads[2 + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(2)]
    x = {"x": floats(2, 3 * 6, steps[0] * steps[1])}
    constants = {"image": np.array(image), "block": np.array(block)}
    same(single("Col2Im", x, constants, dilations=dilations, strides=strides, pads=pads), x, "Col2Im")
