"""What it saves to prepare pictures inside the artifact: uint8 pixels in, against the same steps in Python before the plain artifact.

One picture of a camera's size, two real models of PP-OCR, three engines, one thread each. Contenders of a round, in an order that rotates:

- ``fused``: `Session.run` of the bundle that was built with ``--image-input``, on the uint8 picture;
- ``numpy``: the same steps in NumPy (linear resampling by index and weight in float32), then `Session.run` of the plain bundle;
- ``pillow``: Pillow's resize on uint8 (BILINEAR, as most people write it; it smooths, so the numbers differ), NumPy for the rest, then the plain bundle;
- ``plain``: the plain bundle alone on a picture that is ready, the least that any of them can take.

``folding`` times ONNX Runtime on the fused graph with the factors in the weights of the first convolution, and without.
``suppression`` times ONNX Runtime on non-maximum suppression as it is written out, and on ONNX's own operator, for a detector's head
[1, 84, 8400] with 300 boxes above the score.

What it does not show: the devices themselves, decoding, engines that do not run here.

Run ``python -m benchmarks preprocessing [--seconds S]``; prints JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgekit
from edgekit.bundle import Signature, TensorSpec
from edgekit.converters import processing
from edgekit.converters._source import load_source
from edgekit.converters.processing import _image
from edgekit.converters.processing._nms import add_detections, detector_head
from edgekit.runtime import Session, load
from examples.models import fetch

DEVICES = {"onnxruntime": "generic-x86", "openvino": "intel-nuc", "tflite": "raspberry-pi-5"}
CAMERA = (480, 640)
SIZES = {"ppocr-cls": (48, 192), "ppocr-det": (320, 320)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Contender = Callable[[], Any]


def flag(size: tuple[int, int]) -> str:
    numbers = ",mean={},{},{},std={},{},{}".format(*MEAN, *STD)
    return f"x=uint8,HWC,RGB2BGR,from={CAMERA[0]}x{CAMERA[1]},resize={size[0]}x{size[1]},scale=1/255{numbers}"


def axis_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def in_numpy(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """What a user would write: tables once, then four gathers and a few passes per picture."""
    (top, bottom, down), (left, right, across) = (axis_weights(old, new) for old, new in zip(CAMERA, size, strict=True))
    down, across = down[:, None, None], across[None, :, None]
    factor = (1 / 255 / np.asarray(STD)).astype(np.float32)
    offset = (-np.asarray(MEAN) / np.asarray(STD)).astype(np.float32)

    def prepare(picture: np.ndarray) -> np.ndarray:
        rows = picture[top].astype(np.float32) * (1 - down) + picture[bottom].astype(np.float32) * down
        small = rows[:, left] * (1 - across) + rows[:, right] * across
        return np.ascontiguousarray((small[..., ::-1] * factor + offset).transpose(2, 0, 1))[np.newaxis]

    return prepare


def in_pillow(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    factor = (1 / 255 / np.asarray(STD)).astype(np.float32)
    offset = (-np.asarray(MEAN) / np.asarray(STD)).astype(np.float32)

    def prepare(picture: np.ndarray) -> np.ndarray:
        small = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)
        return np.ascontiguousarray((small[..., ::-1] * factor + offset).transpose(2, 0, 1))[np.newaxis]

    return prepare


def in_turns(contenders: dict[str, Contender], seconds: float) -> dict[str, dict[str, float]]:
    """5th, 50th and 95th percentile of each contender, in milliseconds; the first is what a machine with other work shows least in."""
    names = list(contenders)
    for name in names:
        for _ in range(3):
            contenders[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    ends, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends or turn < 20:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter_ns()
            contenders[name]()
            times[name].append((time.perf_counter_ns() - started) / 1e6)
        turn += 1
    return {name: {f"p{p}_ms": round(float(np.percentile(found, p)), 3) for p in (5, 50, 95)} for name, found in times.items()}


def prepared(session: Session, prepare: Callable[[np.ndarray], np.ndarray], picture: np.ndarray) -> object:
    """Prepare the picture outside the artifact, and run."""
    return session.run({"x": prepare(picture)})


def model_case(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    size = SIZES[name]
    picture = np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), np.uint8)
    prepare, smooth = in_numpy(size), in_pillow(size)
    ready = prepare(picture)
    results = {}
    for engine, device in DEVICES.items():
        fused = open_bundle(name, device, folder / f"{name}-{engine}-fused.edgekit", image_inputs=[flag(size)])
        plain = open_bundle(name, device, folder / f"{name}-{engine}-plain.edgekit", shapes={"x": (1, 3, *size)})
        (output,) = fused.run({"x": picture[np.newaxis]}).values()
        (expected,) = plain.run({"x": ready}).values()
        contenders: dict[str, Contender] = {
            "fused": functools.partial(fused.run, {"x": picture[np.newaxis]}),
            "numpy": functools.partial(prepared, plain, prepare, picture),
            "pillow": functools.partial(prepared, plain, smooth, picture),
            "plain": functools.partial(plain.run, {"x": ready}),
        }
        found: dict[str, Any] = in_turns(contenders, seconds)
        found["fused_against_numpy_max_abs"] = float(f"{np.abs(output - expected).max():.3g}")
        results[engine] = found
        fused.close()
        plain.close()
    return results


def open_bundle(name: str, device: str, path: Path, **options: Any) -> Session:
    return load(edgekit.build(fetch(name), device=device, precision="fp32", output=path, **options), threads=1)


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def folding(name: str, seconds: float) -> dict[str, Any]:
    """The same graph with and without the factors in the weights, for pictures that have the model's size."""
    height, width = SIZES[name]
    numbers = ",mean={},{},{},std={},{},{}".format(*MEAN, *STD)
    request = processing.requested(
        {"image_inputs": [f"x=uint8,HWC,RGB2BGR,from={height}x{width},resize={height}x{width},scale=1/255{numbers}"]}
    )
    source = load_source(fetch(name))
    folded = session_of(processing.apply(source, request).model)
    with mock.patch.object(_image, "_fold", return_value=None):
        apart = session_of(processing.apply(source, request).model)
    picture = {"x": np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)}
    return in_turns({"folded": lambda: folded.run(None, picture), "apart": lambda: apart.run(None, picture)}, seconds)


def suppression(most: int, seconds: float) -> dict[str, Any]:
    """Of one head: ours with the four padded outputs, and ONNX's operator with its indices alone, which have yet to be gathered."""
    classes, anchors = 80, 8400
    shape = (1, 4 + classes, anchors)
    raw = head_values(classes, anchors)
    head = Signature((TensorSpec("x", "float32", shape),), (TensorSpec("raw", "float32", shape),))
    ours = graph([helper.make_node("Identity", ["x"], ["raw"])], {"raw": (TensorProto.FLOAT, shape)}, {}, shape)
    add_detections(ours, head, detector_head(processing.parse_nms(f"iou=0.45,score=0.25,max={most}"), head), 1)
    limits = {
        "four": np.array([4]),
        "zero": np.array([0]),
        "end": np.array([4 + classes]),
        "axis": np.array([1]),
        "most": np.array([most]),
        "iou": np.array([0.45], np.float32),
        "score": np.array([0.25], np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["x", "zero", "four", "axis"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["x", "four", "end", "axis"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["kept"], center_point_box=1),
    ]
    theirs = graph(nodes, {"kept": (TensorProto.INT64, ("K", 3))}, limits, shape)
    sessions = {"written_out": session_of(ours), "onnx_operator": session_of(theirs)}
    found: dict[str, Any] = in_turns({name: functools.partial(each.run, None, {"x": raw}) for name, each in sessions.items()}, seconds)
    return found | {"nodes": len(ours.graph.node), "boxes": int(sessions["written_out"].run(["count"], {"x": raw})[0][0])}


def head_values(classes: int, anchors: int) -> np.ndarray:
    random = np.random.default_rng(0)
    raw = np.zeros((1, 4 + classes, anchors), np.float32)
    raw[0, :2] = random.uniform(0, 640, (2, anchors))
    raw[0, 2:4] = random.uniform(10, 120, (2, anchors))
    raw[0, 4:] = random.uniform(0, 0.2, (classes, anchors))
    chosen = random.choice(anchors, 300, replace=False)
    raw[0, 4 + random.integers(0, classes, 300), chosen] = random.uniform(0.3, 0.95, 300)
    return raw


def graph(
    nodes: list[onnx.NodeProto], outputs: dict[str, Any], constants: dict[str, np.ndarray], shape: tuple[int, ...]
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per comparison")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {name: model_case(name, Path(folder), arguments.seconds) for name in SIZES}
    document = {
        "seconds": arguments.seconds,
        "camera": CAMERA,
        "models": models,
        "folding": {name: folding(name, arguments.seconds) for name in SIZES},
        "suppression": {f"max={most}": suppression(most, arguments.seconds) for most in (20, 100, 300)},
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
