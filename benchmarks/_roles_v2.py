"""Roles that other Open Inference Protocol servers play, over HTTP or gRPC: MLServer and KServe's Python server, each with one worker."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MLSERVER_MODEL = """
import sys
sys.path.insert(0, {folder!r})
from _roles import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OrtModel(MLModel):
    async def load(self):
        self._session = session({model!r})
        self._output = self._session.get_outputs()[0].name
        return True

    async def predict(self, payload):
        tensor = payload.inputs[0]
        result = self._session.run(None, {{tensor.name: NumpyCodec.decode_input(tensor)}})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self._output, result)])
"""


def mlserver(options: argparse.Namespace) -> None:
    """MLServer without extra workers."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = MLSERVER_MODEL.format(folder=str(Path(__file__).parent), model=options.model)
        (root / "ort_model.py").write_text(model)
        (root / "model-settings.json").write_text(json.dumps({"name": options.name, "implementation": "ort_model.OrtModel"}))
        other = other_port(options.port)
        http, grpc = (options.port, other) if options.transport == "http" else (other, options.port)
        settings = {"parallel_workers": 0, "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": None}
        settings |= {
            "metrics_port": other_port(options.port, other),
            "debug": False,
            "logging_settings": None,
            "use_structured_logging": False,
        }
        (root / "settings.json").write_text(json.dumps(settings))
        child = subprocess.Popen([str(Path(sys.executable).parent / "mlserver"), "start", folder], cwd=folder)
        try:
            child.wait()
        finally:
            child.terminate()
            child.wait()


def kserve(options: argparse.Namespace) -> None:
    """KServe's server, its model's answer in binary."""
    from _roles import session
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class Ort(Model):
        def load(self) -> bool:
            self.session = session(options.model)
            self.output = self.session.get_outputs()[0].name
            self.ready = True
            return self.ready

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            del headers, response_headers
            tensor = payload.inputs[0]
            result = self.session.run(None, {tensor.name: tensor.as_numpy()})[0]
            output = InferOutput(self.output, list(result.shape), "FP32")
            output.set_data_from_numpy(result, binary_data=True)
            return InferResponse(payload.id or "1", self.name, [output])

    model = Ort(options.name)
    model.load()
    other = other_port(options.port)
    http, grpc = (options.port, other) if options.transport == "http" else (other, options.port)
    ModelServer(http_port=http, grpc_port=grpc, enable_grpc=options.transport == "grpc", workers=1).start([model])


def other_port(*taken: int) -> int:
    """A port of loopback that is free and none of these."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port if port not in taken else other_port(*taken)
