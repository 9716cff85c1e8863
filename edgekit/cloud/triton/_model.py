"""``model.py`` of Triton's Python back end: an ONNX Runtime session on the ``model.onnx`` beside it.

`edgekit cloud repository --cpu` copies this file as it is. It runs inside Triton's own environment, with NumPy and ONNX Runtime alone, so it
imports nothing of EdgeKit.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """Answers Triton's requests; requests of one dynamic batch run as one ONNX Runtime call."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and run it once, so that ready means warm."""
        config = json.loads(args["model_config"])
        self._batched = config["max_batch_size"] > 0
        self._outputs = [output["name"] for output in config["output"]]
        self._inputs = {entry["name"]: entry for entry in config["input"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config.get("parameters", {}).get("threads", {}).get("string_value", "0"))
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")  # noqa: PTH118
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._warm_up()

    def _warm_up(self) -> None:
        feed = {}
        for value in self._session.get_inputs():
            shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in value.shape]
            dtype = pb_utils.triton_string_to_numpy(self._inputs[value.name]["data_type"])
            feed[value.name] = np.zeros(shape, dtype)
        if all(isinstance(dim, int) for value in self._session.get_inputs() for dim in value.shape[1:]):
            self._session.run(self._outputs, feed)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order; a failing batch is an error for each of its requests."""
        feeds = [{name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs} for request in requests]
        try:
            if self._batched and len(feeds) > 1 and _same_shapes(feeds):
                return self._run_together(feeds)
            return [self._respond(self._session.run(self._outputs, feed)) for feed in feeds]
        except Exception as exc:  # noqa: BLE001 - the request boundary: Triton answers each client with this text
            error = pb_utils.TritonError(str(exc))
            return [pb_utils.InferenceResponse(output_tensors=[], error=error) for _ in requests]

    def _run_together(self, feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        rows = [len(next(iter(feed.values()))) for feed in feeds]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        outputs = self._session.run(self._outputs, joined)
        cuts = np.cumsum(rows)[:-1]
        parts = [np.split(output, cuts) for output in outputs]
        return [self._respond([part[index] for part in parts]) for index in range(len(feeds))]

    def _respond(self, arrays: list[np.ndarray]) -> Any:
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in zip(self._outputs, arrays, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _same_shapes(feeds: list[dict[str, np.ndarray]]) -> bool:
    return len({tuple(array.shape[1:] for array in feed.values()) for feed in feeds}) == 1
