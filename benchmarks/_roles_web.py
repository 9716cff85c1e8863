"""Roles over HTTP that are no server of models by themselves, or speak a protocol of their own: web frameworks with a handler for the one request, BentoML, LitServe, Ray Serve.

The handlers know the one request of the load: the first tensor, binary, or (BentoML, LitServe, Ray Serve) the array's bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _roles import session, wait

HEADER_LENGTH = "Inference-Header-Content-Length"


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


BENTOML_SERVICE = """
import sys
sys.path.insert(0, {folder!r})
import bentoml
import numpy as np
from _roles import session
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

model = session({model!r})
name = model.get_inputs()[0].name


async def infer(request):
    array = np.frombuffer(await request.body(), np.float32).reshape({shape!r})
    return Response(model.run(None, {{name: array}})[0].tobytes(), media_type="application/octet-stream")


@bentoml.service(workers=1, traffic={{"timeout": 60}})
@bentoml.asgi_app(Starlette(routes=[Route("/infer", infer, methods=["POST"])]))
class Ort:
    pass
"""


LITSERVE_API = """
import base64
import sys
sys.path.insert(0, {folder!r})
import litserve
import numpy as np
from _roles import session


class Ort(litserve.LitAPI):
    def setup(self, device):
        self.model = session({model!r})
        self.input = self.model.get_inputs()[0].name

    def decode_request(self, request):
        return np.frombuffer(base64.b64decode(request["data"]), np.float32).reshape({shape!r})

    def predict(self, x):
        return self.model.run(None, {{self.input: x}})[0]

    def encode_response(self, output):
        return {{"data": base64.b64encode(output.tobytes()).decode()}}
"""


def request_shape(options: argparse.Namespace) -> tuple[int, ...]:
    """Of the array in the request, which every raw body has."""
    return tuple(np.load(options.request, mmap_mode="r").shape)


def bentoml(options: argparse.Namespace) -> None:
    """BentoML with a mounted ASGI application, one worker: its own handlers of tensors are slower."""
    with tempfile.TemporaryDirectory() as folder:
        text = BENTOML_SERVICE.format(folder=str(Path(__file__).parent), model=options.model, shape=request_shape(options))
        (Path(folder) / "service.py").write_text(text)
        os.environ |= {"BENTOML_HOME": folder, "BENTOML_DO_NOT_TRACK": "True"}
        os.chdir(folder)
        import bentoml as package

        with package.serve("service:Ort", host="127.0.0.1", port=options.port, working_dir=folder, blocking=False):
            wait()


def litserve(options: argparse.Namespace) -> None:
    """LitServe with one worker and its fast queue; arrays as base64 in JSON, which is what its protocol carries."""
    with tempfile.TemporaryDirectory() as folder:
        text = LITSERVE_API.format(folder=str(Path(__file__).parent), model=options.model, shape=request_shape(options))
        (Path(folder) / "ort_api.py").write_text(text)
        sys.path.insert(0, folder)  # its worker is a process of its own, which imports the class
        import litserve as package
        from ort_api import Ort

        server = package.LitServer(Ort(), accelerator="cpu", workers_per_device=1, fast_queue=True)
        server.run(
            host="127.0.0.1", port=options.port, num_api_servers=1, log_level="warning", access_log=False, generate_client_file=False
        )


def ray_serve(options: argparse.Namespace) -> None:
    """Ray Serve with one replica; the array's bytes as they are."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    sys.path.insert(0, str(Path(__file__).parent))
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    shape = request_shape(options)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        variables = {"PYTHONPATH": str(Path(__file__).parent)}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder, runtime_env={"env_vars": variables})

        @serve.deployment(num_replicas=1, max_ongoing_requests=64)
        class Ort:
            def __init__(self) -> None:
                self.model = session(options.model)
                self.input = self.model.get_inputs()[0].name

            async def __call__(self, request: Request) -> Response:
                array = np.frombuffer(await request.body(), np.float32).reshape(shape)
                return Response(self.model.run(None, {self.input: array})[0].tobytes(), media_type="application/octet-stream")

        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        serve.run(Ort.bind(), route_prefix="/infer")  # type: ignore[attr-defined] # its decorator gives it bind
        try:
            wait()
        finally:
            ray.shutdown()


ROLES = {"probe": probe, "aiohttp": aiohttp, "fastapi": fastapi, "bentoml": bentoml, "litserve": litserve, "ray-serve": ray_serve}
