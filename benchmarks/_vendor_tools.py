"""What each vendor's own tool takes to convert the same file: the baseline beside EdgeKit's build times.

A vendor's tool converts and stops; EdgeKit also normalises, runs the source model, proves the artifact and writes the bundle, so its time is
longer by what a proof costs. Core ML and TFLite have no vendor tool that reads ONNX; of a Keras file their own
TensorFlow converters are timed, with the model loaded and traced.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def tflite_seconds(function: Any, folder: Path) -> float:
    """TensorFlow's TFLite converter."""
    import tensorflow as tf

    del folder
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    return _timed(converter.convert)


def coreml_seconds(function: Any, folder: Path) -> float:
    """coremltools' TensorFlow front end, package written."""
    import coremltools

    package = str(folder / "vendor.mlpackage")
    return _timed(
        lambda: coremltools.convert([function], source="tensorflow", convert_to="mlprogram", skip_model_load=True, package_dir=package)
    )


KERAS_TOOLS: dict[str, Callable[[Any, Path], float]] = {"tflite": tflite_seconds, "coreml": coreml_seconds}


@functools.cache
def _traced(model: Path, shape: tuple[int, ...]) -> Any:
    """The concrete function of a Keras model with one input, its variables as constants: what both converters take."""
    from edgekit.converters.sources._tensorflow import import_tensorflow, quiet_tensorflow

    tf = import_tensorflow()  # before coremltools, which offers its front end only then
    import keras
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    network = keras.models.load_model(model)
    with quiet_tensorflow():
        function = tf.function(lambda x: network(x, training=False))
        return convert_variables_to_constants_v2(function.get_concrete_function(tf.TensorSpec(shape, tf.float32)))


def _keras_seconds(engine: str, model: Path, shapes: Mapping[str, Sequence[int]], folder: Path) -> float | str:
    tool = KERAS_TOOLS.get(engine)
    if tool is None:
        return "no vendor tool reads Keras for it"
    try:
        return round(tool(_traced(model, tuple(next(iter(shapes.values())))), folder), 3)
    except Exception as exc:  # noqa: BLE001 - a tool that refuses the file is a result
        return f"refused: {' '.join(str(exc).split())[:200]}"


def vendor_seconds(engine: str, model: Path, shapes: Mapping[str, Sequence[int]], folder: Path) -> float | str:
    """Seconds of the vendor's tool on ``model`` at ``shapes``; what it said when it failed; why there is none."""
    if model.suffix == ".keras":
        return _keras_seconds(engine, model, shapes, folder)
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
