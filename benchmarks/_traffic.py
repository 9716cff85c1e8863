"""What is sent to a server and by whom: the first answer, whose numbers are checked, and the load, by wrk over HTTP and by h2load over gRPC.

Both generators run one thread on a core of their own in a closed loop: each connection sends its next request when it has the answer to the last. So a slow server
is asked less, and a stall shows in one latency a connection, not in all that would have arrived meanwhile (coordinated omission; `benchmarks/sustained.py` is
the open loop). ``load_busy`` is the share of its core that the generator took: near 1, it was the limit, and not the server.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks._cases import Case
from edgekit.protocol import InferRequest, InferResponse, Tensor
from edgekit.protocol._grpc_codec import encode_request as encode_grpc
from edgekit.protocol._grpc_codec import encode_response as encode_grpc_answer
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._grpc_wire import framed
from edgekit.protocol._http_codec import encode_request

GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
GRPC_PREFIX_BYTES = 5
HEADER_LENGTH = "Inference-Header-Content-Length"
ANSWER_S = 10.0
TIMEOUT_S = 30  # until wrk counts a request as failed: a slow answer is a latency, not an error
NEEDED = {"http": ("wrk", "apt-get install wrk"), "grpc": ("h2load", "apt-get install nghttp2-client")}


class NotYetError(Exception):
    """No answer so far."""


class LoadError(Exception):
    """The load could not be played, or its answers were not what they should be."""


class Traffic(Protocol):
    """Requests of one kind to one server."""

    encoding: str

    def first_answer(self, port: int) -> np.ndarray:
        """The numbers of one answer; raises `NotYetError` when there is none."""

    def load(self, port: int, connections: int, seconds: float, core: int) -> dict[str, float]:
        """Requests a second, latencies, and the generator's share of its core; raises `LoadError`."""


def missing_tool(transport: str) -> str:
    """Why no load can be played here; empty when it can."""
    tool, install = NEEDED[transport]
    if shutil.which(tool) is None:
        return f"{tool} is not here; Debian: {install}"
    return "" if (os.cpu_count() or 1) > 1 else "one core; a server and its load need one each"


class HttpTraffic:
    """A request again and again, by wrk.

    Encodings: ``v2 binary`` and ``v2 JSON`` of the Open Inference Protocol; ``raw`` and ``base64`` for servers of other protocols: the array's bytes as they are,
    or as text in ``{"data": …}``, both ways.
    """

    def __init__(self, case: Case, encoding: str, folder: Path) -> None:
        self.encoding, self._case = encoding, case
        self.path = f"/v2/models/{case.name}/infer"
        if encoding.startswith("v2"):
            message = encode_request(InferRequest(case.name, [Tensor(case.input_name, case.array)]), binary=encoding == "v2 binary")
            body, self.fields = message.body, message.headers()
        elif encoding == "raw":
            self.path, body, self.fields = "/infer", case.array.tobytes(), {"Content-Type": "application/octet-stream"}
        else:
            text = json.dumps({"data": base64.b64encode(case.array.tobytes()).decode()})
            self.path, body, self.fields = "/predict", text.encode(), {"Content-Type": "application/json"}
        self.body = folder / encoding.replace(" ", "-")
        self.body.write_bytes(body)

    def first_answer(self, port: int) -> np.ndarray:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        try:
            connection.request("POST", self.path, self.body.read_bytes(), self.fields)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise NotYetError(str(exc)) from exc
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise NotYetError(f"{response.status}: {body[:200]!r}")
        if self.encoding.startswith("v2"):
            return read_v2(body, response.headers.get(HEADER_LENGTH))
        raw = base64.b64decode(json.loads(body)["data"]) if self.encoding == "base64" else body
        return np.frombuffer(raw, np.float32).reshape(self._case.expected.shape)

    def load(self, port: int, connections: int, seconds: float, core: int) -> dict[str, float]:
        script = str(Path(__file__).parent / "_wrk_load.lua")
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{whole(seconds)}s",
            f"--timeout={TIMEOUT_S}s",
            "-s",
            script,
            f"http://127.0.0.1:{port}{self.path}",
        ]
        fields = ";".join(f"{name}:{value}" for name, value in self.fields.items())
        shown, busy = play(command, core, {"WRK_BODY": str(self.body), "WRK_FIELDS": fields})
        return {**read_wrk(shown), "load_busy": busy}


class GrpcTraffic:
    """A `ModelInfer` again and again with raw contents, by h2load, one call at a time on each connection."""

    encoding = "v2 raw contents"

    def __init__(self, case: Case, folder: Path) -> None:
        self._request = encode_grpc(InferRequest(case.name, [Tensor(case.input_name, case.array)])).SerializeToString()
        self._body = folder / "grpc-body"
        self._body.write_bytes(framed(len(self._request)) + self._request)
        self.answer = folder / "grpc-answer"
        """The answer of the echoes, on disk."""
        self.answer.write_bytes(encode_grpc_answer(InferResponse(case.name, "1", [Tensor("y", case.expected)])).SerializeToString())
        self._answer_bytes: dict[int, int] = {}

    def first_answer(self, port: int) -> np.ndarray:
        import grpc

        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                raw: bytes = channel.unary_unary(GRPC_PATH)(self._request, timeout=ANSWER_S)
        except grpc.RpcError as exc:
            raise NotYetError(" ".join(str(exc).split())[:200]) from exc
        self._answer_bytes[port] = len(raw) + GRPC_PREFIX_BYTES
        message = message_classes()["ModelInferResponse"].FromString(raw)
        tensor, contents = message.outputs[0], message.raw_output_contents  # some servers fill the typed contents as well
        values = np.frombuffer(contents[0], np.float32) if contents else np.array(tensor.contents.fp32_contents, np.float32)
        return values.reshape(tuple(tensor.shape))

    def load(self, port: int, connections: int, seconds: float, core: int) -> dict[str, float]:
        log = self._body.with_name("h2load-log")
        log.unlink(missing_ok=True)
        command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{whole(seconds)}", f"--log-file={log}", "-d", str(self._body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{GRPC_PATH}"]
        shown, busy = play(command, core)
        latencies_us = np.loadtxt(log, usecols=2, ndmin=1)
        return {**read_h2load(shown, latencies_us, self._answer_bytes[port]), "load_busy": busy}


def read_v2(body: bytes, header_length: str | None) -> np.ndarray:
    """The first tensor of an answer, binary or JSON; float32, as all outputs here are. Read without our own codec, which is stricter than some peers are."""
    end = len(body) if header_length is None else int(header_length)
    tensor = json.loads(body[:end])["outputs"][0]
    values = np.frombuffer(body[end:], np.float32) if "data" not in tensor else np.array(tensor["data"], np.float32)
    return values.reshape(tensor["shape"])


def whole(seconds: float) -> int:
    """Both generators take whole seconds."""
    return max(1, round(seconds))


def play(command: list[str], core: int, variables: dict[str, str] | None = None) -> tuple[str, float]:
    """What a load generator on ``core`` said, and its share of the core."""
    before, began = _children_cpu_s(), time.perf_counter()
    pinned = ["taskset", "-c", str(core), *command]
    done = subprocess.run(pinned, check=False, env={**os.environ, **(variables or {})}, capture_output=True, text=True)
    if done.returncode:
        raise LoadError(f"{command[0]} ended with {done.returncode}: {' '.join((done.stderr or done.stdout).split())[:300]}")
    return done.stdout, (_children_cpu_s() - before) / (time.perf_counter() - began)


def read_wrk(shown: str) -> dict[str, float]:
    """Figures of the line of JSON that ``_wrk_load.lua`` writes."""
    found = next((json.loads(line[4:]) for line in shown.splitlines() if line.startswith("JSON")), None)
    if not found or not found["requests"]:
        raise LoadError("wrk got no answer")
    if errors := {what: count for what, count in found["errors"].items() if count}:
        raise LoadError(f"of {found['requests']} requests failed: {', '.join(f'{count} ({what})' for what, count in errors.items())}")
    return {"requests_per_s": found["requests"] / found["us"] * 1e6, **{f"p{p}_ms": found[f"p{p}_us"] / 1e3 for p in (50, 95, 99)}}


def read_h2load(shown: str, latencies_us: np.ndarray, answer_bytes: int) -> dict[str, float]:
    """Figures of h2load's summary and log; every answer must have as many bytes as the first, for a refusal has none."""
    requests = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", shown)
    traffic = re.search(r"\((\d+)\) data", shown)
    wall = re.search(r"finished in ([\d.]+)(m?s),", shown)
    if requests is None or traffic is None or wall is None or not len(latencies_us):
        raise LoadError(f"h2load said {' '.join(shown.split())[-300:]!r}")
    if int(requests[3]) or int(requests[4]):
        raise LoadError(f"{requests[3]} requests failed and {requests[4]} had errors, of {requests[1]}")
    if int(traffic[1]) != len(latencies_us) * answer_bytes:
        raise LoadError(f"{traffic[1]} bytes for {len(latencies_us)} answers of {answer_bytes}")
    wall_s = float(wall[1]) / (1e3 if wall[2] == "ms" else 1)
    return {"requests_per_s": len(latencies_us) / wall_s, **{f"p{p}_ms": float(np.percentile(latencies_us, p)) / 1e3 for p in (50, 95, 99)}}


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
