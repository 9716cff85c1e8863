"""Noise for both servers as long as one likes: ``python -m tests.protocol.fuzz --seconds 300 --seed 1``. A tool, no test; what it finds becomes one.

Good conversations of both protocols are damaged (bytes flipped, cut, doubled, joined with others) and sent to a server with a real core in front of a real engine. After
each, the server must be alive, must not have logged a bug, and in the end nothing may be left over. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import json
import logging
import random
import socket
import tempfile
import time
from pathlib import Path

import numpy as np

from edgekit.protocol import InferRequest, RequestedOutput, Tensor, connect
from edgekit.protocol._grpc_codec import encode_request as encode_grpc
from edgekit.protocol._grpc_wire import framed
from edgekit.protocol._http_codec import encode_request as encode_http
from edgekit.runtime import serve_bundles
from tests.protocol.grpc_memory import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, header_block
from tests.runtime.serving_bundles import text_model, write_scale, write_serving_bundle

SERVICE = "/inference.GRPCInferenceService/"
X = np.arange(8, dtype=np.float32).reshape(2, 4)
TEXT = np.array([b"ab", b"", b"\xff"], dtype=object)
PATHS = [
    "health/ready",
    "models/scale",
    "models/scale/config",
    "models/scale/stats",
    "logging",
    "trace/setting",
    "systemsharedmemory/status",
]
CALLS = [
    "ModelInfer",
    "ModelStreamInfer",
    "ModelReady",
    "ModelConfig",
    "RepositoryIndex",
    "LogSettings",
    "SystemSharedMemoryRegister",
    "TraceSetting",
]
STANDARD = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
PIECES = [
    b"\r\n",
    b"\0",
    b"\xff\xff\xff\xff",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"gzip",
    b"[[[[",
    b"{",
    b'"',
    b"999999999999",
]


def requests() -> list[InferRequest]:
    """Good ones, of every kind that the codecs tell apart."""
    wanted = [RequestedOutput("y", {"classification": 2}), RequestedOutput("total")]
    return [
        InferRequest("scale", [Tensor("x", X)]),
        InferRequest("scale", [Tensor("x", X)], "1", "id-7", wanted, {"timeout": 10_000_000, "k": "v"}),
        InferRequest("text", [Tensor("text", TEXT)], outputs=[RequestedOutput("copy")]),
        InferRequest("scale", [Tensor("x", X)], parameters={"sequence_id": 5, "sequence_start": True}),
    ]


def http_seeds() -> list[bytes]:
    seeds = [f"GET /v2/{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for path in PATHS]
    for request in requests():
        for binary in (True, False):
            if request.model_name == "text" and not binary:
                continue
            message = encode_http(request, binary=binary)
            for coding in ("", "gzip"):
                body = gzip.compress(message.body) if coding else message.body
                fields = {**message.headers(), "Content-Length": str(len(body))} | (
                    {"Content-Encoding": coding, "Accept-Encoding": coding} if coding else {}
                )
                for verb in ("infer", "generate_stream"):
                    head = f"POST /v2/models/{request.model_name}/{verb} HTTP/1.1\r\nHost: h\r\n" + "".join(
                        f"{k}: {v}\r\n" for k, v in fields.items()
                    )
                    seeds.append(head.encode() + b"\r\n" + body)
    body = b'{"log_verbose_level": 0}'
    return [*seeds, b"POST /v2/logging HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body]


def grpc_seeds() -> list[tuple[str, bytes]]:
    messages = [encode_grpc(request).SerializeToString() for request in requests()]
    seeds = [(SERVICE + name, message) for name in CALLS for message in (*messages, b"")]
    return [*seeds, *((path, message) for path in STANDARD for message in (b"", b"\x3a\x00", b"\x0a\x01x"))]


def damaged(draw: random.Random, raw: bytes, times: int) -> bytes:
    data = bytearray(raw)
    for _ in range(times):
        at, size = draw.randrange(len(data) + 1), draw.choice([0, 1, 1, 4, 20])
        kind = draw.random()
        if kind < 0.4 and data:
            data[min(at, len(data) - 1)] = draw.randrange(256)
        elif kind < 0.6:
            data[at : at + size] = draw.choice(PIECES)
        elif kind < 0.75:
            del data[at : at + size]
        elif kind < 0.9:
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = draw.randbytes(size)
    return bytes(data)


def grpc_conversation(draw: random.Random, seeds: list[tuple[str, bytes]]) -> bytes:
    """Frames of a few calls, with damage to messages, to frames, or to none."""
    raw = PREFACE + frame(SETTINGS)
    for index in range(draw.randint(1, 4)):
        path, message = draw.choice(seeds)
        stream = 1 + 2 * index
        extra = draw.choice(
            [{}, {}, {"grpc_encoding": "gzip", "grpc_accept_encoding": "gzip"}, {"grpc_timeout": "1S"}, {"content_length": "7"}]
        )
        if draw.random() < 0.6:
            message = damaged(draw, message, draw.randint(1, 4))
        body = framed(len(message)) + message
        if "grpc_encoding" in extra and draw.random() < 0.7:
            packed = gzip.compress(message)
            body = b"\1" + len(packed).to_bytes(4, "big") + packed
        if draw.random() < 0.3:
            body = damaged(draw, body, 1)
        raw += frame(HEADERS, END_HEADERS, stream, header_block(path, extra))
        cut = draw.randint(0, len(body))
        raw += frame(DATA, 0, stream, body[:cut]) + frame(DATA, draw.choice([END_STREAM, END_STREAM, 0]), stream, body[cut:])
        if draw.random() < 0.1:
            raw += frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
    return damaged(draw, raw, draw.randint(1, 3)) if draw.random() < 0.3 else raw


def talk(draw: random.Random, port: int, raw: bytes) -> bytes:
    """Send in two pieces, read what comes until the server closes or has been quiet for a moment."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 10) as sock, contextlib.suppress(OSError):
        cut = draw.randint(0, len(raw))
        sock.sendall(raw[:cut])
        sock.sendall(raw[cut:])
        if draw.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(draw.choice([0.0001, 0.02, 0.1]))
        while piece := sock.recv(1 << 16):
            received += piece
    return received


class Bugs(logging.Handler):
    """Keeps what the server says went wrong in it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


def well(url: str) -> None:
    with contextlib.closing(connect(url)) as client:
        answer = client.infer(InferRequest("scale", [Tensor("x", X)]), 20.0)
        assert np.array_equal(answer.outputs[0].data, 2 * X), answer


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    draw = random.Random(asked.seed)
    bugs = Bugs()
    logging.getLogger("edgekit").addHandler(bugs)
    seen: collections.Counter[str] = collections.Counter()
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        write_scale(Path(folder) / "scale.edgekit")
        write_serving_bundle(Path(folder) / "text.edgekit", text_model(), "text", "1", {})
        with serve_bundles([folder], ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
            http, grpc = http_seeds(), grpc_seeds()
            end_s = time.monotonic() + asked.seconds
            while time.monotonic() < end_s:
                if draw.random() < 0.5:
                    raw, kind, port = b"".join(draw.choices(http, k=draw.randint(1, 3))), "http", server.http_port
                    raw = damaged(draw, raw, draw.randint(0, 6))
                else:
                    raw, kind, port = grpc_conversation(draw, grpc), "grpc", server.grpc_port
                answer = talk(draw, port, raw)
                seen[kind] += 1
                seen[f"{kind} {answer[9:12].decode('latin-1')}" if answer.startswith(b"HTTP/1.1") else f"{kind} other"] += 1
                if bugs.lines or answer.startswith(b"HTTP/1.1 500"):
                    found.append(json.dumps({"raw": raw.hex(), "kind": kind, "log": bugs.lines}))
                    bugs.lines.clear()
                if seen[kind] % 500 == 0:
                    well(f"{kind}://127.0.0.1:{port}")
            for kind, port in (("http", server.http_port), ("grpc", server.grpc_port)):
                well(f"{kind}://127.0.0.1:{port}")
    print(json.dumps({"seed": asked.seed, "seen": dict(sorted(seen.items())), "bugs": found}))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
