"""Server roles of the side-by-side benchmarks: each listens on one port of loopback, on one core, serves one ONNX model with ONNX Runtime on one thread, and runs until it is ended.

Runs in the peers' own environments, where EdgeKit is not installed; each role imports what it needs.

``python _roles.py http|grpc ROLE --model FILE.onnx --bundle FILE.edgekit --request FILE.npy --answer FILE --name NAME --port P --core C``
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

ROOT = str(Path(__file__).resolve().parent.parent)


def session(model: str) -> Any:
    """The engine, as every server here has it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def wait() -> NoReturn:
    """Until the process is ended: SIGTERM raises `SystemExit`, so that servers close."""
    while True:
        threading.Event().wait()


def edgekit(options: argparse.Namespace) -> None:
    """Ours."""
    sys.path.insert(0, ROOT)
    from edgekit.runtime import serve_bundles
    from edgekit.runtime.engines import EngineOptions

    address = ("127.0.0.1", options.port)
    http, grpc = (address, None) if options.transport == "http" else (None, address)
    with serve_bundles([options.bundle], http, grpc, options=EngineOptions(threads=1)):
        wait()


def edgekit_asyncio(options: argparse.Namespace) -> None:
    """Ours on asyncio's own loop."""
    without_uvloop()
    edgekit(options)


def without_uvloop() -> None:
    """As if it were not installed."""
    sys.modules["uvloop"] = None  # type: ignore[assignment]


def triton(options: argparse.Namespace) -> None:
    """Triton (Python back end with ONNX Runtime, dynamic batching where the model has a batch axis)."""
    sys.path.insert(0, ROOT)
    from edgekit.cloud.triton import TritonServer, write_repository

    with tempfile.TemporaryDirectory() as folder:
        write_repository([options.bundle], Path(folder) / "repository", "cpu")
        ports = {"http_port" if options.transport == "http" else "grpc_port": options.port}
        with TritonServer(Path(folder) / "repository", cpus={options.core}, **ports):
            wait()


def engine(options: argparse.Namespace) -> None:
    """No server: the bare engine, one run after the other, for ``--seconds``; prints its rate and the CPU time of a run."""
    import time

    model = session(options.model)
    name = model.get_inputs()[0].name
    array = np.load(options.request)
    for _ in range(50):
        model.run(None, {name: array})
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < options.seconds:
        model.run(None, {name: array})
        count += 1
    print(json.dumps({"requests_per_s": count / spent, "cpu_us": (time.process_time() - cpu) / count * 1e6}))


def roles(transport: str) -> dict[str, Any]:
    """Roles by name."""
    import _roles_echo
    import _roles_v2
    import _roles_web

    ours = {
        "edgekit": edgekit,
        "edgekit-asyncio": edgekit_asyncio,
        "triton": triton,
        "mlserver": _roles_v2.mlserver,
        "kserve": _roles_v2.kserve,
    }
    return ours | ({"engine": engine, **_roles_web.ROLES} if transport == "http" else _roles_echo.ROLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["http", "grpc"])
    parser.add_argument("role")
    for text in ("model", "bundle", "request", "answer", "name"):
        parser.add_argument(f"--{text}", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.argv = sys.argv[:1]  # some frameworks read it themselves
    roles(options.transport)[options.role](options)


if __name__ == "__main__":
    main()
