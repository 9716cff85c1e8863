"""Single-operator models that move, choose, place and reduce elements: odd attributes, every dtype, and attributes drawn at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.converters.tflite.element_cases import any_of
from tests.converters.tflite.operator_cases import Case, flags, floats, ints, whole

__all__ = ["CASES"]

_random = np.random.default_rng(23)
_KINDS = ("int8", "uint8", "int16", "int64", "uint64", "bool", "float16", "float64")


def some(kind: str, *shape: int) -> np.ndarray:
    """Numbers of any dtype."""
    if kind == "bool":
        return flags(*shape)
    return floats(*shape).astype(kind) if kind.startswith("float") else any_of(kind, *shape)


def _draw(*choices: object) -> object:
    return choices[_random.integers(len(choices))]


def _shape(low: int = 1, high: int = 4) -> tuple[int, ...]:
    return tuple(int(size) for size in _random.integers(1, 6, _random.integers(low, high + 1)))


def _slices(count: int) -> Iterator[Case]:
    for index in range(count):
        shape = _shape()
        axes = _random.permutation(len(shape))[: _random.integers(1, len(shape) + 1)]
        starts = [int(_random.integers(-8, 9)) for _ in axes]
        ends = [int(_draw(*range(-9, 9), 2**62, -(2**62))) for _ in axes]
        steps = [int(_draw(-3, -2, -1, 1, 2, 3)) for _ in axes]
        yield Case(f"Slice-drawn-{index}", "Slice", (floats(*shape),), (ints(*starts), ints(*ends), axes.astype(np.int64), ints(*steps)))


def _pads(count: int) -> Iterator[Case]:
    for index in range(count):
        shape, mode = _shape(1, 5), str(_draw("constant", "reflect", "edge", "wrap"))
        # ONNX Runtime reflects and wraps once at most.
        limit = [{"reflect": size - 1, "wrap": size}.get(mode, 3) for size in shape]
        pads = [int(_random.integers(0, most + 1)) for most in limit * 2]
        value = np.float32(_random.standard_normal()) if mode == "constant" else None
        yield Case(f"Pad-drawn-{index}-{mode}", "Pad", (floats(*shape),), (ints(*pads), value), {"mode": mode}, 19)


def _reductions(count: int) -> Iterator[Case]:
    for index in range(count):
        shape, op = _shape(), str(_draw("ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceSumSquare", "ReduceProd", "ReduceL2"))
        axes = _random.permutation(len(shape))[: _random.integers(0, len(shape) + 1)] - len(shape) * _random.integers(0, 2)
        data = whole(*shape, kind=str(_draw("int32", "int64"))) if op != "ReduceL2" else floats(*shape)
        yield Case(f"{op}-drawn-{index}", op, (data,), (axes.astype(np.int64),), {"keepdims": int(_random.integers(0, 2))}, 18)


def _scatters(count: int) -> Iterator[Case]:
    for index in range(count):
        shape, reduction = _shape(2, 3), str(_draw("none", "add", "mul", "max", "min"))
        data = floats(*shape) if index % 2 else whole(*shape)
        axis = int(_random.integers(-len(shape), len(shape)))
        taken = tuple(int(_random.integers(1, size + 1)) for size in shape)
        # One axis of indices without repeats: of two updates of one place either may win.
        order = _random.permutation(shape[axis])[: taken[axis]] - shape[axis] * _random.integers(0, 2)
        places = np.broadcast_to(np.moveaxis(order.reshape(-1, *(1,) * (len(shape) - 1)), 0, axis), taken).astype(np.int64)
        updates = floats(*taken) if index % 2 else whole(*taken)
        yield Case(
            f"ScatterElements-drawn-{index}-{reduction}",
            "ScatterElements",
            (data, np.ascontiguousarray(places), updates),
            attrs={"axis": axis, "reduction": reduction},
            opset=18,
        )


CASES: list[Case] = [
    *_slices(24),
    *_pads(24),
    *_reductions(24),
    *_scatters(16),
    # every dtype through the operators that move
    *(Case(f"Tile-{kind}", "Tile", (some(kind, 2, 3),), (ints(2, 1),)) for kind in _KINDS),
    *(Case(f"Slice-{kind}", "Slice", (some(kind, 4, 5),), (ints(-1, 0), ints(-9, 4), ints(0, 1), ints(-1, 2))) for kind in _KINDS),
    *(Case(f"Split-{kind}", "Split", (some(kind, 2, 7),), (ints(3, 0, 4),), {"axis": 1}, outputs=3) for kind in _KINDS),
    *(
        Case(f"Pad-{kind}", "Pad", (some(kind, 2, 4),), (ints(0, 1, 2, -1), some(kind)), opset=19)
        for kind in ("int8", "uint8", "int64", "bool")
    ),
    *(Case(f"Pad-edge-{kind}", "Pad", (some(kind, 2, 4),), (ints(0, 1, 2, 1),), {"mode": "edge"}, 19) for kind in ("int8", "bool")),
    *(Case(f"Gather-{kind}", "Gather", (some(kind, 4, 5), ints(-1, 2)), attrs={"axis": 1}) for kind in _KINDS),
    *(Case(f"Concat-{kind}", "Concat", (some(kind, 2, 3), some(kind, 2, 1)), attrs={"axis": 1}) for kind in _KINDS),
    *(Case(f"Expand-{kind}", "Expand", (some(kind, 3, 1),), (ints(2, 3, 4),)) for kind in _KINDS),
    *(Case(f"Transpose-{kind}", "Transpose", (some(kind, 2, 3, 4),), attrs={"perm": [2, 0, 1]}) for kind in _KINDS),
    *(Case(f"Reshape-{kind}", "Reshape", (some(kind, 2, 6),), (ints(3, 4),)) for kind in _KINDS),
    Case("Pad-six-axes", "Pad", (floats(2, 1, 2, 3, 1, 2),), (ints(0, 1, 0, 2, 0, 0, 1, 0, 0, 0, 1, 0), np.float32(2))),
    Case("Pad-mirrored-cut", "Pad", (floats(3, 6),), (ints(-1, 2, 0, -1),), {"mode": "reflect"}),
    Case("Split-uneven", "Split", (floats(7, 2),), (), {"num_outputs": 3}, 18, outputs=3),
    # more axes than kernels take
    Case("Relu-eight-axes", "Relu", (floats(2, 1, 3, 2, 1, 2, 2, 2),)),
    Case("Add-seven-axes", "Add", (floats(2, 3, 2, 1, 2, 2, 2), floats(2, 1, 2, 2))),
    Case("Where-seven-axes", "Where", (flags(2, 1, 2, 1, 2, 2, 2), floats(2, 3, 2, 1, 2, 2, 2)), (np.asarray(3, np.float32),)),
    Case("Softmax-seven-axes", "Softmax", (floats(2, 3, 2, 1, 2, 4, 2),), attrs={"axis": 5}),
    Case("Concat-seven-axes", "Concat", (floats(2, 3, 2, 1, 2, 4, 2), floats(2, 3, 2, 1, 2, 1, 2)), attrs={"axis": -2}),
    Case("Gather-seven-axes", "Gather", (floats(2, 3, 2, 4), whole(2, 1, 2, 2, kind="int64") % 3), attrs={"axis": 1}),
    Case("Slice-seven-axes", "Slice", (floats(2, 3, 2, 1, 2, 4, 2),), (ints(1, -3, 0), ints(3, 9, 1), ints(1, -2, 2))),
    Case("ReduceSum-seven-axes", "ReduceSum", (floats(2, 3, 2, 1, 2, 4, 2),), (ints(1, 2, -1),), opset=13),
    Case("ReduceMax-all-of-seven-axes", "ReduceMax", (floats(2, 3, 2, 1, 2, 4, 2),), attrs={"keepdims": 0}, opset=18),
    Case("ArgMax-seven-axes", "ArgMax", (floats(2, 3, 2, 1, 2, 4, 2),), attrs={"axis": 5}),
    # empty tensors
    Case("Concat-empty", "Concat", (floats(2, 0), floats(2, 3)), attrs={"axis": 1}),
    Case("Slice-to-nothing", "Slice", (floats(4, 6),), (ints(3), ints(2), ints(1))),
    Case("ReduceSum-of-nothing", "ReduceSum", (floats(2, 0),), (ints(1),), opset=13),
    Case("ReduceProd-of-nothing", "ReduceProd", (floats(2, 0),), (ints(1),), opset=18),
    # reductions
    *(
        Case(f"{op}-{kind}", op, (some(kind, 4, 5),), (ints(1),), opset=20)
        for op in ("ReduceMax", "ReduceMin")
        for kind in ("int8", "uint8", "bool", "float64")
    ),
    *(Case(f"{op}-int64", op, (whole(4, 5, kind="int64"),), (ints(0),), opset=18) for op in ("ReduceL1", "ReduceSumSquare", "ReduceProd")),
    Case("ReduceMean-int32", "ReduceMean", (whole(4, 5),), (ints(0),), opset=18),
    Case("ReduceLogSumExp-large", "ReduceLogSumExp", (floats(4, 5) * 200,), (ints(0),), opset=18),
    *(
        Case(
            f"{op}-{kind}-{way}",
            op,
            (np.asarray([[1, 7, 7, 0], [3, 0, 0, 3]], kind),),
            attrs={"axis": 1, "select_last_index": last, "keepdims": last},
            opset=13,
        )
        for op in ("ArgMax", "ArgMin")
        for kind in ("float32", "int32", "int64", "uint8")
        for way, last in (("first", 0), ("last", 1))
    ),
    *(Case(f"CumSum-{kind}", "CumSum", (whole(3, 4, kind=kind),), (np.asarray(-2, np.int64),)) for kind in ("int32", "int64", "float64")),
    # quantised numbers that stand alone
    Case("QuantizeLinear", "QuantizeLinear", (floats(3, 4),), (np.float32(0.03), np.uint8(120)), opset=13),
    Case(
        "QuantizeLinear-axis",
        "QuantizeLinear",
        (floats(3, 4),),
        (np.asarray([0.01, 0.2, 0.03], np.float32), np.zeros(3, np.int8)),
        {"axis": 0},
        13,
    ),
    Case("DequantizeLinear", "DequantizeLinear", (any_of("uint8", 3, 4),), (np.float32(0.03), np.uint8(120)), opset=13),
    # placing
    Case("ScatterND-slices", "ScatterND", (floats(4, 3, 2), ints(0, -1).reshape(2, 1), floats(2, 3, 2)), opset=18),
    Case(
        "ScatterND-add-repeated",
        "ScatterND",
        (floats(4, 3), ints(1, 1, 3, 0).reshape(4, 1), floats(4, 3)),
        attrs={"reduction": "add"},
        opset=18,
    ),
    Case("ScatterND-largest", "ScatterND", (floats(4, 3), ints(1, 2, 1, 0).reshape(2, 2), floats(2)), attrs={"reduction": "max"}, opset=18),
    Case(
        "ScatterElements-int8", "ScatterElements", (any_of("int8", 2, 3), ints(0, 2).reshape(1, 2), any_of("int8", 1, 2)), attrs={"axis": 1}
    ),
    Case("Scatter", "Scatter", (floats(2, 3), ints(0, 2).reshape(1, 2), floats(1, 2)), attrs={"axis": 1}, opset=9),
    Case("OneHot", "OneHot", (ints(0, -1, 7, 2),), (np.asarray(4, np.int64), np.asarray([2, 5], np.float32))),
    Case("OneHot-first-axis", "OneHot", (whole(2, 3, kind="int64"),), (np.asarray(5, np.int64), np.asarray([0, 1], np.int64)), {"axis": 0}),
    Case(
        "OneHot-float-indices", "OneHot", (np.asarray([1, 3], np.float32),), (np.asarray(4, np.float32), np.asarray([0.5, 5], np.float32))
    ),
]
