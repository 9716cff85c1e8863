"""ONNX to TensorFlow Lite (LiteRT)."""

from edgekit.converters.tflite._emit import EMITTERS, TfliteEmitter, operator_counts, tflite_from_graph

__all__ = ["EMITTERS", "TfliteEmitter", "operator_counts", "tflite_from_graph"]
