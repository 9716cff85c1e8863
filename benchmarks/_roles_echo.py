"""Roles over gRPC that have no model: our transport and grpcio's two give the same answer again and again, which says what a transport costs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _roles import ROOT, wait, without_uvloop

SERVICE = "inference.GRPCInferenceService"
THREADS = 16


def edgekit_echo(options: argparse.Namespace) -> None:
    """Our transport over a core that gives the same answer at once: decoded, submitted, encoded, no model."""
    sys.path.insert(0, ROOT)
    from edgekit.protocol import InferResponse, serve
    from edgekit.protocol._grpc_codec import decode_response
    from edgekit.protocol._grpc_messages import message_classes

    answer = Path(options.answer).read_bytes()
    known = decode_response(message_classes()["ModelInferResponse"].FromString(answer))

    class Known:
        def __init__(self) -> None:
            self.inbox: list[Any] = []

        def submit(self, request: Any, done: Any) -> Any:
            self.inbox.append((request, done))
            return self

        def cancel(self) -> None:
            """Nothing waits."""

        def turn(self) -> None:
            inbox, self.inbox = self.inbox, []
            for request, done in inbox:
                done(InferResponse(known.model_name, known.model_version, known.outputs, request.id))

    with serve(Known(), None, ("127.0.0.1", options.port)):  # type: ignore[arg-type]
        wait()


def edgekit_echo_asyncio(options: argparse.Namespace) -> None:
    """The same on asyncio's own loop."""
    without_uvloop()
    edgekit_echo(options)


def _generic(grpc: Any, handle: Any) -> Any:
    """Handlers that take and give bytes: no protobuf at all."""
    return grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": grpc.unary_unary_rpc_method_handler(handle)})


def grpcio_echo(options: argparse.Namespace) -> None:
    """grpcio's synchronous server: bytes in, the same answer out."""
    import grpc

    answer = Path(options.answer).read_bytes()
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_generic(grpc, lambda *_: answer),))
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    wait()


def grpcio_aio_echo(options: argparse.Namespace) -> None:
    """grpcio's asyncio server, the same."""
    import grpc

    answer = Path(options.answer).read_bytes()

    async def handle(request: bytes, context: Any) -> bytes:
        del request, context
        return answer

    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_generic(grpc, handle),))
        server.add_insecure_port(f"127.0.0.1:{options.port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


ROLES = {
    "edgekit-echo": edgekit_echo,
    "edgekit-echo-asyncio": edgekit_echo_asyncio,
    "grpcio-echo": grpcio_echo,
    "grpcio-aio-echo": grpcio_aio_echo,
}
