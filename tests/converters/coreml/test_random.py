"""Operators with many attributes, with attributes drawn at random, against ONNX Runtime; one package holds a family's draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import compose, helper

pytestmark = pytest.mark.slow

_DRAWS = 24
_REFUSALS = onnxruntime.capi.onnxruntime_pybind11_state
_NOT_A_MODEL = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, _REFUSALS.Fail, _REFUSALS.InvalidArgument)


@dataclass
class Draw:
    """One node: its operator, operands after the first, which are constants, and attributes."""

    op: str
    x: np.ndarray
    constants: list[np.ndarray | None] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1


def _floats(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _window(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Kernel, strides, dilations and pads below the kernel, as ONNX Runtime wants them."""
    kernel = rng.integers(1, 4, count)
    pads = [int(rng.integers(0, size)) for size in (*kernel, *kernel)]
    return {
        "kernel_shape": kernel.tolist(),
        "strides": rng.integers(1, 4, count).tolist(),
        "dilations": rng.integers(1, 3, count).tolist(),
        "pads": pads,
    }


def max_pool(rng: np.random.Generator) -> Draw:
    count = int(rng.integers(1, 4))
    attrs = _window(rng, count) | {"ceil_mode": int(rng.integers(0, 2))}
    outputs = int(rng.integers(1, 3)) if count < 3 else 1
    return Draw("MaxPool", _floats(rng, (2, 3, *rng.integers(7, 11, count))), [], attrs, outputs)


def average_pool(rng: np.random.Generator) -> Draw:
    count = int(rng.integers(1, 4))
    flags = {"ceil_mode": int(rng.integers(0, 2)), "count_include_pad": int(rng.integers(0, 2))}
    return Draw("AveragePool", _floats(rng, (2, 3, *rng.integers(7, 11, count))), [], _window(rng, count) | flags)


def conv_transpose(rng: np.random.Generator) -> Draw:
    count, group = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    attrs = _window(rng, count) | {"group": group}
    kernel = attrs.pop("kernel_shape")
    attrs["output_padding"] = [
        int(rng.integers(0, max(stride, dilation))) for stride, dilation in zip(attrs["strides"], attrs["dilations"], strict=True)
    ]
    weights = _floats(rng, (2 * group, 3, *kernel))
    return Draw("ConvTranspose", _floats(rng, (2, 2 * group, *rng.integers(3, 7, count))), [weights, _floats(rng, (3 * group,))], attrs)


def cut(rng: np.random.Generator) -> Draw:
    rank = int(rng.integers(1, 5))
    shape = tuple(int(size) for size in rng.integers(2, 8, rank))
    steps = rng.choice([-2, -1, 1, 2, 3], rank)
    forwards = steps > 0
    starts = np.where(forwards, rng.integers(-8, 2, rank), rng.integers(0, 9, rank))
    ends = np.where(forwards, rng.integers(2, 12, rank), -100)
    return Draw("Slice", _floats(rng, shape), [starts.astype(np.int64), ends.astype(np.int64), np.arange(rank), steps.astype(np.int64)])


def pad(rng: np.random.Generator) -> Draw:
    rank = int(rng.integers(1, 5))
    shape = tuple(int(size) for size in rng.integers(3, 6, rank))
    mode = str(rng.choice(["constant", "reflect", "edge", "wrap"]))
    x = _floats(rng, shape) if rng.integers(0, 2) else rng.integers(-9, 9, shape).astype(np.int32)
    amounts = rng.integers(0 if mode != "constant" else -1, 3, 2 * rank)
    return Draw("Pad", x, [amounts.astype(np.int64), *([np.array(2, x.dtype)] if mode == "constant" else [])], {"mode": mode})


def gather_elements(rng: np.random.Generator) -> Draw:
    rank = int(rng.integers(1, 5))
    shape = rng.integers(2, 6, rank)
    axis = int(rng.integers(-rank, rank))
    index = [int(rng.integers(1, 7)) if place == axis % rank else int(rng.integers(1, size + 1)) for place, size in enumerate(shape)]
    values = rng.integers(-shape[axis], shape[axis], index)
    return Draw("GatherElements", _floats(rng, tuple(shape)), [values], {"axis": axis})


def scatter_elements(rng: np.random.Generator) -> Draw:
    rank = int(rng.integers(1, 5))
    shape = rng.integers(3, 6, rank)
    axis = int(rng.integers(-rank, rank))
    reduction = str(rng.choice(["none", "add", "mul", "max", "min"]))
    size = int(shape[axis])
    index = [size - 1 if place == axis % rank else int(rng.integers(1, length + 1)) for place, length in enumerate(shape)]
    # Which of two updates of one place stays is not defined, so that without a reduction each place is hit once.
    order = np.argsort(rng.random([size if place == axis % rank else length for place, length in enumerate(index)]), axis=axis)
    once = np.take(order, np.arange(size - 1), axis=axis)
    values = once if reduction == "none" else rng.integers(-size, size, index)
    return Draw("ScatterElements", _floats(rng, tuple(shape)), [values, _floats(rng, tuple(index))], {"axis": axis, "reduction": reduction})


def top_k(rng: np.random.Generator) -> Draw:
    rank = int(rng.integers(1, 5))
    shape = tuple(int(size) for size in rng.integers(2, 8, rank))
    axis = int(rng.integers(-rank, rank))
    x = rng.integers(0, 4, shape).astype(np.int32) if rng.integers(0, 2) else _floats(rng, shape)
    return Draw("TopK", x, [np.array([rng.integers(1, shape[axis] + 1)])], {"axis": axis, "largest": int(rng.integers(0, 2))}, outputs=2)


FAMILIES = [max_pool, average_pool, conv_transpose, cut, pad, gather_elements, scatter_elements, top_k]


def models(family: Any, make: Any) -> Iterator[tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """Draws that ONNX and ONNX Runtime take, each as a model with its own prefix."""
    rng = np.random.default_rng(FAMILIES.index(family))
    found = 0
    for index in range(20 * _DRAWS):
        draw = family(rng)
        names = [f"k{place}" for place in range(len(draw.constants))]
        results = [f"y{place}" for place in range(draw.outputs)]
        node = helper.make_node(draw.op, ["x", *names], results, "node", **draw.attrs)
        try:
            model = make([node], {"x": draw.x}, dict(zip(names, draw.constants, strict=True)), results, 22)
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": draw.x})
        except _NOT_A_MODEL:
            continue
        if any(0 in [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.output):
            continue
        yield compose.add_prefix(model, f"d{index}/"), {f"d{index}/x": draw.x}
        found += 1
        if found == _DRAWS:
            return
    pytest.fail(f"only {found} of {20 * _DRAWS} draws are models")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_same_as_onnx_runtime(family: Any, make, emit):
    merged, inputs = onnx.ModelProto(), {}
    for model, given in models(family, make):
        if not inputs:
            merged.CopyFrom(model)
        else:
            for part in ("node", "initializer", "input", "output", "value_info"):
                getattr(merged.graph, part).extend(getattr(model.graph, part))
        inputs |= given
    done = emit(merged, inputs, target="iOS17")
    actual = done.run()
    assert len(done.expected) >= _DRAWS
    for name, want in done.expected.items():
        got = actual[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
