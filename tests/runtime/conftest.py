"""Bundles of tiny models, one per engine, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.converters import build

# engine -> a device whose first engine it is
DEVICES = {"onnxruntime": "generic-x86", "openvino": "intel-nuc", "tflite": "raspberry-pi-5"}


@pytest.fixture(scope="session")
def tiny_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ids`` int64 ``[1,6]`` below 256, ``mask`` bool ``[1,6]`` to ``mean`` float32 ``[1,4]`` and ``last`` int64 ``[1,1]``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(3).normal(0, 1, (256, 4)).astype(np.float32)
    constants = {"table": table, "last_index": np.array([5], np.int64), "axis": np.array([2], np.int64)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "gather"),
        helper.make_node("Cast", ["mask"], ["mask_float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_float", "axis"], ["mask_3d"], "unsqueeze"),
        helper.make_node("Mul", ["rows", "mask_3d"], ["masked"], "mul"),
        helper.make_node("ReduceMean", ["masked"], ["mean"], "reduce", axes=[1], keepdims=0),
        helper.make_node("Gather", ["ids", "last_index"], ["last"], "last", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_ids",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 6]),
        ],
        [
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("last", TensorProto.INT64, [1, 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny_ids.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_mlp: Path, tiny_conv: Path, tiny_ids: Path) -> Callable[..., Bundle]:
    """``built(engine, model, precision)`` with model ``mlp`` (batch fixed at 1), ``open`` (the same with an open batch), ``conv`` or ``ids``.

    Engine ``null`` gets ONNX Runtime's bundle with the null engine in its place: answers are zeros of the right dtypes and shapes.
    """
    models = {"mlp": (tiny_mlp, {"x": (1, 8)}), "open": (tiny_mlp, {"x": (-1, 8)}), "conv": (tiny_conv, {}), "ids": (tiny_ids, {})}
    folder = tmp_path_factory.mktemp("built")
    made: dict[tuple[str, str, str], Bundle] = {}

    def get(engine: str, model: str = "conv", precision: str = "fp32") -> Bundle:
        key = (engine, model, precision)
        if engine == "null":
            made.setdefault(key, _null_bundle(get("onnxruntime", model, precision)))
        elif key not in made:
            path, shapes = models[model]
            made[key] = build(path, device=DEVICES[engine], precision=precision, shapes=shapes, output=folder / "-".join(key))
        return made[key]

    return get


def _null_bundle(bundle: Bundle) -> Bundle:
    artifact = msgspec.structs.replace(bundle.manifest.artifact, engine="null")
    return Bundle(bundle.path, bundle.directory, msgspec.structs.replace(bundle.manifest, artifact=artifact), bundle.digest)
