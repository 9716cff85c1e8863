"""Server roles of `benchmarks.serve`: each listens on one port of loopback, serves one ONNX model with ONNX Runtime on one thread, and runs until it is ended.

Standalone: runs in the peers' own environments, where EdgeKit is not installed; each role imports what it needs.

``python _serve_peers.py ROLE --model FILE.onnx --bundle FILE.edgekit --name NAME --port P --core C``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

HEADER_LENGTH = "Inference-Header-Content-Length"


def session(model: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def first_input(body: bytes, header_length: int) -> tuple[str, np.ndarray]:
    """Name and array of a request's first tensor, binary."""
    document = json.loads(body[:header_length])["inputs"][0]
    shape = document["shape"]
    return document["name"], np.frombuffer(body, np.float32, int(np.prod(shape)), header_length).reshape(shape)


def answer(name: str, output: str, array: np.ndarray) -> tuple[bytes, int]:
    """Body and length of its JSON, binary."""
    raw = array.tobytes()
    tensor = {"name": output, "datatype": "FP32", "shape": array.shape, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"model_name": name, "model_version": "1", "outputs": [tensor]}).encode()
    return head + raw, len(head)


def probe(options: argparse.Namespace) -> None:
    """A bare asyncio protocol on uvloop that batches what arrived in one turn: parses only what the load sends, no limits, no errors."""
    import uvloop

    model = session(options.model)
    output = model.get_outputs()[0].name
    waiting: list[tuple[Any, str, np.ndarray]] = []
    loop = uvloop.new_event_loop()

    def field(head: bytes, name: bytes) -> int:
        at = head.find(b"\r\n" + name + b": ") + len(name) + 4
        end = head.find(b"\r\n", at)
        return int(head[at : end if end > 0 else len(head)])

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.rest = b""

        def data_received(self, data: bytes) -> None:
            data = self.rest + data
            while (end := data.find(b"\r\n\r\n")) >= 0:
                head = data[:end].lower()
                stop = end + 4 + field(head, b"content-length")
                if len(data) < stop:
                    break
                name, array = first_input(data[end + 4 : stop], field(head, HEADER_LENGTH.lower().encode()))
                if not waiting:
                    loop.call_soon(turn)
                waiting.append((self.transport, name, array))
                data = data[stop:]
            self.rest = data

    def turn() -> None:
        batch = waiting[:]
        waiting.clear()
        arrays = [array for _, _, array in batch]
        results = model.run(None, {batch[0][1]: np.concatenate(arrays) if len(arrays) > 1 else arrays[0]})[0]
        for (transport, _, _), row in zip(batch, results, strict=True):
            body, length = answer(options.name, output, row[None])
            transport.write(b"HTTP/1.1 200 OK\r\n%s: %d\r\nContent-Length: %d\r\n\r\n" % (HEADER_LENGTH.encode(), length, len(body)) + body)

    async def listen() -> None:
        await loop.create_server(Bare, "127.0.0.1", options.port, backlog=1024)

    loop.run_until_complete(listen())
    loop.run_forever()


def aiohttp(options: argparse.Namespace) -> None:
    """A plain aiohttp handler on uvloop, one run a request."""
    import uvloop
    from aiohttp import web

    model = session(options.model)
    output = model.get_outputs()[0].name

    async def infer(request: Any) -> Any:
        name, array = first_input(await request.read(), int(request.headers[HEADER_LENGTH]))
        body, length = answer(options.name, output, model.run(None, {name: array})[0])
        return web.Response(body=body, headers={HEADER_LENGTH: str(length)})

    application = web.Application(client_max_size=1 << 28)
    application.router.add_post(f"/v2/models/{options.name}/infer", infer)
    uvloop.install()
    web.run_app(application, host="127.0.0.1", port=options.port, print=None, access_log=None)


def fastapi(options: argparse.Namespace) -> None:
    """FastAPI on uvicorn (uvloop, httptools), one run a request."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    model = session(options.model)
    output = model.get_outputs()[0].name
    application = FastAPI()

    async def infer(request: Request) -> Response:
        name, array = first_input(await request.body(), int(request.headers[HEADER_LENGTH]))
        body, length = answer(options.name, output, model.run(None, {name: array})[0])
        return Response(body, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    infer.__annotations__ = {"request": Request, "return": Response}  # this module's annotations are text
    application.post(f"/v2/models/{options.name}/infer")(infer)
    uvicorn.run(application, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


MLSERVER_MODEL = """
import sys
sys.path.insert(0, {folder!r})
from _serve_peers import session
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
        settings = {"parallel_workers": 0, "host": "127.0.0.1", "http_port": options.port, "grpc_port": 0, "metrics_endpoint": None}
        settings |= {"metrics_port": options.port + 1, "debug": False, "logging_settings": None, "use_structured_logging": False}
        (root / "settings.json").write_text(json.dumps(settings))
        child = subprocess.Popen([str(Path(sys.executable).parent / "mlserver"), "start", folder], cwd=folder, stdout=subprocess.DEVNULL)
        try:
            child.wait()
        finally:
            child.terminate()
            child.wait()


def triton(options: argparse.Namespace) -> None:
    """Triton (Python back end with ONNX Runtime, dynamic batching where the model has a batch axis)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from edgekit.cloud.triton import TritonServer, write_repository

    with tempfile.TemporaryDirectory() as folder:
        write_repository([options.bundle], Path(folder) / "repository", "cpu")
        with TritonServer(Path(folder) / "repository", http_port=options.port, cpus={options.core}):
            wait()


def edgekit(options: argparse.Namespace) -> None:
    """Ours."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from edgekit.runtime import serve_bundles
    from edgekit.runtime.engines import EngineOptions

    with serve_bundles([options.bundle], ("127.0.0.1", options.port), None, options=EngineOptions(threads=1)):
        wait()


def edgekit_asyncio(options: argparse.Namespace) -> None:
    """Ours on asyncio's own loop."""
    sys.modules["uvloop"] = None  # type: ignore[assignment] - as if it were not installed
    edgekit(options)


def engine(options: argparse.Namespace) -> None:
    """No server: the bare engine, one request after the other, for ``--seconds``; prints runs a second."""
    import time

    model = session(options.model)
    name, array = first_input(Path(options.body).read_bytes(), options.header_length)
    for _ in range(50):
        model.run(None, {name: array})
    count, began = 0, time.perf_counter()
    cpu = time.process_time()
    while (spent := time.perf_counter() - began) < options.seconds:
        model.run(None, {name: array})
        count += 1
    print(json.dumps({"requests_per_s": count / spent, "cpu_us": (time.process_time() - cpu) / count * 1e6}))


def wait() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass


ROLES = {
    "engine": engine,
    "probe": probe,
    "aiohttp": aiohttp,
    "fastapi": fastapi,
    "mlserver": mlserver,
    "triton": triton,
    "edgekit": edgekit,
    "edgekit-asyncio": edgekit_asyncio,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=ROLES)
    for text in ("model", "bundle", "name", "body"):
        parser.add_argument(f"--{text}", default="")
    for number in ("port", "core", "header-length"):
        parser.add_argument(f"--{number}", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {chosen.core})
    ROLES[chosen.role](chosen)
