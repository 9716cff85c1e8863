"""How each engine wants int8 written into the graph. A calibration is one for all; only the written form differs.

Two placements:

- *inputs*: what a convolution or matrix product reads is quantised, and nothing else. The engine fuses the rest (TensorRT, OpenVINO, Core ML).
- *everything*: also what the listed operators write, because the engine has an int8 kernel only where all inputs and outputs of a node are int8
  (ONNX Runtime, TensorFlow Lite).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgekit.device_profiles import DeviceProfile

__all__ = ["PASSING", "WEIGHTED", "Scheme", "scheme_for"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where int8 pays: products with weights (or of two activations). Every scheme takes its weighted operators from these."""

PASSING = frozenset(
    {
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Identity",
        "MaxPool",
        "DepthToSpace",
        "SpaceToDepth",
        "Split",
        "Expand",
        "Tile",
    }
)
"""Operators that move or pick values: what goes in and what comes out share one scale."""


@dataclass(frozen=True)
class Scheme:
    """The form that one engine takes.

    Attributes:
        engine: engine name.
        activation: dtype of quantised activations.
        symmetric: zero point 0 for activations too.
        weight_bits: 8, or 7 where an x86 CPU without VNNI would saturate its 16-bit sums of two products (``reduce_range`` elsewhere).
        bias: ``int32`` where the kernel wants a quantised bias, else ``float``.
        activations: false for weights only.
        weighted: operators whose inputs and weights are quantised.
        everything: the second placement above.
        others: operators that it quantises besides.
        passing: operators that hand a scale on.
        fused: activations that the engine computes inside the operator before them.
        per_tensor: weighted operators whose kernel knows one scale for all channels only.
        expanded: operators without an int8 kernel that are written as several with one, see `expand`.
        fixed: ranges that an operator's kernel has by definition, as (low, high) of 8-bit values.
    """

    engine: str
    activation: Literal["uint8", "int8"] = "int8"
    symmetric: bool = False
    weight_bits: Literal[7, 8] = 8
    bias: Literal["int32", "float"] = "float"
    activations: bool = True
    weighted: frozenset[str] = WEIGHTED
    everything: bool = False
    others: frozenset[str] = frozenset()
    passing: frozenset[str] = PASSING
    fused: frozenset[str] = frozenset({"Relu", "Clip"})
    per_tensor: frozenset[str] = frozenset()
    expanded: frozenset[str] = frozenset()
    fixed: tuple[tuple[str, float, float], ...] = ()

    def fixed_range(self, op: str) -> tuple[float, float] | None:
        """The range that an operator's result has whatever was measured."""
        return next(((low, high) for name, low, high in self.fixed if name == op), None)


_ONNXRUNTIME = Scheme(
    "onnxruntime",
    activation="uint8",
    bias="int32",
    # No quantised transposed convolution on the CPU (ONNX Runtime 1.31, docs/OperatorKernels.md).
    weighted=frozenset({"Conv", "Gemm", "MatMul"}),
    everything=True,
    # Measured on the PP-OCR recogniser: sums and products in int8 too give 22.6 ms and 13.0 dB, convolutions alone 28.7 ms and 9.4 dB.
    others=frozenset({"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat"}),
)
_OPENVINO = Scheme("openvino", activation="uint8")
# TensorRT: zero point 0 everywhere, and its parser refuses a dequantised int32 bias (../shared/reference/tensorrt.md, section 6).
_TENSORRT = Scheme("tensorrt", symmetric=True)
_COREML = Scheme("coreml", symmetric=True, weighted=frozenset({"Conv", "Gemm", "MatMul"}))
_TFLITE = Scheme(
    "tflite",
    everything=True,
    others=frozenset(
        {
            *("Add", "Sub", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "Relu", "Clip", "HardSwish"),
            *("Sigmoid", "Tanh", "Softmax", "LeakyRelu", "PRelu", "Resize", "Pad", "ReduceMax", "ReduceMin", "Max", "Min", "GlobalMaxPool"),
        }
    ),
    # The delegate (XNNPACK) has no int8 HARD_SWISH either: with it the PP-OCR angle classifier took 2.9 ms of CPU time, without it 0.8 ms (x86-64, LiteRT 2.3).
    expanded=frozenset({"HardSigmoid", "HardSwish"}),
    # Kernels with a scale of their own (TensorFlow Lite 8-bit quantization specification).
    fixed=(("Sigmoid", 0.0, 255 / 256), ("Softmax", 0.0, 255 / 256), ("Tanh", -1.0, 127 / 128)),
)


def scheme_for(engine: str, profile: DeviceProfile) -> Scheme:
    """The scheme of an engine on a device.

    Core ML gets quantised activations only where the profile calls int8 fast and the deployment target knows them (iOS 17, macOS 14); elsewhere weights only,
    which is what helps there. An x86 CPU that is not known for fast int8 may lack VNNI: weights get 7 bits.
    """
    if engine == "onnxruntime":
        narrow = profile.arch == "x86_64" and profile.precisions.get("int8") != "fast"
        return replace(_ONNXRUNTIME, weight_bits=7 if narrow else 8)
    if engine == "coreml":
        fast = profile.precisions.get("int8") == "fast" and _quantises_activations(profile.engine.deployment_target)
        return _COREML if fast else replace(_COREML, activations=False)
    if engine in ("tensorrt", "tensorrt-rtx"):
        return _TENSORRT
    return _OPENVINO if engine == "openvino" else _TFLITE


def _quantises_activations(target: str) -> bool:
    """Whether the target has activation quantisation: iOS 17 and macOS 14 have the operators ``quantize`` and ``dequantize`` (coremltools, MIL operator definitions)."""
    for system, oldest in (("iOS", 17), ("macOS", 14)):
        if target.startswith(system):
            return int(target.removeprefix(system)) >= oldest
    return False
