"""Fixtures for every test: caches of its own, tiny ONNX models, and the five real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from edgekit.bundle import cache_directory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `examples` and `benchmarks` are imported from the checkout
    sys.path.insert(0, str(ROOT))

# ONNX Runtime's telemetry would write a session file into the temporary folder, and send events; it is read when the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The same examples every time, and no failure because the machine was busy for a moment.
settings.register_profile("edgekit", deadline=None, derandomize=True)
settings.load_profile("edgekit")

TINY_OPSET = 17
TINY_IR = 10


@pytest.fixture(scope="session", autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point EdgeKit's cache and state at a folder that pytest removes; only downloaded models are shared with the user's cache."""
    models = cache_directory() / "models"
    models.mkdir(parents=True, exist_ok=True)
    root = tmp_path_factory.mktemp("edgekit-home")
    for folder in ("cache", "state"):
        (root / folder).mkdir()
    # No build is taken from an earlier test: some put another part in the place of one of EdgeKit's, and tests of the cache turn it on.
    chosen = {"EDGEKIT_CACHE": str(root / "cache"), "EDGEKIT_STATE": str(root / "state"), "EDGEKIT_BUILD_CACHE_BYTES": "0"}
    before = {key: os.environ.get(key) for key in chosen}
    (root / "cache" / "models").symlink_to(models, target_is_directory=True)
    os.environ.update(chosen)
    yield
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """``real_model("ppocr-cls")`` is the path of that real ONNX file; see ``examples/models.py``."""
    from examples.models import fetch

    return fetch


def _save(path: Path, graph: object) -> Path:
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", TINY_OPSET)], ir_version=TINY_IR)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def tiny_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``x`` float32 ``[N,8]`` through 16 hidden units to ``probabilities`` float32 ``[N,4]``; 5 nodes, N is symbolic."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    weights = {
        "w1": random.normal(0, 0.5, (8, 16)),
        "b1": random.normal(0, 0.5, 16),
        "w2": random.normal(0, 0.5, (16, 4)),
        "b2": random.normal(0, 0.5, 4),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], "first"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], "first_bias"),
        helper.make_node("Relu", ["h1"], ["h2"], "relu"),
        helper.make_node("Gemm", ["h2", "w2", "b2"], ["logits"], "second"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    return _save(tmp_path_factory.mktemp("tiny") / "tiny_mlp.onnx", graph)


@pytest.fixture(scope="session")
def tiny_conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``image`` float32 ``[1,3,16,16]`` to ``features`` ``[1,4,8,8]`` and ``scores`` ``[1,5]``; every shape is fixed."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(2)
    weights = {
        "kernel": random.normal(0, 0.3, (4, 3, 3, 3)),
        "bias": random.normal(0, 0.3, 4),
        "head": random.normal(0, 0.5, (4, 5)),
        "head_bias": random.normal(0, 0.5, 5),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["conv"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["features"], "relu"),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "head", "head_bias"], ["scores"], "head_gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 4, 8, 8]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    return _save(tmp_path_factory.mktemp("tiny") / "tiny_conv.onnx", graph)
