"""One table of single-operator models; each row is converted and compared with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_random = np.random.default_rng(20_24)


def floats(*shape: int) -> np.ndarray:
    return _random.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (_random.random(shape) + 0.1).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def whole(*shape: int, kind: str = "int32") -> np.ndarray:
    return _random.integers(-9, 10, shape).astype(kind)


def flags(*shape: int) -> np.ndarray:
    return _random.integers(0, 2, shape).astype(bool)


@dataclass(frozen=True)
class Case:
    """One operator with its inputs.

    Attributes:
        name: test id.
        op: operator type.
        inputs: run-time inputs.
        constants: initializers after them; None leaves an optional input out.
        attrs: attributes.
        opset: ai.onnx version.
        outputs: how many outputs are read.
        after_conv: put a 1x1 convolution in front of the first input, so that the operator meets a tensor that lies channels-last.
    """

    name: str
    op: str
    inputs: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray | None, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    after_conv: bool = False

    def model(self) -> onnx.ModelProto:
        names = [f"in{i}" for i in range(len(self.inputs))]
        constants = {f"c{i}": value for i, value in enumerate(self.constants) if value is not None}
        args = names + [f"c{i}" if value is not None else "" for i, value in enumerate(self.constants)]
        nodes = []
        if self.after_conv:
            channels = self.inputs[0].shape[1]
            spatial = (1,) * (self.inputs[0].ndim - 2)
            constants["mix"] = np.random.default_rng(5).standard_normal((channels, channels, *spatial)).astype(np.float32)
            nodes.append(helper.make_node("Conv", ["in0", "mix"], ["mixed"], "mixer"))
            args[0] = "mixed"
        results = [f"out{i}" for i in range(self.outputs)]
        nodes.append(helper.make_node(self.op, args, results, "tested", **self.attrs))
        graph = helper.make_graph(
            nodes,
            "case",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in zip(names, self.inputs, strict=True)
            ],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in results],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8), strict_mode=True, data_prop=True
        )


def conv(name: str, x: np.ndarray, w: np.ndarray, *bias: np.ndarray, op: str = "Conv", **attrs: Any) -> Case:
    return Case(f"{op}-{name}", op, (x,), (w, *bias), attrs)


def resize(name: str, x: np.ndarray, *, scales: Any = None, sizes: Any = None, opset: int = 13, **attrs: Any) -> Case:
    given = (None, np.asarray(scales, np.float32) if scales else None, *((ints(*sizes),) if sizes else ()))
    return Case(f"Resize-{name}", "Resize", (x,), given, attrs, opset)


_UNARY_FLOAT = [
    "Neg",
    "Abs",
    "Ceil",
    "Floor",
    "Exp",
    "Cos",
    "Sin",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "Sign",
    "Round",
    "HardSwish",
    "Elu",
    "LeakyRelu",
    "HardSigmoid",
]
_BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min"]
_REDUCE = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]
_IMAGE = floats(1, 3, 9, 8)

CASES: list[Case] = [
    *(Case(op, op, (floats(2, 3, 4) * 3,)) for op in _UNARY_FLOAT),
    *(Case(op, op, (positive(2, 3),)) for op in ("Sqrt", "Log", "Reciprocal")),
    Case("Elu-alpha", "Elu", (floats(2, 5),), attrs={"alpha": 0.5}),
    Case("HardSigmoid-sixth", "HardSigmoid", (floats(2, 5) * 4,), attrs={"alpha": 1 / 6, "beta": 0.5}),
    Case("Not", "Not", (flags(3, 4),)),
    Case("Dropout", "Dropout", (floats(3, 4),)),
    Case("Identity", "Identity", (floats(3, 4),)),
    Case("Cast-int", "Cast", (floats(3, 4) * 5,), attrs={"to": TensorProto.INT32}),
    Case("Cast-from-bool", "Cast", (flags(3, 4),), attrs={"to": TensorProto.FLOAT}),
    Case("Cast-int64", "Cast", (whole(3, 4),), attrs={"to": TensorProto.INT64}),
    Case("Clip-attributes", "Clip", (floats(3, 4) * 5,), attrs={"min": 0.0, "max": 6.0}, opset=6),
    Case("Clip-inputs", "Clip", (floats(3, 4) * 5,), (np.float32(-1.5), np.float32(2.5))),
    Case("Clip-low-only", "Clip", (floats(3, 4),), (np.float32(0),)),
    Case("Clip-computed", "Clip", (floats(3, 4), np.asarray(-0.3, np.float32), np.asarray(0.4, np.float32))),
    Case("Clip-int", "Clip", (whole(3, 4),), (np.int32(-2), np.int32(3)), opset=12),
    *(Case(f"{op}-broadcast", op, (floats(2, 3, 4), positive(3, 1))) for op in _BINARY),
    *(Case(f"{op}-int", op, (whole(2, 3), np.abs(whole(2, 3)) + 1)) for op in _BINARY),
    *(Case(f"{op}-constant-after-conv", op, (floats(1, 3, 4, 5),), (positive(3, 1, 1),), after_conv=True) for op in _BINARY),
    Case("Add-vector-after-conv", "Add", (floats(1, 3, 4, 5), floats(5)), after_conv=True),
    Case("Add-two-layouts", "Add", (floats(1, 3, 4, 5), floats(1, 3, 4, 5)), after_conv=True),
    Case("Add-scalar", "Add", (floats(2, 3),), (np.float32(2),)),
    Case("Sum-three", "Sum", (floats(2, 3), floats(3), floats(2, 1))),
    Case("Mean", "Mean", (floats(2, 3), floats(3))),
    Case("Max-three", "Max", (floats(2, 3), floats(3), floats(2, 1))),
    Case("Pow-square", "Pow", (floats(2, 3),), (np.float32(2),)),
    Case("Pow-root", "Pow", (positive(2, 3),), (np.float32(0.5),)),
    Case("Pow-general", "Pow", (positive(2, 3), floats(3))),
    Case("Equal-int", "Equal", (whole(4, 5), whole(4, 5))),
    Case("Equal-column", "Equal", (np.arange(6, dtype=np.int32).reshape(6, 1),), (np.arange(4, dtype=np.int32),)),
    *(Case(op, op, (floats(3, 4), floats(3, 4))) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(op, op, (flags(3, 4), flags(3, 4))) for op in ("And", "Or", "Xor")),
    Case("Mod-int", "Mod", (whole(3, 4), whole(3, 4) * 2 + 1)),
    Case("Mod-fmod", "Mod", (floats(3, 4) * 5, positive(3, 4)), attrs={"fmod": 1}),
    Case("PRelu", "PRelu", (floats(1, 3, 4, 4),), (positive(3, 1, 1),), after_conv=True),
    Case("Where", "Where", (flags(2, 3), floats(2, 3), floats(3))),
    # convolutions
    conv("plain", _IMAGE, floats(4, 3, 3, 3), floats(4)),
    conv("same-pads", _IMAGE, floats(4, 3, 3, 3), floats(4), pads=[1, 1, 1, 1]),
    conv("stride-pads", _IMAGE, floats(4, 3, 3, 3), floats(4), pads=[1, 1, 1, 1], strides=[2, 2]),
    conv("uneven", _IMAGE, floats(4, 3, 3, 2), pads=[0, 1, 2, 0], strides=[2, 1]),
    conv("same-upper", _IMAGE, floats(4, 3, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("same-lower", _IMAGE, floats(4, 3, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("valid", _IMAGE, floats(4, 3, 3, 3), auto_pad="VALID"),
    conv("dilated", _IMAGE, floats(4, 3, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    conv("depthwise", _IMAGE, floats(3, 1, 3, 3), floats(3), group=3, pads=[1, 1, 1, 1]),
    conv("depthwise-multiplier", _IMAGE, floats(6, 1, 3, 3), group=3, strides=[2, 1], pads=[1, 1, 1, 1]),
    conv("depthwise-dilated", _IMAGE, floats(3, 1, 3, 3), group=3, dilations=[2, 2]),
    conv("grouped", floats(1, 4, 6, 6), floats(6, 2, 3, 3), floats(6), group=2, pads=[1, 1, 1, 1]),
    conv("one-axis", floats(2, 3, 10), floats(5, 3, 3), floats(5), pads=[1, 1], strides=[2]),
    conv("one-axis-depthwise", floats(2, 3, 10), floats(3, 1, 3), group=3, pads=[2, 0]),
    conv("stride-two", floats(1, 3, 4, 5), floats(3, 2, 2, 2), floats(2), op="ConvTranspose", strides=[2, 2]),
    conv("pads", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    conv("uneven", floats(1, 3, 4, 5), floats(3, 2, 3, 4), op="ConvTranspose", strides=[2, 3], pads=[0, 1, 2, 0]),
    conv("grouped", floats(1, 4, 4, 5), floats(4, 3, 3, 3), floats(6), op="ConvTranspose", group=2, strides=[2, 2]),
    conv("dilated", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", dilations=[2, 2]),
    conv("same-upper", floats(1, 3, 4, 5), floats(3, 2, 3, 3), op="ConvTranspose", auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("one-axis", floats(1, 3, 6), floats(3, 2, 4), op="ConvTranspose", strides=[2], pads=[1, 1]),
    # normalisation
    Case("BatchNormalization", "BatchNormalization", (_IMAGE,), (floats(3), floats(3), floats(3), positive(3)), after_conv=True),
    Case("BatchNormalization-flat", "BatchNormalization", (floats(4, 3),), (floats(3), floats(3), floats(3), positive(3))),
    Case("InstanceNormalization", "InstanceNormalization", (floats(2, 3, 4, 5),), (floats(3), floats(3)), after_conv=True),
    Case("LayerNormalization", "LayerNormalization", (floats(2, 3, 8),), (floats(8), floats(8)), {"axis": -1}),
    Case("LayerNormalization-two-axes", "LayerNormalization", (floats(2, 3, 8),), (floats(3, 8),), {"axis": 1}),
    # products
    Case("MatMul-constant", "MatMul", (floats(2, 5, 4),), (floats(4, 3),)),
    Case("MatMul-batched", "MatMul", (floats(2, 1, 5, 4), floats(3, 4, 2))),
    Case("MatMul-vector", "MatMul", (floats(2, 5, 4), floats(4))),
    Case("MatMul-row", "MatMul", (floats(4), floats(4, 3))),
    Case("MatMul-after-conv", "MatMul", (floats(1, 3, 4, 5), floats(5, 2)), after_conv=True),
    Case("Gemm", "Gemm", (floats(3, 4),), (floats(5, 4), floats(5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm-computed", "Gemm", (floats(4, 3), floats(4, 5), floats(3, 1)), (), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Softmax", "Softmax", (floats(2, 3, 4),)),
    Case("Softmax-axis", "Softmax", (floats(2, 3, 4),), attrs={"axis": 1}),
    Case("Softmax-channels-after-conv", "Softmax", (floats(1, 3, 4, 5),), attrs={"axis": 1}, after_conv=True),
    Case("LogSoftmax-old", "LogSoftmax", (floats(2, 3, 4),), opset=11),
    Case("Softmax-old", "Softmax", (floats(2, 3, 4),), opset=11),
    Case("LogSoftmax", "LogSoftmax", (floats(2, 3, 4),)),
    # pools
    *(Case(f"{op}-after-conv", op, (floats(1, 3, 4, 5),), after_conv=True) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    Case("GlobalMaxPool-one-axis", "GlobalMaxPool", (floats(2, 3, 9),)),
    Case("MaxPool", "MaxPool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool-ceil", "MaxPool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool-dilated", "MaxPool", (_IMAGE,), attrs={"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool-one-axis", "MaxPool", (floats(1, 3, 10),), attrs={"kernel_shape": [3], "strides": [2]}),
    Case("AveragePool", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [3, 2], "strides": [3, 2]}),
    Case("AveragePool-same", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool-uneven", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "strides": [2, 2]}),
    Case("AveragePool-count-pads", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool-ceil", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool-dilated", "AveragePool", (_IMAGE,), attrs={"kernel_shape": [2, 2], "dilations": [2, 3]}, opset=19),
    # shapes
    Case("Reshape", "Reshape", (floats(2, 3, 4),), (ints(0, -1),)),
    Case("Reshape-after-conv", "Reshape", (floats(1, 3, 4, 5),), (ints(1, 3, 20),), after_conv=True),
    Case("Reshape-mixing-after-conv", "Reshape", (floats(1, 3, 4, 5),), (ints(1, 4, 15),), after_conv=True),
    Case("Reshape-batch-after-conv", "Reshape", (floats(2, 3, 4, 5),), (ints(6, 20),), after_conv=True),
    Case("Flatten-after-conv", "Flatten", (floats(2, 3, 4, 5),), attrs={"axis": 1}, after_conv=True),
    Case("Squeeze-after-conv", "Squeeze", (floats(2, 3, 1, 5),), (ints(2),), after_conv=True),
    Case("Squeeze-attribute", "Squeeze", (floats(2, 1, 5),), attrs={"axes": [1]}, opset=11),
    Case("Unsqueeze-after-conv", "Unsqueeze", (floats(2, 3, 4, 5),), (ints(0, 3),), after_conv=True),
    Case("Transpose", "Transpose", (floats(2, 3, 4),), attrs={"perm": [1, 2, 0]}),
    Case("Transpose-default-after-conv", "Transpose", (floats(2, 3, 4, 5),), after_conv=True),
    Case("Shape", "Shape", (floats(3, 4, 5),), attrs={"start": 1}),
    Case("Size", "Size", (floats(3, 4, 5),)),
    Case("ConstantOfShape", "ConstantOfShape", (), (ints(2, 3),), {"value": numpy_helper.from_array(np.asarray([7], np.int32))}),
    Case("Expand", "Expand", (floats(3, 1),), (ints(2, 3, 4),)),
    Case("Expand-after-conv", "Expand", (floats(1, 3, 1, 5),), (ints(2, 3, 4, 5),), after_conv=True),
    Case("Tile-after-conv", "Tile", (floats(1, 3, 2, 2),), (ints(1, 2, 3, 1),), after_conv=True),
    Case("Concat", "Concat", (floats(2, 3), floats(2, 2)), (floats(2, 1),), {"axis": 1}),
    Case("Concat-after-conv", "Concat", (floats(1, 3, 4, 5), floats(1, 2, 4, 5)), (), {"axis": -3}, after_conv=True),
    Case("Split", "Split", (floats(2, 7),), (ints(3, 4),), {"axis": 1}, outputs=2),
    Case("Split-channels-after-conv", "Split", (floats(1, 4, 3, 3),), (), {"axis": 1}, opset=13, outputs=2, after_conv=True),
    Case("Slice", "Slice", (floats(4, 6),), (ints(1, -4), ints(2**62, -1), ints(0, 1))),
    Case("Slice-steps-after-conv", "Slice", (floats(1, 4, 6, 5),), (ints(0, 1), ints(4, 6), ints(1, 2), ints(2, 2)), after_conv=True),
    Case("Slice-backwards", "Slice", (floats(4, 7),), (ints(-1, 5), ints(-(2**62), 0), ints(0, 1), ints(-1, -2))),
    Case("Slice-attributes", "Slice", (floats(4, 6),), attrs={"starts": [1], "ends": [-1], "axes": [1]}, opset=9),
    Case("Gather", "Gather", (floats(4, 6),), (ints(0, -1, 2),), {"axis": 1}),
    Case("Gather-scalar-after-conv", "Gather", (floats(1, 4, 3, 5),), (np.asarray(2, np.int64),), {"axis": 1}, after_conv=True),
    Case("Gather-table", "Gather", (floats(4, 6),), (np.asarray([[0, 3], [-1, 1]], np.int64),)),
    Case("Gather-computed", "Gather", (floats(4, 6), np.asarray([[0, 3], [-1, 1]], np.int64))),
    Case("Pad-constant-after-conv", "Pad", (floats(1, 3, 4, 5),), (ints(0, 1, 0, 2, 0, 0, 3, 1), np.float32(1.5)), after_conv=True),
    Case("Pad-reflect", "Pad", (floats(2, 6),), (ints(0, 2, 0, 3),), {"mode": "reflect"}),
    Case("Pad-edge", "Pad", (floats(2, 6),), (ints(1, 2, 0, 3),), {"mode": "edge"}),
    Case("Pad-negative", "Pad", (floats(4, 6),), (ints(-1, 2, 0, -3),)),
    Case("Pad-attributes", "Pad", (floats(2, 6),), attrs={"pads": [0, 1, 1, 0], "value": 2.0}, opset=10),
    Case("Pad-axes", "Pad", (floats(2, 6),), (ints(1, 2), None, ints(-1)), opset=18),
    Case("DepthToSpace", "DepthToSpace", (floats(1, 8, 3, 2),), attrs={"blocksize": 2}),
    Case("DepthToSpace-CRD", "DepthToSpace", (floats(1, 8, 3, 2),), attrs={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", "SpaceToDepth", (floats(1, 2, 6, 4),), attrs={"blocksize": 2}),
    # resize
    resize("nearest-double", _IMAGE, scales=[1, 1, 2, 2], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    resize("nearest-default", _IMAGE, scales=[1, 1, 3, 2]),
    resize("nearest-fraction", _IMAGE, scales=[1, 1, 1.7, 0.6]),
    resize("nearest-sizes-corners", _IMAGE, sizes=[1, 3, 13, 5], coordinate_transformation_mode="align_corners"),
    resize(
        "nearest-round-ceil", _IMAGE, sizes=[1, 3, 13, 5], coordinate_transformation_mode="asymmetric", nearest_mode="round_prefer_ceil"
    ),
    resize("nearest-ceil", _IMAGE, sizes=[1, 3, 13, 5], coordinate_transformation_mode="half_pixel", nearest_mode="ceil"),
    resize("nearest-channels", _IMAGE, sizes=[1, 6, 9, 8]),
    resize("linear-half-pixel", _IMAGE, scales=[1, 1, 2, 2], mode="linear"),
    resize("linear-corners", _IMAGE, sizes=[1, 3, 13, 5], mode="linear", coordinate_transformation_mode="align_corners"),
    resize("linear-asymmetric", _IMAGE, sizes=[1, 3, 18, 24], mode="linear", coordinate_transformation_mode="asymmetric"),
    resize("linear-pytorch-one", _IMAGE, sizes=[1, 3, 1, 5], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    resize("linear-fraction", _IMAGE, scales=[1, 1, 1.7, 0.6], mode="linear"),
    resize("linear-one-axis", floats(1, 3, 8), scales=[1, 1, 2], mode="linear"),
    resize("cubic", _IMAGE, sizes=[1, 3, 13, 5], mode="cubic"),
    resize("cubic-exclude", _IMAGE, scales=[1, 1, 2, 2], mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    Case("Resize-opset-10", "Resize", (_IMAGE,), (np.asarray([1, 1, 2, 2], np.float32),), opset=10),
    Case("Upsample", "Upsample", (_IMAGE,), (np.asarray([1, 1, 2, 3], np.float32),), {"mode": "nearest"}, opset=9),
    Case("Upsample-linear", "Upsample", (_IMAGE,), (np.asarray([1, 1, 2, 3], np.float32),), {"mode": "linear"}, opset=9),
    # reductions
    *(Case(f"{op}-keep-after-conv", op, (floats(1, 3, 4, 5),), (), {"axes": [1]}, 12, after_conv=True) for op in _REDUCE),
    *(Case(f"{op}-drop-after-conv", op, (floats(1, 3, 4, 5),), (), {"axes": [2], "keepdims": 0}, 12, after_conv=True) for op in _REDUCE),
    Case("ReduceMean-all", "ReduceMean", (floats(2, 3),), attrs={"keepdims": 0}),
    Case("ReduceMean-input", "ReduceMean", (floats(2, 3, 4),), (ints(-1),), opset=18),
    Case("ReduceSum-input", "ReduceSum", (whole(2, 3, 4),), (ints(0, 2),), {"keepdims": 0}, 13),
    Case("ReduceSum-noop", "ReduceSum", (floats(2, 3),), attrs={"noop_with_empty_axes": 1}, opset=13),
    Case("ReduceLogSum", "ReduceLogSum", (positive(2, 3),), attrs={"axes": [1]}),
    Case("ArgMax-after-conv", "ArgMax", (floats(1, 3, 4, 5),), attrs={"axis": 1}, after_conv=True),
    Case("ArgMin-drop", "ArgMin", (floats(3, 4),), attrs={"axis": -1, "keepdims": 0}),
    Case("CumSum", "CumSum", (floats(3, 4),), (np.asarray(1, np.int64),), {"reverse": 1, "exclusive": 1}),
    # recurrent: X; W, R, B, sequence_lens, initial_h, initial_c, P
    Case("LSTM-plain", "LSTM", (floats(4, 2, 3),), (floats(1, 20, 3), floats(1, 20, 5)), {"hidden_size": 5}, outputs=3),
    Case(
        "LSTM-states-peepholes",
        "LSTM",
        (floats(3, 2, 3),),
        (floats(1, 20, 3), floats(1, 20, 5), floats(1, 40), None, floats(1, 2, 5), floats(1, 2, 5), floats(1, 15)),
        {"hidden_size": 5},
        outputs=3,
    ),
    Case(
        "LSTM-both-ways",
        "LSTM",
        (floats(3, 2, 3),),
        (floats(2, 20, 3), floats(2, 20, 5), floats(2, 40)),
        {"hidden_size": 5, "direction": "bidirectional"},
        outputs=3,
    ),
    Case(
        "LSTM-reverse",
        "LSTM",
        (floats(3, 1, 3),),
        (floats(1, 20, 3), floats(1, 20, 5)),
        {"hidden_size": 5, "direction": "reverse"},
        outputs=3,
    ),
    Case("GRU", "GRU", (floats(4, 2, 3),), (floats(1, 15, 3), floats(1, 15, 5), floats(1, 30)), {"hidden_size": 5}, outputs=2),
    Case(
        "GRU-reset-after",
        "GRU",
        (floats(4, 2, 3),),
        (floats(2, 15, 3), floats(2, 15, 5), floats(2, 30), None, floats(2, 2, 5)),
        {"hidden_size": 5, "direction": "bidirectional", "linear_before_reset": 1},
        outputs=2,
    ),
]
