"""Server roles of `benchmarks.serve_grpc`: each listens for gRPC on one port of loopback, on one core, until it is ended.

``python _grpc_peers.py ROLE --model FILE.onnx --bundle FILE.edgekit --answer FILE --port P --core C``
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SERVICE = "inference.GRPCInferenceService"
THREADS = 16


def wait() -> None:
    threading.Event().wait()


def edgekit(options: argparse.Namespace) -> None:
    """Ours, with the model; one engine thread, as it has one core."""
    from edgekit.runtime import serve_bundles
    from edgekit.runtime.engines import EngineOptions

    with serve_bundles([options.bundle], None, ("127.0.0.1", options.port), options=EngineOptions(threads=1)):
        wait()


def edgekit_echo(options: argparse.Namespace) -> None:
    """Our transport over a core that gives the same answer at once: decoded, submitted, encoded, no model."""
    from edgekit.protocol import InferResponse, serve
    from edgekit.protocol._grpc_codec import decode_response
    from edgekit.protocol._grpc_messages import message_classes

    known = decode_response(message_classes()["ModelInferResponse"].FromString(options.answer.read_bytes()))

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
    sys.modules["uvloop"] = None  # type: ignore[assignment] - as if it were not installed
    edgekit_echo(options)


def _generic(grpc: Any, handle: Any) -> Any:
    """Handlers that take and give bytes: no protobuf at all."""
    return grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": grpc.unary_unary_rpc_method_handler(handle)})


def grpcio_echo(options: argparse.Namespace) -> None:
    """grpcio's synchronous server: bytes in, the same answer out."""
    import grpc

    answer = options.answer.read_bytes()
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_generic(grpc, lambda *_: answer),))
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    wait()


def grpcio_aio_echo(options: argparse.Namespace) -> None:
    """grpcio's asyncio server, the same."""
    import grpc

    answer = options.answer.read_bytes()

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


def triton(options: argparse.Namespace) -> None:
    """Triton (Python back end with ONNX Runtime, dynamic batching where the model has a batch axis)."""
    from edgekit.cloud.triton import TritonServer, write_repository

    with tempfile.TemporaryDirectory() as folder:
        write_repository([options.bundle], Path(folder) / "repository", "cpu")
        with TritonServer(Path(folder) / "repository", grpc_port=options.port, cpus={options.core}):
            wait()


ROLES = {
    "edgekit": edgekit,
    "edgekit-echo": edgekit_echo,
    "edgekit-echo-asyncio": edgekit_echo_asyncio,
    "grpcio-echo": grpcio_echo,
    "grpcio-aio-echo": grpcio_aio_echo,
    "triton": triton,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--answer", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ROLES[options.role](options)


if __name__ == "__main__":
    main()
