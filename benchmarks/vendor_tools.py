"""What each vendor's own tool takes to convert the same ONNX file: the baseline beside EdgeKit's build times.

A vendor's tool converts and stops; EdgeKit also normalises, runs the source model, proves the artifact and writes the bundle, so its time is
longer by what a proof costs. Core ML and TFLite have no vendor tool that reads ONNX.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx


def onnxruntime_seconds(model: Path, folder: Path) -> float:
    """ONNX Runtime's offline optimisation at the portable level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "vendor.onnx")
    return _timed(lambda: onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]))


def openvino_seconds(model: Path, folder: Path) -> float:
    """``read_model`` and ``save_model``."""
    import openvino

    return _timed(lambda: openvino.save_model(openvino.Core().read_model(model), folder / "vendor.xml"))


def tensorrt_rtx_seconds(model: Path, folder: Path) -> float:
    """NVIDIA's parser and builder."""
    import tensorrt_rtx_bindings as trt

    del folder

    def build() -> None:
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
        if not parser.parse(model.read_bytes()):
            raise RuntimeError(str(parser.get_error(0)))
        if builder.build_serialized_network(network, builder.create_builder_config()) is None:
            raise RuntimeError("the builder refused")

    return _timed(build)


TOOLS: dict[str, Callable[[Path, Path], float]] = {
    "onnxruntime": onnxruntime_seconds,
    "openvino": openvino_seconds,
    "tensorrt-rtx": tensorrt_rtx_seconds,
}


def vendor_seconds(engine: str, model: Path, shapes: Mapping[str, Sequence[int]], folder: Path) -> float | str:
    """Seconds of the vendor's tool on ``model`` at ``shapes``; what it said when it failed; why there is none."""
    tool = TOOLS.get(engine)
    if tool is None:
        return "no vendor tool reads ONNX for it on this machine"
    fixed = _fixed(model, shapes, folder)
    try:
        return round(tool(fixed, folder), 3)
    except Exception as exc:  # noqa: BLE001 - a tool that refuses the file is a result
        return f"refused: {' '.join(str(exc).split())[:200]}"


def _fixed(model: Path, shapes: Mapping[str, Sequence[int]], folder: Path) -> Path:
    """The file with its inputs at fixed sizes, which is what EdgeKit's build gets by ``--shape``."""
    proto = onnx.load(model)
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    path = folder / "vendor_source.onnx"
    onnx.save(proto, path)
    return path


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
