"""Models and requests that several benchmarks measure with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

MODELS = ("mlp", "classifier")
MLP_SHAPE: tuple[int, ...] = (1, 768)
CLASSIFIER_SHAPE = (1, 3, 48, 192)


class Case(NamedTuple):
    """One model, as a file and as a bundle, with one request and the right answer to it."""

    name: str
    model: Path
    bundle: Path
    input_name: str
    output_name: str
    array: np.ndarray
    expected: np.ndarray


def mlp(folder: Path) -> Path:
    """768 float32 in, 10 out, one hidden layer of 128, an open batch; 0.4 MB. What is around the engine is most of a request."""
    return _dense(folder, "mlp", ("N", 768), [(768, 128), (128, 10)], deviation=0.05, bias=True)


def tiny_mlp(folder: Path) -> Path:
    """8 float32 in, 4 out, a batch of one: a run costs a few microseconds, so what is added to it stands out."""
    return _dense(folder, "tiny_mlp", (1, 8), [(8, 16), (16, 4)], deviation=0.5, bias=False)


def _dense(folder: Path, name: str, shape: tuple[str | int, int], layers: list[tuple[int, int]], *, deviation: float, bias: bool) -> Path:
    """Dense layers with ReLU between them and seeded weights, written as ``folder/name.onnx``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    nodes, weights = [], []
    last = "x"
    for index, layer in enumerate(layers, 1):
        names = [f"w{index}", f"b{index}"] if bias else [f"w{index}"]
        shapes = [layer, (layer[1],)]
        weights += [(each, random.normal(0, deviation, dims).astype(np.float32)) for each, dims in zip(names, shapes, strict=False)]
        result = "y" if index == len(layers) else f"h{index}"
        nodes.append(helper.make_node("Gemm" if bias else "MatMul", [last, *names], [result]))
        last = result
        if index < len(layers):
            last = f"r{index}"
            nodes.append(helper.make_node("Relu", [result], [last]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], layers[-1][1]])],
        [numpy_helper.from_array(values, each) for each, values in weights],
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def make_case(kind: str, folder: Path) -> Case:
    """The model ``kind`` with a bundle for this machine below ``folder``: `mlp`, or PP-OCR's angle classifier (0.6 MB, 110 kB a request, open batch)."""
    import onnxruntime

    from edgekit.converters import build

    if kind == "mlp":
        model, shape, shapes = mlp(folder), MLP_SHAPE, {}
    else:
        from examples.models import fetch

        model, shape = Path(fetch("ppocr-cls")), CLASSIFIER_SHAPE
        shapes = {onnxruntime.InferenceSession(model).get_inputs()[0].name: (-1, *CLASSIFIER_SHAPE[1:])}
    bundle = folder / f"{kind}.edgekit"
    build(model, device="generic-x86", precision="fp32", output=str(bundle), name=kind, shapes=shapes)
    session = onnxruntime.InferenceSession(model)
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Case(kind, model, bundle, name, output, array, session.run(None, {name: array})[0])
