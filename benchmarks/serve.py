"""HTTP servers side by side in one run: ours, a bare asyncio protocol, aiohttp, FastAPI, MLServer and Triton, with the same model and the same load.

Every server has one core of its own and the load (wrk, one thread) another; the servers take turns, round after round, so that what else the machine does
meets all of them. Two figures a server and number of connections: what came out (requests a second, latencies), and the CPU time that the server's processes
spent on a request, which hardly depends on how busy the machine is. Models: ``mlp`` (768 float32 in, 10 out, dynamic batch) and ``classifier``
(PP-OCR's angle classifier, 110 kB a request). MLServer gets JSON, as its protocol has no binary form; all others the binary extension.

What it does not show: a network, many different clients, or any other mix of requests. Each answer's status is checked, and the first answer's numbers.

Run ``python -m benchmarks serve [--model mlp|classifier] [--servers a,b] [--connections 1,16] [--seconds S] [--rounds R] [-o FILE]``. Needs ``wrk`` (Debian has
it) and two cores. Peers install themselves under ``out/peers`` on their first run; Triton is ``.venv-triton``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from edgekit.protocol import InferRequest, Tensor
from edgekit.protocol._http_codec import decode_response, encode_request

PEERS = Path(__file__).resolve().parent.parent / "out" / "peers"
PACKAGES = {"fastapi": ["fastapi", "uvicorn[standard]"], "mlserver": ["mlserver"]}
SERVERS = ["edgekit", "edgekit-asyncio", "probe", "aiohttp", "fastapi", "mlserver", "triton"]
JSON_ONLY = {"mlserver"}
SERVER_CORE, LOAD_CORE = 0, 1
READY_S = 90.0
WARM_UP_S = 1.0


class Case(NamedTuple):
    """One model and its request."""

    name: str
    model: Path
    bundle: Path
    input_name: str
    array: np.ndarray
    expected: np.ndarray


class Load(NamedTuple):
    """A request on disk, for wrk."""

    body: Path
    fields: dict[str, str]


def mlp(folder: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    weights = [("w1", (768, 128)), ("b1", (128,)), ("w2", (128, 10)), ("b2", (10,))]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 768])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), name) for name, shape in weights],
    )
    path = folder / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def make_case(kind: str, folder: Path) -> Case:
    import onnxruntime

    from edgekit.converters import build

    if kind == "mlp":
        model, shape, shapes = mlp(folder), (1, 768), {}
    else:
        from edgekit._directories import cache_directory

        model, shape = cache_directory() / "models" / "ppocr-cls.onnx", (1, 3, 48, 192)
        if not model.is_file():
            raise SystemExit(f"{model}: not there; run `edgekit demo` once, which fetches it")
        shapes = {onnxruntime.InferenceSession(model).get_inputs()[0].name: (-1, 3, 48, 192)}
    bundle = folder / f"{kind}.edgekit"
    build(model, device="generic-x86", precision="fp32", output=str(bundle), name=kind, shapes=shapes)
    session = onnxruntime.InferenceSession(model)
    name = session.get_inputs()[0].name
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Case(kind, model, bundle, name, array, session.run(None, {name: array})[0])


def make_load(case: Case, folder: Path, *, binary: bool) -> Load:
    message = encode_request(InferRequest(case.name, [Tensor(case.input_name, case.array)]), binary=binary)
    path = folder / ("binary" if binary else "json")
    path.write_bytes(message.body)
    return Load(path, message.headers())


def peer_python(server: str) -> str:
    """The interpreter that runs a server; makes its environment on the first call."""
    packages = PACKAGES.get(server)
    if packages is None:
        return sys.executable
    folder = PEERS / server
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        uv = str(Path(sys.executable).parent / "uv")
        print(f"installing {server} into {folder}", file=sys.stderr)
        subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *packages, "onnxruntime", "numpy"], check=True)
        (folder / ".ready").touch()
    return str(python)


class Running:
    """A server that answers, with the time that took."""

    def __init__(self, server: str, case: Case, load: Load) -> None:
        self.name, self.load, self._case = server, load, case
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [peer_python(server), str(Path(__file__).parent / "_serve_peers.py"), server, "--model", str(case.model)]
        command += ["--bundle", str(case.bundle), "--name", case.name, "--port", str(self.port), "--core", str(SERVER_CORE)]
        began = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        answer = self._first_answer()
        self.start_s = time.perf_counter() - began
        error = float(np.abs(answer.astype(np.float64) - case.expected).max())
        if answer.shape != case.expected.shape or error > 1e-3:
            raise SystemExit(f"{server}: its answer is off by {error}")

    @property
    def path(self) -> str:
        return f"/v2/models/{self._case.name}/infer"

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._family()))

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self._family())

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _family(self) -> list[Any]:
        import psutil

        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def _first_answer(self) -> np.ndarray:
        deadline = time.perf_counter() + READY_S
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise SystemExit(f"{self.name} ended: {self._process.stderr.read()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("POST", self.path, self.load.body.read_bytes(), self.load.fields)
                response = connection.getresponse()
                body = response.read()
                connection.close()
                if response.status == http.HTTPStatus.OK:
                    tensor: np.ndarray = decode_response(body, response.headers.get("Inference-Header-Content-Length")).outputs[0].data
                    return tensor
            time.sleep(0.01)
        self._process.terminate()
        raise SystemExit(f"{self.name}: no answer within {READY_S:g} s")

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        self._wrk(connections, WARM_UP_S)
        before = self.cpu_s()
        result = self._wrk(connections, seconds)
        cpu_us = (self.cpu_s() - before) / max(1, result["requests"]) * 1e6
        if result["errors"]:
            raise SystemExit(f"{self.name}: {result['errors']} of {result['requests']} requests failed")
        rate = result["requests"] / result["us"] * 1e6
        return {"requests_per_s": rate, "cpu_us": cpu_us, **{f"p{p}_ms": result[f"p{p}_us"] / 1e3 for p in (50, 95, 99)}}

    def _wrk(self, connections: int, seconds: float) -> dict[str, Any]:
        script = str(Path(__file__).parent / "_serve_load.lua")
        # wrk takes whole seconds.
        command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script]
        fields = ";".join(f"{name}:{value}" for name, value in self.load.fields.items())
        environment = {**os.environ, "WRK_BODY": str(self.load.body), "WRK_FIELDS": fields}
        url = f"http://127.0.0.1:{self.port}{self.path}"
        done = subprocess.run([*command, url], env=environment, capture_output=True, text=True, check=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("JSON"))
        result: dict[str, Any] = json.loads(line[4:])
        return result


@contextlib.contextmanager
def running(servers: list[str], case: Case, folder: Path) -> Iterator[list[Running]]:
    loads = {binary: make_load(case, folder, binary=binary) for binary in (True, False)}
    started: list[Running] = []
    try:
        for server in servers:
            started.append(Running(server, case, loads[server not in JSON_ONLY]))  # noqa: PERF401 - those before it are ended when one fails
        yield started
    finally:
        for server in started:
            server.stop()


def bare_engine(case: Case, load: Load, seconds: float) -> dict[str, float]:
    command = [
        sys.executable,
        str(Path(__file__).parent / "_serve_peers.py"),
        "engine",
        "--model",
        str(case.model),
        "--body",
        str(load.body),
    ]
    command += ["--header-length", load.fields["Inference-Header-Content-Length"], "--seconds", str(seconds), "--core", str(SERVER_CORE)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    servers = arguments.servers.split(",")
    counts = [int(text) for text in arguments.connections.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    bare: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = make_case(arguments.model, folder)
        with running(servers, case, folder) as started:
            for turn in range(arguments.rounds):
                print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
                bare.append(
                    bare_engine(case, started[0].load if started[0].name not in JSON_ONLY else make_load(case, folder, binary=True), 2.0)
                )
                for connections in counts:
                    for server in started:
                        found.setdefault((server.name, connections), []).append(server.measure(connections, arguments.seconds))
            processes = {
                server.name: {"start_s": round(server.start_s, 2), "rss_mb": round(server.rss_bytes() / 1e6)} for server in started
            }
    results = {server: {str(count): medians(found[server, count]) for count in counts} | processes[server] for server in servers}
    return {"model": arguments.model, "bare_engine": medians(bare), "servers": results}


def table(results: dict[str, Any]) -> str:
    counts = [key for key in next(iter(results["servers"].values())) if key.isdigit()]
    bare = results["bare_engine"]
    lines = [f"{results['model']}: bare engine {bare['requests_per_s']:.0f}/s, {bare['cpu_us']:.1f} us CPU a run"]
    columns = "".join(f"{f'req/s, {count} conns':>17}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}" for count in counts)
    lines.append(f"{'':<17}{columns}{'RSS MB':>9}{'start s':>9}")
    for server, row in results["servers"].items():
        cells = "".join(
            f"{row[count]['requests_per_s']:>17.0f}{row[count]['p50_ms']:>9.2f}{row[count]['p99_ms']:>9.2f}{row[count]['cpu_us']:>9.1f}"
            for count in counts
        )
        lines.append(f"{server:<17}{cells}{row['rss_mb']:>9}{row['start_s']:>9.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "classifier"], default="mlp")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--connections", default="1,16")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each figure and round, whole ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="the JSON goes there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.servers.split(",")) - set(SERVERS):
        raise SystemExit(f"--servers {', '.join(sorted(unknown))}: unknown; there are {', '.join(SERVERS)}")
    if shutil.which("wrk") is None or (os.cpu_count() or 1) < 2:
        raise SystemExit("wrk and two cores are needed; Debian: apt-get install wrk")
    machine = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    options = {"seconds": arguments.seconds, "rounds": arguments.rounds, "load_average_before": os.getloadavg()[0]}
    results = run(arguments)
    document = json.dumps({**machine, **options, "load_average_after": os.getloadavg()[0], **results}, indent=2)
    print(document)
    print(table(results), file=sys.stderr)
    if arguments.output is not None:
        arguments.output.write_text(document + "\n")


if __name__ == "__main__":
    main()
