"""Tiny models with known answers: a classifier of pictures, and detectors whose output is their input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ENGINES = {
    "onnxruntime": "generic-x86",
    "openvino": "intel-nuc",
    "tflite": "raspberry-pi-5",
    "coreml": "iphone-15",
    "tensorrt-rtx": "rtx-pc",
    "tensorrt": "jetson-orin-nano",
}
"""Engine to a device of it."""


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: list, outputs: list, constants: dict[str, np.ndarray], opset: int = 17
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``classifier(padded=True, opset=17, kind=FLOAT)``: ``image`` [N,3,16,16] through a convolution to ``scores`` [N,5]."""
    folder = tmp_path_factory.mktemp("classifier")

    def make(
        padded: bool = True, opset: int = 17, kind: int = TensorProto.FLOAT, softmax: bool = False, channels_last: bool = False
    ) -> Path:
        path = folder / f"classifier-{padded}-{opset}-{kind}-{softmax}-{channels_last}.onnx"
        if path.exists():
            return path
        random = np.random.default_rng(2)
        dtype = np.float32 if kind == TensorProto.FLOAT else np.float16
        constants = {
            "kernel": random.normal(0, 0.3, (4, 3, 3, 3)).astype(dtype),
            "bias": random.normal(0, 0.3, 4).astype(dtype),
            "head": random.normal(0, 0.5, (4, 5)).astype(dtype),
            "head_bias": random.normal(0, 0.5, 5).astype(dtype),
        }
        shape = ["N", 16, 16, 3] if channels_last else ["N", 3, 16, 16]
        first = [helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2])] if channels_last else []
        pads = [1, 1, 1, 1] if padded else [0, 0, 0, 0]
        last = "logits" if softmax else "scores"
        nodes = [
            *first,
            helper.make_node(
                "Conv", ["planes" if channels_last else "image", "kernel", "bias"], ["conv"], "conv", pads=pads, strides=[2, 2]
            ),
            helper.make_node("Relu", ["conv"], ["relu_out"], "relu"),
            helper.make_node("GlobalAveragePool", ["relu_out"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
            helper.make_node("Gemm", ["flat", "head", "head_bias"], [last], "gemm"),
            *([helper.make_node("Softmax", [last], ["scores"], "softmax", axis=1)] if softmax else []),
        ]
        return save(path, nodes, [("image", kind, shape)], [("scores", kind, ["N", 5])], constants, opset)

    return make


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``detector(shape)``: one output that is the input; ``detector(boxes, scores)``: two."""
    folder = tmp_path_factory.mktemp("detector")

    def make(*shapes: tuple[int | str, ...]) -> Path:
        path = folder / f"detector-{'-'.join(map(str, shapes))}.onnx".replace(" ", "")
        names = ["raw"] if len(shapes) == 1 else ["raw_boxes", "raw_scores"]
        nodes = [helper.make_node("Mul", [f"{name}_in", "one"], [name], name) for name in names]
        return save(
            path,
            nodes,
            [(f"{name}_in", TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)],
            [(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)],
            {"one": np.ones(1, np.float32)},
        )

    return make
