"""Single-operator models of element-wise operators in dtypes that TensorFlow Lite's kernels do not know, and of functions made of others."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.converters.tflite.operator_cases import Case, flags, floats, positive, whole

__all__ = ["CASES"]

_random = np.random.default_rng(7)
_SIGNED, _UNSIGNED = ("int8", "int16", "int32", "int64"), ("uint8", "uint16", "uint32", "uint64")
_INTEGERS = (*_SIGNED, *_UNSIGNED)


def any_of(kind: str, *shape: int) -> np.ndarray:
    """Over the whole range, so that sums and products wrap around."""
    limits = np.iinfo(kind)
    return _random.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def divisor(kind: str, *shape: int) -> np.ndarray:
    """Small and large, neither 0 nor -1: the lowest integer divided by -1 has no result."""
    found = any_of(kind, *shape)
    small = _random.integers(1, 9, shape).astype(kind)
    found = np.where(_random.integers(0, 2, shape).astype(bool), small, found)
    return np.where((found == 0) | (found == np.asarray(-1).astype(kind)), np.asarray(3, kind), found).astype(kind)


_SPECIAL = np.asarray([np.nan, np.inf, -np.inf, 0, -1.5, 3e38], np.float32)
_EDGE_FLOATS = np.asarray([-2.7, -0.5, 0.0, 0.5, 2.7, 100.9], np.float32)

CASES: list[Case] = [
    # integers of every width; what ONNX Runtime has no kernel for is left out
    *(Case(f"{op}-{kind}", op, (any_of(kind, 3, 4), any_of(kind, 4))) for op in ("Add", "Sub", "Mul") for kind in _INTEGERS),
    *(Case(f"Div-{kind}", "Div", (any_of(kind, 4, 16), divisor(kind, 4, 16))) for kind in _INTEGERS),
    *(Case(f"Mod-{kind}", "Mod", (any_of(kind, 4, 16), divisor(kind, 4, 16))) for kind in _INTEGERS),
    *(Case(f"Mod-cut-{kind}", "Mod", (any_of(kind, 4, 16), divisor(kind, 4, 16)), attrs={"fmod": 1}) for kind in _INTEGERS),
    *(
        Case(f"{op}-{kind}", op, (any_of(kind, 3, 4), any_of(kind, 4)))
        for op in ("Max", "Min")
        for kind in ("int8", "uint8", "uint32", "uint64")
    ),
    *(Case(f"Less-{kind}", "Less", (any_of(kind, 3, 4), any_of(kind, 4))) for kind in _INTEGERS),
    *(Case(f"Equal-{kind}", "Equal", (np.arange(6).astype(kind), np.asarray([0, 1, 5, 3, 2, 5], kind))) for kind in _INTEGERS),
    Case("Equal-bool", "Equal", (flags(3, 4), flags(4))),
    *(Case(f"Abs-{kind}", "Abs", (any_of(kind, 3, 4),)) for kind in _INTEGERS),
    *(Case(f"Sign-{kind}", "Sign", (any_of(kind, 3, 4),)) for kind in _INTEGERS),
    *(Case(f"Neg-{kind}", "Neg", (any_of(kind, 3, 4),)) for kind in ("int8", "int64")),
    *(
        Case(f"Clip-{kind}", "Clip", (any_of(kind, 3, 8),), (np.asarray(20, kind), np.asarray(90, kind)))
        for kind in ("int8", "uint8", "uint64")
    ),
    Case("Relu-int8", "Relu", (any_of("int8", 3, 4),)),
    *(Case(f"Where-{kind}", "Where", (flags(3, 4), any_of(kind, 3, 4), any_of(kind, 4))) for kind in ("int8", "uint8", "int64")),
    # ranks
    *(
        Case(f"TopK-{kind}-{end}", "TopK", (values,), (np.asarray([3], np.int64),), {"axis": 0, "largest": largest}, outputs=2)
        for kind, values in (
            ("float32", floats(7, 2)),
            ("int8", any_of("int8", 7, 2)),
            ("uint8", any_of("uint8", 7, 2)),
            ("int64", any_of("int64", 7, 2)),
        )
        for end, largest in (("largest", 1), ("smallest", 0))
    ),
    # bits
    *(
        Case(f"{op}-{kind}", op, (any_of(kind, 3, 4), any_of(kind, 4)), opset=18)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
        for kind in _INTEGERS
    ),
    *(Case(f"BitwiseNot-{kind}", "BitwiseNot", (any_of(kind, 3, 4),), opset=18) for kind in _INTEGERS),
    *(
        Case(f"BitShift-{way}-{kind}", "BitShift", (any_of(kind, 2, 8), np.arange(8, dtype=kind)), attrs={"direction": way}, opset=11)
        for way in ("LEFT", "RIGHT")
        for kind in ("uint8", "uint32")
    ),
    *(
        Case(f"BitCast-{source}", "BitCast", (value,), attrs={"to": target}, opset=26)
        for source, value, target in (
            ("float32", floats(3, 4), TensorProto.UINT32),
            ("uint32", floats(3, 4).view(np.uint32), TensorProto.FLOAT),
            ("int8", any_of("int8", 3, 4), TensorProto.UINT8),
            ("uint16", any_of("uint16", 3, 4), TensorProto.INT16),
        )
    ),
    # powers
    Case("Pow-int32", "Pow", (whole(2, 4),), (np.asarray([0, 1, 2, 5], np.int32),)),
    Case("Pow-int64-float", "Pow", (whole(2, 4, kind="int64"),), (np.asarray([[0], [3]], np.float32),)),
    Case("Pow-cube", "Pow", (floats(2, 3),), (np.float32(3),)),
    Case("Pow-reciprocal", "Pow", (positive(2, 3),), (np.float32(-1),)),
    Case("Pow-reciprocal-root", "Pow", (positive(2, 3),), (np.float32(-0.5),)),
    Case("Pow-integer-exponent", "Pow", (positive(2, 3), np.asarray([-2, 0, 3], np.int64))),
    # casts
    *(Case(f"Cast-{kind}-to-float", "Cast", (any_of(kind, 3, 4),), attrs={"to": TensorProto.FLOAT}) for kind in _INTEGERS),
    *(
        Case(f"Cast-{kind}-to-{other}", "Cast", (any_of("int64", 3, 4).astype(kind),), attrs={"to": getattr(TensorProto, other.upper())})
        for kind in ("int64", "uint64", "int8")
        for other in _INTEGERS
    ),
    *(
        Case(
            f"Cast-float-to-{kind}",
            "Cast",
            (np.abs(_EDGE_FLOATS) if kind in _UNSIGNED else _EDGE_FLOATS,),
            attrs={"to": getattr(TensorProto, kind.upper())},
        )
        for kind in _INTEGERS
    ),
    Case("Cast-large-to-uint64", "Cast", (np.asarray([1.5e19, 2.0**62, 1], np.float32),), attrs={"to": TensorProto.UINT64}),
    Case("Cast-float-to-bool", "Cast", (_EDGE_FLOATS,), attrs={"to": TensorProto.BOOL}),
    Case("Cast-double", "Cast", (floats(3).astype(np.float64),), attrs={"to": TensorProto.FLOAT16}),
    Case("Cast-half", "Cast", (floats(3).astype(np.float16),), attrs={"to": TensorProto.DOUBLE}),
    # floats of other widths
    Case("Add-double", "Add", (floats(2, 3).astype(np.float64), floats(3).astype(np.float64))),
    Case("Exp-half", "Exp", (floats(2, 3).astype(np.float16),)),
    # functions
    *(Case(f"{op}-whole-range", op, (np.linspace(-1, 1, 41, dtype=np.float32),)) for op in ("Acos", "Asin")),
    Case("Atanh-whole-range", "Atanh", (np.linspace(-0.999, 0.999, 41, dtype=np.float32),)),
    *(Case(f"{op}-wide", op, (np.linspace(-30, 30, 61, dtype=np.float32),)) for op in ("Atan", "Asinh", "Erf", "Softplus")),
    *(Case(f"{op}-wide", op, (np.linspace(-8, 8, 61, dtype=np.float32),)) for op in ("Sinh", "Cosh")),
    *(
        Case(f"{op}-small", op, (np.linspace(-1e-3, 1e-3, 21, dtype=np.float32),))
        for op in ("Asinh", "Atanh", "Sinh", "Erf", "Asin", "Tan")
    ),
    Case("Mish", "Mish", (np.linspace(-30, 30, 61, dtype=np.float32),), opset=18),
    Case("CastLike", "CastLike", (any_of("int8", 3, 4), floats(1))),
    Case("Acosh-near-one", "Acosh", (1 + np.geomspace(1e-6, 1e3, 31).astype(np.float32),)),
    *(
        Case(f"Gelu-{how}", "Gelu", (np.linspace(-6, 6, 41, dtype=np.float32),), attrs={"approximate": how}, opset=20)
        for how in ("none", "tanh")
    ),
    *(Case(f"{op}-defaults", op, (floats(4, 5) * 2,), opset=12) for op in ("Celu", "Selu", "Shrink", "ThresholdedRelu")),
    Case("Celu-alpha", "Celu", (floats(4, 5) * 2,), attrs={"alpha": 0.7}, opset=12),
    Case("Selu-both", "Selu", (floats(4, 5) * 2,), attrs={"alpha": 0.7, "gamma": 1.5}),
    Case("Shrink-both", "Shrink", (floats(4, 5) * 2,), attrs={"lambd": 0.7, "bias": 0.3}),
    Case("ThresholdedRelu-half", "ThresholdedRelu", (floats(4, 5) * 2,), attrs={"alpha": 0.5}),
    Case("Transpose-seven-axes", "Transpose", (floats(2, 3, 2, 3, 2, 3, 2),), attrs={"perm": [0, 2, 3, 4, 5, 6, 1]}),
    Case("Transpose-seven-axes-mixed", "Transpose", (floats(2, 3, 2, 3, 2, 3, 2),), attrs={"perm": [6, 4, 2, 0, 1, 3, 5]}),
    Case("Transpose-seven-axes-back", "Transpose", (floats(2, 3, 2, 3, 2, 3, 2),), attrs={"perm": [6, 5, 4, 3, 2, 1, 0]}),
    Case("IsNaN", "IsNaN", (_SPECIAL,)),
    Case("IsInf", "IsInf", (_SPECIAL,)),
    Case("IsInf-negative", "IsInf", (_SPECIAL,), attrs={"detect_positive": 0}),
    Case("IsInf-positive", "IsInf", (_SPECIAL,), attrs={"detect_negative": 0}),
]
