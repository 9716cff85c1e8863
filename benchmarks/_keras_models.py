"""A public network that no ONNX file on PyPI carries, written in Keras. Its weights are random and seeded: latency does not depend on them, and they are drawn so that
its answers do depend on the picture (with Keras' default every class comes out alike, and a comparison would show nothing).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["KERAS_MODELS", "write_keras", "write_pair"]

KERAS_MODELS = {"efficientnet-lite0": (1, 224, 224, 3)}
"""Name to input shape."""

# Kernel, stride, expansion, channels, repetitions: EfficientNet-B0's table (Tan and Le 2019, table 1). Lite0 has no squeeze-and-excitation, ReLU6 for swish, and
# stem and head as they are (tensorflow/tpu, models/official/efficientnet/lite).
_BLOCKS = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))


def _efficientnet_lite0(keras: Any) -> Any:
    layers = keras.layers

    def convolved(x: Any, channels: int, kernel: int, stride: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU(6.0)(x) if relu else x

    image = layers.Input(KERAS_MODELS["efficientnet-lite0"][1:], name="image")
    x = convolved(image, 32, 3, 2)
    for kernel, first_stride, expansion, channels, repetitions in _BLOCKS:
        for repetition in range(repetitions):
            stride, given = first_stride if repetition == 0 else 1, x
            if expansion > 1:
                x = convolved(x, x.shape[-1] * expansion, 1)
            drawn = keras.initializers.RandomNormal(stddev=(2.0 / kernel**2) ** 0.5)  # Keras counts all channels as inputs of each
            x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, depthwise_initializer=drawn)(x)
            x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
            x = convolved(x, channels, 1, relu=False)
            if stride == 1 and given.shape[-1] == channels:
                x = layers.Add()([x, given])
    x = layers.GlobalAveragePooling2D()(convolved(x, 1280, 1))
    return keras.Model(image, layers.Dense(1000, activation="softmax", name="scores")(x))


def write_keras(name: str, folder: Path) -> Path:
    """``<name>.keras``."""
    from edgekit.converters.sources._tensorflow import import_tensorflow

    import_tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    path = folder / f"{name}.keras"
    {"efficientnet-lite0": _efficientnet_lite0}[name](keras).save(path)
    return path


def write_pair(name: str, folder: Path) -> tuple[Path, Path]:
    """``<name>.onnx``, as tf2onnx exports it, and ``tensorflow/<name>.tflite``, as TensorFlow's own converter makes it from the same Keras model."""
    from edgekit.converters._source import load_source
    from edgekit.converters.sources._tensorflow import import_tensorflow, quiet_tensorflow

    tf = import_tensorflow()
    import keras
    import onnx

    source = write_keras(name, folder)
    model = keras.models.load_model(source)
    onnx.save(load_source(source).model, folder / f"{name}.onnx")
    with quiet_tensorflow(), contextlib.redirect_stdout(sys.stderr):  # it prints the signatures; JSON goes to stdout
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (folder / "tensorflow").mkdir(exist_ok=True)
    peer = folder / "tensorflow" / f"{name}.tflite"
    peer.write_bytes(data)
    return folder / f"{name}.onnx", peer
