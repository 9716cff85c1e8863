"""Every operator against ONNX Runtime: emitted, saved, re-read and run by the reference interpreter, in float32 and in float16.

Each case is one node. The cases of a family share one package, so that a family costs one conversion; each is compared on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import compose, helper

RANDOM = np.random.default_rng(7)
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """An input that is given at run time."""

    array: np.ndarray


@dataclass(frozen=True)
class Case:
    family: str
    name: str
    op: str
    operands: tuple[Any, ...]  # Run, array (a constant) or None (omitted)
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17
    fp16: bool = True  # false where float16 rightly gives another answer


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def run(*shape: int) -> Run:
    return Run(normal(*shape))


def positive(*shape: int) -> Run:
    return Run(RANDOM.uniform(0.1, 3, size=shape).astype(np.float32))


def ints(*shape: int, low: int = -5, high: int = 6, dtype: Any = np.int64) -> Run:
    return Run(RANDOM.integers(low, high, shape).astype(dtype))


def bools(*shape: int) -> Run:
    return Run(RANDOM.integers(0, 2, shape).astype(bool))


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def scalar(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(value, dtype)


CASES: list[Case] = []


def case(
    family: str, name: str, op: str, *operands: Any, outputs: tuple[str, ...] = ("y",), opset: int = 17, fp16: bool = True, **attrs: Any
):
    CASES.append(Case(family, name, op, operands, attrs, outputs, opset, fp16))


# --- math ----------------------------------------------------------------------------------------------------------------------------------

for op in ("Add", "Sub", "Mul", "Max", "Min"):
    case("math", f"{op}_broadcast", op, run(2, 3, 1), run(4))
    case("math", f"{op}_int", op, ints(2, 3), ints(3))
    case("math", f"{op}_constant", op, run(2, 3), normal(2, 1))
    case("math", f"{op}_scalar", op, run(2, 3), scalar(0.5))
case("math", "Div", "Div", run(2, 3), positive(3))
case("math", "Div_by_constant", "Div", run(2, 3), scalar(6.0))
case("math", "Max_one", "Max", run(2, 3))
case("math", "Sum_three", "Sum", run(2, 3), run(3), run(2, 1))
case("math", "Max_four", "Max", run(2, 3), run(3), normal(2, 1), run(2, 3))
for exponent in (0.5, 1.0, 2.0, 3.0, -1.5):
    case("math", f"Pow_{exponent}", "Pow", positive(2, 3), scalar(exponent))
case("math", "Pow_2_of_negative", "Pow", run(2, 3), scalar(2.0))
case("math", "Pow_int_exponent", "Pow", positive(2, 3), scalar(4, np.int64))
case("math", "Pow_broadcast", "Pow", positive(2, 3), f32(1.0, 2.0, 0.5))
case("math", "Pow_run_time", "Pow", positive(2, 3), run(2, 3))
for op in (
    "Exp",
    "Tanh",
    "Sigmoid",
    "Relu",
    "Neg",
    "Abs",
    "Sign",
    "Erf",
    "Sin",
    "Cos",
    "Softsign",
    "Softplus",
    "Identity",
    "HardSwish",
    "Elu",
    "LeakyRelu",
):
    case("math", op, op, run(2, 3, 4))
for op in ("Sqrt", "Log", "Reciprocal"):
    case("math", op, op, positive(2, 3))
for op in ("Neg", "Abs", "Sign", "Identity"):
    case("math", f"{op}_int", op, ints(2, 3))
case("math", "Floor", "Floor", Run(f32(-1.5, -0.25, 0.25, 2.0, 2.75)))
case("math", "Ceil", "Ceil", Run(f32(-1.5, -0.25, 0.25, 2.0, 2.75)))
case("math", "Round_half_even", "Round", Run(f32(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.3, -0.7)))
case("math", "HardSigmoid", "HardSigmoid", run(2, 3))
case("math", "HardSigmoid_alpha_beta", "HardSigmoid", run(2, 3), alpha=0.3, beta=0.4)
case("math", "LeakyRelu_alpha", "LeakyRelu", run(2, 3), alpha=0.3)
case("math", "Elu_alpha", "Elu", run(2, 3), alpha=0.7)
case("math", "Clip_both", "Clip", run(2, 3), scalar(-0.5), scalar(0.5))
case("math", "Clip_low", "Clip", run(2, 3), scalar(-0.5))
case("math", "Clip_zero", "Clip", run(2, 3), scalar(0.0))
case("math", "Clip_high", "Clip", run(2, 3), None, scalar(0.5))
case("math", "Clip_none", "Clip", run(2, 3))
case("math", "Clip_crossed", "Clip", run(2, 3), scalar(0.5), scalar(-0.5))
case("math", "Clip_int", "Clip", ints(2, 3), scalar(-2, np.int64), scalar(3, np.int64))
case("math", "Clip_float_limits", "Clip", run(2, 3), scalar(np.finfo(np.float32).min), scalar(np.finfo(np.float32).max))
for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
    case("math", f"{op}_int", op, ints(2, 3, low=0, high=3), ints(3, low=0, high=3))
    case("math", f"{op}_float", op, Run(f32(0, 1, 2)), f32(1, 1, 1))
case("math", "Equal_bool", "Equal", bools(2, 3), bools(3))
for op in ("And", "Or", "Xor"):
    case("math", op, op, bools(2, 3), bools(3))
case("math", "Not", "Not", bools(2, 3))
case("math", "Where", "Where", bools(2, 3), run(3), run(2, 1))
case("math", "Where_int", "Where", bools(2, 3), ints(3), scalar(7, np.int64))
case("math", "Cast_float_to_int", "Cast", Run(f32(-1.9, -0.5, 0.5, 1.9)), to=onnx.TensorProto.INT64)
case("math", "Cast_int_to_float", "Cast", ints(2, 3), to=onnx.TensorProto.FLOAT)
case("math", "Cast_uint8_to_float", "Cast", ints(2, 3, low=0, high=256, dtype=np.uint8), to=onnx.TensorProto.FLOAT)
case("math", "Cast_bool_to_float", "Cast", bools(2, 3), to=onnx.TensorProto.FLOAT)
case("math", "Cast_bool_to_int8", "Cast", bools(2, 3), to=onnx.TensorProto.INT8)
case("math", "Cast_float_to_bool", "Cast", Run(f32(-0.5, 0.0, 0.25, 3.0)), to=onnx.TensorProto.BOOL)
case("math", "Cast_int_to_int", "Cast", ints(2, 3, dtype=np.int32), to=onnx.TensorProto.INT64)
case("math", "MatMul_2d", "MatMul", run(3, 4), run(4, 5))
case("math", "MatMul_constant", "MatMul", run(2, 3, 4), normal(4, 5))
case("math", "MatMul_constant_left", "MatMul", normal(5, 3), run(3, 4))
case("math", "MatMul_batched", "MatMul", run(2, 1, 3, 4), run(3, 4, 5))
case("math", "MatMul_vector_right", "MatMul", run(2, 3, 4), run(4))
case("math", "MatMul_vector_left", "MatMul", run(3), run(2, 3, 4))
case("math", "MatMul_vectors", "MatMul", run(4), run(4))
case("math", "Gemm", "Gemm", run(3, 4), normal(4, 5), normal(5))
case("math", "Gemm_all", "Gemm", run(4, 3), normal(5, 4), normal(1, 5), alpha=0.5, beta=2.0, transA=1, transB=1)
case("math", "Gemm_no_bias", "Gemm", run(3, 4), normal(4, 5), alpha=0.5)
case("math", "Gemm_full_bias", "Gemm", run(3, 4), normal(4, 5), normal(3, 5), beta=0.5)
case("math", "Gemm_column_bias", "Gemm", run(3, 4), normal(4, 5), normal(3, 1))
case("math", "Gemm_scalar_bias", "Gemm", run(3, 4), normal(4, 5), scalar(0.5))
case("math", "Gemm_run_time", "Gemm", run(3, 4), run(5, 4), run(5), alpha=0.5, beta=2.0, transB=1)

# --- integers and other dtypes -------------------------------------------------------------------------------------------------------------

for dtype in (np.int8, np.uint8, np.int16, np.uint16):
    limits, name = np.iinfo(dtype), np.dtype(dtype).name
    whole = {"low": int(limits.min), "high": int(limits.max) + 1, "dtype": dtype}
    for op in ("Add", "Sub", "Mul"):
        case("integers", f"{op}_{name}", op, ints(3, 5, **whole), ints(5, **whole))
    case("integers", f"Div_{name}", "Div", ints(3, 5, **whole), ints(5, low=1, high=9, dtype=dtype))
    if dtype in (np.int8, np.uint8):  # ONNX Runtime has no other
        case("integers", f"Max_{name}", "Max", ints(3, 5, **whole), ints(5, **whole))
    case("integers", f"Cast_to_{name}", "Cast", ints(3, 5, low=-70000, high=70000), to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    case("integers", f"Less_{name}", "Less", ints(3, 5, **whole), ints(5, **whole))
case("integers", "Div_towards_zero", "Div", Run(i64(7, -7, 7, -7, 0, 6)), Run(i64(2, 2, -2, -2, 5, 3)))
case("integers", "Div_constant", "Div", Run(i64(7, -7, 9, -8)), i64(-2))
case("integers", "Mod_divisor_sign", "Mod", Run(i64(7, -7, 7, -7)), Run(i64(3, 3, -3, -3)))
case("integers", "Mod_dividend_sign", "Mod", Run(i64(7, -7, 7, -7)), Run(i64(3, 3, -3, -3)), fmod=1)
case("integers", "Mod_float", "Mod", Run(f32(5.5, -5.5, 5.5, -5.5)), f32(2, 2, -2, -2), fmod=1, fp16=False)
case("integers", "Pow_int", "Pow", ints(2, 3, low=-6, high=7), i64(0, 3, 5))
case("integers", "Pow_int_one", "Pow", ints(2, 3, dtype=np.int32), scalar(4, np.int32))
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    case(
        "opset18",
        f"{op}_int32",
        op,
        ints(3, 5, low=-(2**31), high=2**31, dtype=np.int32),
        ints(5, low=-(2**31), high=2**31, dtype=np.int32),
        opset=18,
    )
    case("opset18", f"{op}_uint8", op, ints(3, 5, low=0, high=256, dtype=np.uint8), ints(5, low=0, high=256, dtype=np.uint8), opset=18)
case("integers", "Neg_int8", "Neg", Run(np.array([-128, -1, 0, 127], np.int8)))
case("integers", "Relu_int32", "Relu", ints(2, 3, dtype=np.int32))
case("integers", "MatMul_int", "MatMul", ints(2, 3, dtype=np.int32), ints(3, 4, dtype=np.int32))
case("integers", "ReduceSum_int32", "ReduceSum", ints(2, 3, dtype=np.int32), i64(1))
case("integers", "Add_double", "Add", Run(RANDOM.normal(size=(2, 3))), Run(RANDOM.normal(size=3)))
case("integers", "Relu_double", "Relu", Run(RANDOM.normal(size=(2, 3))))
case("integers", "Max_uint32", "Max", ints(2, 3, low=0, dtype=np.uint32), ints(3, low=0, dtype=np.uint32))
case("integers", "Sub_uint64", "Sub", ints(2, 3, low=0, dtype=np.uint64), ints(3, low=0, dtype=np.uint64))
case("integers", "MaxPool_uint8", "MaxPool", ints(1, 2, 5, 5, low=0, high=256, dtype=np.uint8), kernel_shape=[3, 3])

for op in ("Tan", "Asinh", "Atan", "Sinh", "Cosh"):
    case("functions", op, op, run(2, 3, 4))
for op in ("Asin", "Acos", "Atanh"):
    case("functions", op, op, Run(RANDOM.uniform(-0.95, 0.95, (2, 3)).astype(np.float32)))
case("functions", "Acosh", "Acosh", Run(f32(1.0, 1.01, 1.5, 1.99, 2.0, 7.5, 90.0)))
case("functions", "Asinh_far", "Asinh", Run(f32(-200.0, -1.0, -0.01, 0.0, 0.02, 1.0, 150.0)))
case("functions", "IsNaN", "IsNaN", Run(f32(1, np.nan, np.inf, -np.inf)))
case("functions", "IsInf", "IsInf", Run(f32(1, np.nan, np.inf, -np.inf)))
case("functions", "IsInf_positive", "IsInf", Run(f32(1, np.nan, np.inf, -np.inf)), detect_negative=0)
case("functions", "IsInf_neither", "IsInf", Run(f32(1, np.nan, np.inf, -np.inf)), detect_negative=0, detect_positive=0)
case("functions", "PRelu_channels", "PRelu", run(2, 3, 4, 2), normal(3, 1, 1))
case("functions", "PRelu_channels_3d", "PRelu", run(2, 3, 4), normal(3, 1))
case("functions", "Selu", "Selu", run(2, 3, 4), alpha=1.5)
case("functions", "Celu", "Celu", run(2, 3, 4), alpha=0.7)
case("functions", "ThresholdedRelu", "ThresholdedRelu", Run(f32(-1, 0.5, 0.75, 3)), alpha=0.5)
case("functions", "ThresholdedRelu_below_zero", "ThresholdedRelu", Run(f32(-1, -0.5, -0.25, 3)), alpha=-0.5)
case("functions", "Shrink", "Shrink", Run(f32(-2, -0.75, -0.5, 0, 0.75, 3)), lambd=0.75, bias=0.25)
case("functions", "PRelu_one", "PRelu", run(2, 3, 4), normal(1))
case("functions", "PRelu_last_axis", "PRelu", run(2, 3, 4), normal(4))
case("functions", "PRelu_run_time", "PRelu", run(2, 3), run(3))
for approximate in ("none", "tanh"):
    case("opset20", f"Gelu_{approximate}", "Gelu", run(2, 3, 4), opset=20, approximate=approximate)

# --- nn ------------------------------------------------------------------------------------------------------------------------------------

case("nn", "Conv", "Conv", run(1, 3, 8, 7), normal(4, 3, 3, 3), normal(4), pads=[1, 1, 1, 1])
case("nn", "Conv_no_bias", "Conv", run(2, 3, 8, 7), normal(4, 3, 3, 2))
case("nn", "Conv_asymmetric", "Conv", run(1, 3, 8, 7), normal(4, 3, 3, 3), pads=[0, 1, 2, 0], strides=[2, 3])
case("nn", "Conv_dilated", "Conv", run(1, 3, 9, 9), normal(4, 3, 3, 3), dilations=[2, 3], pads=[2, 2, 2, 2])
case("nn", "Conv_grouped", "Conv", run(1, 4, 8, 8), normal(6, 2, 3, 3), normal(6), group=2)
case("nn", "Conv_depthwise", "Conv", run(1, 4, 8, 8), normal(4, 1, 5, 5), normal(4), group=4, pads=[2, 2, 2, 2], strides=[2, 1])
case("nn", "Conv_same_upper", "Conv", run(1, 3, 8, 7), normal(4, 3, 2, 3), auto_pad="SAME_UPPER", strides=[2, 2])
case("nn", "Conv_same_lower", "Conv", run(1, 3, 8, 7), normal(4, 3, 2, 4), auto_pad="SAME_LOWER", strides=[1, 3])
case("nn", "Conv_valid", "Conv", run(1, 3, 8, 7), normal(4, 3, 3, 3), auto_pad="VALID")
case("nn", "Conv_1d", "Conv", run(1, 3, 20), normal(4, 3, 5), normal(4), strides=[2], pads=[1, 3])
case("nn", "Conv_3d", "Conv", run(1, 2, 5, 6, 4), normal(3, 2, 3, 2, 3), pads=[1, 0, 1, 1, 1, 1])
case("nn", "ConvTranspose", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 2, 2), normal(4), strides=[2, 2])
case("nn", "ConvTranspose_pads", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 3, 4), strides=[2, 3], pads=[1, 0, 0, 2])
case("nn", "ConvTranspose_grouped", "ConvTranspose", run(1, 4, 4, 5), normal(4, 3, 3, 3), normal(6), group=2, dilations=[2, 1])
case(
    "nn",
    "ConvTranspose_output_padding",
    "ConvTranspose",
    run(1, 3, 4, 5),
    normal(3, 4, 3, 3),
    normal(4),
    strides=[2, 2],
    pads=[1] * 4,
    output_padding=[1, 1],
)
case("nn", "ConvTranspose_beyond", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 2, 2), normal(4), strides=[3, 3], output_padding=[1, 2])
case("nn", "ConvTranspose_beyond_no_bias", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 2, 2), strides=[3, 3], output_padding=[2, 1])
case("nn", "ConvTranspose_output_shape", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 3, 3), strides=[2, 2], output_shape=[8, 10])
case("nn", "ConvTranspose_same_upper", "ConvTranspose", run(1, 3, 4, 5), normal(3, 4, 3, 4), strides=[2, 2], auto_pad="SAME_UPPER")
case("nn", "ConvTranspose_1d", "ConvTranspose", run(1, 3, 6), normal(3, 4, 4), normal(4), strides=[2], pads=[1, 1])
case("nn", "MaxPool", "MaxPool", run(1, 3, 8, 7), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
case("nn", "MaxPool_ceil", "MaxPool", run(1, 3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
case("nn", "MaxPool_same", "MaxPool", run(1, 3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("nn", "MaxPool_negative_values", "MaxPool", Run(-1 - np.abs(normal(1, 2, 5, 5))), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
case("nn", "MaxPool_1d", "MaxPool", run(1, 3, 9), kernel_shape=[3], strides=[2])
case("nn", "AveragePool", "AveragePool", run(1, 3, 8, 7), kernel_shape=[3, 2], strides=[3, 2])
case("nn", "AveragePool_exclude", "AveragePool", run(1, 3, 8, 7), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
case("nn", "AveragePool_include", "AveragePool", run(1, 3, 8, 7), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
case("nn", "AveragePool_ceil", "AveragePool", run(1, 3, 8, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
case("nn", "MaxPool_dilated", "MaxPool", run(1, 3, 9, 8), kernel_shape=[3, 2], dilations=[2, 3], pads=[2, 1, 1, 1], strides=[1, 2])
case("nn", "MaxPool_dilated_1d", "MaxPool", run(1, 3, 19), kernel_shape=[3], dilations=[4], ceil_mode=1, strides=[3])
case("nn", "MaxPool_indices", "MaxPool", run(2, 3, 7, 8), outputs=("y", "i"), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
case("nn", "MaxPool_indices_only", "MaxPool", run(2, 3, 7, 8), outputs=("y", "i"), kernel_shape=[2, 3], storage_order=1)
case("opset19", "AveragePool_dilated", "AveragePool", run(1, 3, 9, 8), opset=19, kernel_shape=[3, 2], dilations=[2, 3], pads=[2, 1, 1, 1])
case(
    "opset19",
    "AveragePool_all",
    "AveragePool",
    run(1, 3, 9, 8),
    opset=19,
    kernel_shape=[3, 3],
    strides=[2, 3],
    dilations=[2, 1],
    pads=[1, 2, 2, 1],
    ceil_mode=1,
    count_include_pad=1,
)
case("nn", "LogSoftmax", "LogSoftmax", run(2, 3, 4), axis=1)
case("nn", "LogSoftmax_large", "LogSoftmax", Run(f32(1000, 1001, 1002.5, 990)[None]), axis=-1)
case("nn", "LRN", "LRN", run(2, 7, 3, 4), size=5, alpha=0.02, beta=0.6, bias=1.5)
case("nn", "GlobalAveragePool", "GlobalAveragePool", run(2, 3, 4, 5))
case("nn", "GlobalAveragePool_1d", "GlobalAveragePool", run(2, 3, 4))
case("nn", "GlobalMaxPool", "GlobalMaxPool", run(2, 3, 4, 5))
statistics = (normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.5)
case("nn", "BatchNormalization", "BatchNormalization", run(2, 3, 4, 5), *statistics)
case("nn", "BatchNormalization_2d", "BatchNormalization", run(2, 3), *statistics, epsilon=1e-3)
case("nn", "BatchNormalization_3d", "BatchNormalization", run(2, 3, 4), *statistics)
case("nn", "InstanceNormalization", "InstanceNormalization", run(2, 3, 6, 5), normal(3), normal(3))
case("nn", "LayerNormalization", "LayerNormalization", run(2, 3, 8), normal(8), normal(8))
case("nn", "LayerNormalization_two_axes", "LayerNormalization", run(2, 3, 8), normal(3, 8), axis=1, epsilon=1e-3)
case("nn", "Softmax", "Softmax", run(2, 3, 4))
case("nn", "Softmax_axis", "Softmax", run(2, 3, 4), axis=1)
case("nn", "Dropout", "Dropout", run(2, 3))

# --- resize --------------------------------------------------------------------------------------------------------------------------------


def resize(name: str, x: Run, scales: tuple[float, ...] = (), sizes: tuple[int, ...] = (), **attrs: Any) -> None:
    given = (None, f32(*scales)) if scales else (None, None, i64(*sizes))
    case("resize", f"Resize_{name}", "Resize", x, *given, **attrs)


resize("nearest_2x_asymmetric", run(1, 2, 3, 4), (1, 1, 2, 2), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
resize("nearest_2x_3x_half_pixel", run(1, 2, 3, 4), (1, 1, 2, 3))
resize("nearest_sizes", run(1, 2, 5, 4), sizes=(1, 2, 7, 9))
resize("nearest_down", run(1, 2, 8, 9), sizes=(1, 2, 4, 5), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
resize("nearest_ceil", run(1, 2, 4, 4), (1, 1, 1.5, 2.5), coordinate_transformation_mode="asymmetric", nearest_mode="ceil")
resize(
    "nearest_align_corners",
    run(1, 2, 4, 4),
    sizes=(1, 2, 7, 6),
    coordinate_transformation_mode="align_corners",
    nearest_mode="round_prefer_ceil",
)
resize("nearest_all_axes", run(2, 3), (2, 2), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
resize("nearest_3d", run(1, 2, 3), (1, 1, 2))
resize("same_size", run(1, 2, 3, 4), (1, 1, 1, 1))
for mode in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
    resize(f"linear_up_{mode}", run(1, 2, 3, 4), (1, 1, 2, 3), mode="linear", coordinate_transformation_mode=mode)
    resize(f"linear_sizes_{mode}", run(1, 2, 6, 9), sizes=(1, 2, 10, 4), mode="linear", coordinate_transformation_mode=mode)
resize("linear_1d", run(1, 2, 5), (1, 1, 2), mode="linear")
resize("linear_all_axes", run(5, 4), (0.7, 2.5), mode="linear")
resize("linear_part_of_a_pixel", run(1, 2, 4, 4), (1, 1, 1.3, 0.6), mode="linear")
resize("cubic", run(1, 2, 5, 6), (1, 1, 2, 1.5), mode="cubic")
resize("cubic_excluding", run(1, 2, 5, 6), sizes=(1, 2, 3, 9), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
resize("nearest_int", ints(1, 2, 3, 4, dtype=np.int32), (1, 1, 2, 2))

# --- tensor --------------------------------------------------------------------------------------------------------------------------------

case("tensor", "Reshape", "Reshape", run(2, 3, 4), i64(0, -1))
case("tensor", "Reshape_to_scalar", "Reshape", run(1, 1), np.zeros(0, np.int64))
case("tensor", "Flatten", "Flatten", run(2, 3, 4), axis=2)
case("tensor", "Squeeze", "Squeeze", run(1, 3, 1), i64(0, 2))
case("tensor", "Squeeze_all_to_scalar", "Squeeze", run(1, 1))
case("tensor", "Unsqueeze", "Unsqueeze", run(2, 3), i64(0, 3))
case("tensor", "Unsqueeze_bool", "Unsqueeze", bools(2, 3), i64(1))
case("tensor", "Transpose", "Transpose", run(2, 3, 4), perm=[2, 0, 1])
case("tensor", "Transpose_default", "Transpose", run(2, 3, 4))
case("tensor", "Concat", "Concat", run(2, 3), normal(2, 1), run(2, 2), axis=-1)
case("tensor", "Concat_one", "Concat", run(2, 3), axis=0)
case("tensor", "Concat_bool", "Concat", bools(2, 3), bools(2, 3), axis=0)
case("tensor", "Concat_int", "Concat", ints(2, 3), ints(2, 3), axis=1)
case("tensor", "Slice", "Slice", run(4, 6), i64(1, -4), i64(3, 2**63 - 1))
case("tensor", "Slice_steps", "Slice", run(4, 7), i64(0, 1), i64(4, 7), i64(0, 1), i64(2, 3))
case("tensor", "Slice_negative_step", "Slice", run(4, 7), i64(-1, 5), i64(-(2**63), 0), i64(0, 1), i64(-1, -2))
case("tensor", "Slice_negative_axis", "Slice", run(4, 7), i64(2), i64(5), i64(-1))
case("tensor", "Slice_out_of_range", "Slice", run(4, 7), i64(-100), i64(100), i64(0))
case("tensor", "Split", "Split", run(6, 2), i64(1, 2, 3), outputs=("a", "b", "c"), axis=0)
case("tensor", "Split_equal", "Split", run(2, 6), outputs=("a", "b"), axis=-1)
case("tensor", "Gather_scalar", "Gather", run(3, 4), scalar(-1, np.int64), axis=1)
case("tensor", "Gather_one", "Gather", run(3, 4), i64(1))
case("tensor", "Gather_constant", "Gather", run(3, 4), np.array([[0, -1], [2, 1]], np.int64), axis=0)
case("tensor", "Gather_run_time", "Gather", run(5, 4), ints(2, 3, low=-5, high=5), axis=0)
case("tensor", "Gather_run_time_scalar", "Gather", run(5, 4), Run(scalar(-2, np.int64)), axis=0)
case("tensor", "Gather_table", "Gather", normal(5, 4), ints(3, low=0, high=5, dtype=np.int32), axis=0)
case("tensor", "Gather_int", "Gather", ints(3, 4), i64(2, 0), axis=1)
case("tensor", "Gather_bool", "Gather", bools(3, 4), i64(2, 0), axis=0)
case("tensor", "GatherElements", "GatherElements", run(3, 4), np.array([[0, -1, 2], [1, 0, -3]], np.int64), axis=0)
case("tensor", "GatherElements_run_time", "GatherElements", run(3, 4), ints(3, 2, low=-4, high=4), axis=1)
case("tensor", "GatherElements_bool", "GatherElements", bools(3, 4), i64(0, 1, 2, 0)[None], axis=0)
case("tensor", "GatherND", "GatherND", run(3, 4, 2), np.array([[[0, -1]], [[2, 1]]], np.int64))
case("tensor", "GatherND_batch", "GatherND", run(2, 4, 3), ints(2, 5, 1, low=-4, high=4), batch_dims=1)
case("tensor", "ScatterElements", "ScatterElements", run(3, 4), np.array([[0, -1, 2]], np.int64), normal(1, 3), axis=1)
case("tensor", "ScatterElements_whole", "ScatterElements", run(3, 4), ints(3, 2, low=-4, high=-2), run(3, 2), axis=1, reduction="add")
case("tensor", "ScatterElements_corner", "ScatterElements", run(3, 4), ints(2, 2, low=0, high=2), run(2, 2), axis=0, reduction="mul")
case("tensor", "ScatterElements_bool", "ScatterElements", bools(3, 4), i64(2, 1, 0, 0)[None], np.ones((1, 4), bool), axis=0)
case("tensor", "ScatterND", "ScatterND", run(4, 3), i64(-1, 1)[:, None], run(2, 3))
case("opset18", "ScatterND_max", "ScatterND", run(4, 3), i64(0, 1, 1)[:, None], run(3, 3), opset=18, reduction="max")
case("tensor", "TopK", "TopK", run(3, 5), i64(2), outputs=("y", "i"))
case("tensor", "TopK_smallest_axis_0", "TopK", run(5, 2, 3), i64(3), outputs=("y", "i"), axis=0, largest=0)
case("tensor", "TopK_ties", "TopK", ints(4, 9, low=0, high=3), i64(5), outputs=("y", "i"))
case("tensor", "TopK_ties_smallest", "TopK", ints(4, 9, low=0, high=3), i64(9), outputs=("y", "i"), largest=0)
case("tensor", "CumSum", "CumSum", run(3, 4), scalar(1, np.int64))
case("tensor", "CumSum_all", "CumSum", ints(3, 4), scalar(-2, np.int64), exclusive=1, reverse=1)
case("tensor", "Trilu_upper", "Trilu", run(2, 4, 5), scalar(-1, np.int64))
case("tensor", "Trilu_upper_mask", "Trilu", run(2, 4, 5), scalar(2, np.int64))
case("tensor", "Trilu_lower", "Trilu", ints(4, 5), scalar(1, np.int64), upper=0)
case("tensor", "Trilu_lower_mask", "Trilu", ints(4, 5), scalar(-2, np.int64), upper=0)
case("tensor", "OneHot", "OneHot", ints(2, 3, low=-4, high=6), scalar(4, np.int64), f32(0.5, 2.0), axis=1)
case("tensor", "Dropout_mask", "Dropout", run(2, 3), outputs=("y", "mask"))
case("opset19", "Pad_wrap", "Pad", run(2, 3), i64(1, 2, 0, 4), opset=19, mode="wrap")
case("tensor", "Pad_negative", "Pad", run(4, 5), i64(-1, 2, 0, -2))
case("tensor", "Pad_int", "Pad", ints(2, 3), i64(1, 0, 0, 2), scalar(7, np.int64))
case("tensor", "Pad_bool", "Pad", bools(2, 3), i64(1, 0, 0, 2), np.array(True))
case("tensor", "Pad_reflect_channels", "Pad", run(3, 4, 2, 5), i64(2, 1, 0, 0, 0, 3, 1, 0), mode="reflect")
case("tensor", "Pad_edge_first_axis", "Pad", ints(3, 2, 2), i64(2, 0, 0, 1, 0, 3), mode="edge")
case("tensor", "Pad_constant", "Pad", run(2, 3), i64(1, 0, 0, 2))
case("tensor", "Pad_value", "Pad", run(1, 2, 3, 4), i64(0, 1, 1, 2, 1, 0, 0, 1), scalar(1.5))
case("tensor", "Pad_reflect", "Pad", run(1, 8), i64(0, 3, 0, 2), mode="reflect")
case("tensor", "Pad_reflect_2d", "Pad", run(1, 2, 4, 5), i64(0, 0, 1, 2, 0, 0, 3, 0), mode="reflect")
case("tensor", "Pad_edge", "Pad", run(1, 2, 4, 5), i64(0, 0, 1, 0, 0, 0, 2, 3), mode="edge")
case("tensor", "Pad_nothing", "Pad", run(2, 3), i64(0, 0, 0, 0))
case("tensor", "Expand", "Expand", run(3, 1), i64(2, 1, 4))
case("tensor", "Expand_nothing", "Expand", run(3, 4), i64(1, 4))
case("tensor", "Expand_scalar", "Expand", Run(scalar(2.5)), i64(2, 3))
case("tensor", "Expand_bool", "Expand", bools(3, 1), i64(3, 4))
case("tensor", "Tile", "Tile", run(2, 3), i64(2, 1))

# --- more axes than Core ML has ------------------------------------------------------------------------------------------------------------

case("rank", "Transpose_6", "Transpose", run(2, 3, 2, 2, 3, 2), perm=[3, 0, 5, 1, 4, 2])
case("rank", "Transpose_7_default", "Transpose", run(2, 1, 2, 2, 3, 2, 2))
case("rank", "Reshape_to_6", "Reshape", run(4, 3, 8), i64(2, 2, 3, 2, 2, 2))
case("rank", "Add_6", "Add", run(2, 3, 1, 2, 2, 2), normal(2, 3, 1, 2, 2, 2))
case("rank", "Relu_6_bool", "Not", bools(2, 3, 1, 2, 2, 2))
case("rank", "Softmax_6", "Softmax", run(2, 3, 1, 2, 2, 2), axis=1)
case("rank", "Concat_6", "Concat", run(2, 3, 1, 2, 2, 2), normal(2, 1, 1, 2, 2, 2), axis=1)
case("rank", "Gather_6", "Gather", run(2, 3, 1, 2, 2, 2), np.array([[2, 0], [1, 1]], np.int64), axis=1)
case("rank", "GatherElements_6", "GatherElements", run(2, 3, 1, 2, 2, 2), ints(2, 1, 1, 2, 2, 2, low=-3, high=3), axis=1)
case("rank", "ReduceSum_6", "ReduceSum", run(2, 3, 1, 2, 2, 2), i64(1, 2), keepdims=0)
case("rank", "ReduceMax_6_all", "ReduceMax", run(2, 3, 1, 2, 2, 2), keepdims=0)
case("rank", "Slice_6", "Slice", run(2, 3, 5, 1, 2, 2), i64(0, 1), i64(2, 9), i64(0, 2), i64(1, 2))
case("rank", "ArgMax_6", "ArgMax", run(2, 3, 1, 2, 2, 2), axis=4)

# --- reductions and recurrent layers -------------------------------------------------------------------------------------------------------

for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"):
    case("reduction", op, op, run(2, 3, 4), axes=[1])
    case("reduction", f"{op}_all_to_scalar", op, run(2, 3), keepdims=0)
case("reduction", "ReduceSum", "ReduceSum", run(2, 3, 4), i64(-1, 0), keepdims=0)
case("reduction", "ReduceSum_all", "ReduceSum", run(2, 3))
case("reduction", "ReduceSum_noop", "ReduceSum", run(2, 3), noop_with_empty_axes=1)
case("reduction", "ReduceSum_int", "ReduceSum", ints(2, 3), i64(1), keepdims=0)
case("reduction", "ReduceMax_int", "ReduceMax", ints(2, 3), axes=[0], keepdims=1)
case("reduction", "ArgMax", "ArgMax", run(3, 5), axis=1, keepdims=0)
case("reduction", "ArgMax_keep", "ArgMax", run(3, 5), axis=0)
case("reduction", "ArgMax_last", "ArgMax", ints(4, 9, low=0, high=3, dtype=np.int32), axis=1, select_last_index=1)
case("reduction", "ArgMin_last", "ArgMin", ints(4, 9, low=0, high=3, dtype=np.int32), axis=0, select_last_index=1, keepdims=0)
case("reduction", "ReduceLogSum", "ReduceLogSum", positive(2, 3), axes=[1])
case("opset20", "ReduceMax_bool", "ReduceMax", bools(3, 4), i64(1), opset=20, keepdims=0)
case("reduction", "ArgMin_vector", "ArgMin", run(5), axis=0, keepdims=0)


def lstm(name: str, directions: int, *states: Any, steps: int = 5, outputs: tuple[str, ...] = ("y", "h", "c"), **attrs: Any) -> None:
    size, hidden = 4, 3
    w, r, b = normal(directions, 4 * hidden, size), normal(directions, 4 * hidden, hidden), normal(directions, 8 * hidden)
    case("recurrent", f"LSTM_{name}", "LSTM", run(steps, 2, size), w, r, b, *states, outputs=outputs, hidden_size=hidden, **attrs)


lstm("forward", 1)
lstm("one_step_with_state", 1, None, run(1, 2, 3), run(1, 2, 3), steps=1)
lstm("reverse", 1, None, run(1, 2, 3), run(1, 2, 3), direction="reverse")
lstm("bidirectional", 2, None, run(2, 2, 3), run(2, 2, 3), direction="bidirectional")
lstm("constant_state_and_lengths", 1, np.array([5, 5], np.int32), normal(1, 2, 3), normal(1, 2, 3))
lstm("clip", 1, steps=2, clip=0.4)
lstm("lengths", 1, np.array([3, 2], np.int32), steps=3, direction="reverse")
lstm("peepholes", 1, None, None, None, normal(1, 9), steps=2)
lstm("other_activations", 2, steps=2, direction="bidirectional", activations=["HardSigmoid", "Relu", "Softsign"] * 2)


def gru(
    name: str, directions: int, *states: Any, steps: int = 5, outputs: tuple[str, ...] = ("y", "h"), op: str = "GRU", **attrs: Any
) -> None:
    size, hidden, gates = 4, 3, 3 if op == "GRU" else 1
    w, r, b = normal(directions, gates * hidden, size), normal(directions, gates * hidden, hidden), normal(directions, 2 * gates * hidden)
    case("recurrent", f"{op}_{name}", op, run(steps, 2, size), w, r, b, *states, outputs=outputs, hidden_size=hidden, **attrs)


for op in ("GRU", "RNN"):
    gru("forward", 1, op=op)
    gru("reverse_with_state", 1, None, run(1, 2, 3), op=op, direction="reverse")
    gru("bidirectional", 2, None, run(2, 2, 3), op=op, direction="bidirectional")
    gru("lengths", 1, np.array([3, 2], np.int32), op=op, steps=3)
gru("reset_after", 1, steps=2, linear_before_reset=1)
gru("relu", 1, op="RNN", steps=2, activations=["Relu"])
lstm("last_state_only", 1, outputs=("", "h"))

# --- older opsets: the normalised graph has 13 or newer, these forms cost nothing ------------------------------------------------------------

case("opset10", "Resize_opset10", "Resize", run(1, 2, 3, 4), f32(1, 1, 2, 2), opset=10, mode="nearest")
case("opset10", "Softmax_opset10", "Softmax", run(2, 3, 4), opset=10, axis=1)
case("opset10", "Slice_opset10", "Slice", run(4, 6), i64(1), i64(3), opset=10)
case("opset10", "Clip_opset10", "Clip", run(4, 6), opset=10, min=-0.5, max=0.5)
case("opset10", "ReduceSum_opset10", "ReduceSum", run(4, 6), opset=10, axes=[1])
case("opset10", "Unsqueeze_opset10", "Unsqueeze", run(4, 6), opset=10, axes=[1])
case("opset10", "Split_opset10", "Split", run(4, 6), opset=10, outputs=("a", "b"), axis=1, split=[2, 4])
case("opset10", "Pad_opset10", "Pad", run(4, 6), opset=10, pads=[1, 0, 2, 0], value=0.5)
case("opset21", "ReduceMean_opset21", "ReduceMean", run(4, 6), i64(1), opset=21, keepdims=0)
case("opset21", "Pad_axes_opset21", "Pad", run(2, 3, 4), i64(1, 2), scalar(0.5), i64(-1), opset=21)
case("opset21", "Split_num_outputs_opset21", "Split", run(7, 2), opset=21, outputs=("a", "b"), num_outputs=2)


def single(one: Case, make: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The case as a model whose names are prefixed with the case's."""
    names = [None if operand is None else f"i{index}" for index, operand in enumerate(one.operands)]
    inputs = {name: operand.array for name, operand in zip(names, one.operands, strict=True) if isinstance(operand, Run)}
    constants = {name: operand for name, operand in zip(names, one.operands, strict=True) if isinstance(operand, np.ndarray)}
    node = helper.make_node(one.op, [name or "" for name in names], list(one.outputs), "node", **one.attrs)
    model = make([node], inputs, constants, [name for name in one.outputs if name], one.opset)
    prefix = f"{one.name}/"
    return compose.add_prefix(model, prefix), {prefix + name: array for name, array in inputs.items()}


@pytest.fixture(scope="module")
def family_results(make, emit_into, tmp_path_factory):
    """``family_results(family, precision)``: expected and actual outputs of all its cases, by prefixed name."""
    made: dict[tuple[str, str], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def results(family: str, precision: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        if (family, precision) not in made:
            singles = [single(one, make) for one in CASES if one.family == family]
            models = [model for model, _ in singles]
            merged = onnx.ModelProto()
            merged.CopyFrom(models[0])
            for model in models[1:]:
                for part in ("node", "initializer", "input", "output", "value_info"):
                    getattr(merged.graph, part).extend(getattr(model.graph, part))
            inputs = {name: array for _, given in singles for name, array in given.items()}
            done = emit_into(tmp_path_factory.mktemp(family), merged, inputs, precision=precision, target="iOS17")
            made[family, precision] = (done.expected, done.run())
        return made[family, precision]

    return results


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("one", [pytest.param(one, id=one.name, marks=SLOW if one.family == "recurrent" else ()) for one in CASES])
def test_same_as_onnx_runtime(one: Case, precision: str, family_results):
    expected, actual = family_results(one.family, precision)
    for output in filter(None, one.outputs):
        want, got = expected[f"{one.name}/{output}"], actual[f"{one.name}/{output}"]
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        # float32: rounding of another summation order. float16: 11 significant bits through at most a few hundred sums.
        tolerance = 2e-5 if precision == "fp32" else 1e-2
        scale = max(1.0, float(np.abs(want).max()))
        assert float(np.abs(got - want).max()) <= tolerance * scale


def test_names_are_unique():
    assert len({one.name for one in CASES}) == len(CASES)


def test_every_handler_has_a_case():
    from edgekit.converters.coreml import ops

    untested = {registration.op for registration in ops.registrations()} - {one.op for one in CASES}
    # Of opsets below what normalisation gives; Resize's and ScatterElements' cases go through the same handlers.
    assert untested - {"QuantizeLinear", "DequantizeLinear"} == {"Upsample", "Scatter", "Swish"}
