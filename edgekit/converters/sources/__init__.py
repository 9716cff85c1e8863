"""Source models of every kind: ONNX, ORT format, Keras, SavedModel, PyTorch."""
