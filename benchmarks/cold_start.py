"""How light the device side is: import time, start to first answer, memory and disk, each beside a bare script of the same engine.

Every measurement is a process of its own. A round starts each contender once, in an order that rotates, so that a drift of the machine meets all alike;
figures are medians over the rounds, and comparisons medians of what each round's own pair gave. *Start to first answer* runs from just before the process is created until its first answer is there, on the
system's monotonic clock; *memory* is the resident set then and *cpu* the processor time
that it has used, which neighbours on the machine change least. Both scripts of a pair load the same artifact file with one thread and run the same
input of zeros; ours checks the digest of the artifact and the request as always. `ours_kept` has a cache folder (`EngineOptions.cache_dir`) that its first round fills.

``serve`` is the whole command: from just before ``edgekit serve BUNDLE`` is started until an HTTP client has its first answer; by then the model was warmed with its samples.

What it does not show: a cold disk (files are in the page cache after the first round, which is dropped), and other machines.

Run ``python -m benchmarks cold_start [--rounds N] [--python PATH] [MODEL...]``; prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DEVICES = {"onnxruntime": "generic-x86", "openvino": "intel-nuc", "tflite": "raspberry-pi-5"}
MB = 1e6
PYTHON = sys.executable

IMPORTS = {
    "numpy": "import numpy",
    "edgekit.runtime": "import numpy, edgekit.runtime",
    "edgekit.runtime.load": "import numpy\nfrom edgekit.runtime import load",
}
OURS = """
import numpy as np
from edgekit.runtime import load
session = load(BUNDLE, threads=1, cache_dir=CACHE)
session.run({name: np.zeros(shape, dtype) for name, shape, dtype in INPUTS})
"""
BARE = {
    "onnxruntime": """
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(ARTIFACT, options, providers=["CPUExecutionProvider"])
session.run(None, {name: np.zeros(shape, dtype) for name, shape, dtype in NATIVE})
""",
    "openvino": """
import numpy as np, openvino
properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
request = openvino.Core().compile_model(ARTIFACT, "CPU", properties).create_infer_request()
request.infer({name: np.zeros(shape, dtype) for name, shape, dtype in NATIVE})
""",
    "tflite": """
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=ARTIFACT, num_threads=1)
interpreter.allocate_tensors()
runner = interpreter.get_signature_runner()
places = {name: detail["index"] for name, detail in runner.get_input_details().items()}
results = [detail["index"] for detail in runner.get_output_details().values()]
del runner  # an interpreter does not run while a runner holds it
for name, shape, dtype in NATIVE:
    interpreter.set_tensor(places[name], np.zeros(shape, dtype))
interpreter.invoke()
[interpreter.get_tensor(index) for index in results]
""",
}
REPORT = """
import os as _os, time as _time
_now = _time.monotonic()
print(_now, int(open("/proc/self/statm").read().split()[1]) * _os.sysconf("SC_PAGE_SIZE"), _time.process_time())
"""


def environment(folder: str) -> dict[str, str]:
    """This process's, with byte code cached below ``folder``, as an installed package has it beside its modules."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": folder, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def start(script: str, variables: dict[str, str]) -> tuple[float, float, float]:
    """Seconds from before the process to its answer, and its resident bytes and CPU seconds then."""
    began = time.monotonic()
    done = subprocess.run([PYTHON, "-c", script + REPORT], check=True, capture_output=True, text=True, cwd=ROOT, env=variables)
    at, resident, cpu = done.stdout.split()[-3:]
    return float(at) - began, float(resident), float(cpu)


Starts = dict[str, list[tuple[float, float, float]]]
"""Of each script, in the order of the rounds: seconds to the answer, resident bytes, CPU seconds."""


def measure(scripts: dict[str, str], rounds: int) -> Starts:
    """Start each script once a round; one round more is run first and dropped."""
    found: Starts = {name: [] for name in scripts}
    names = list(scripts)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                sample = start(scripts[name], environment(folder))
                if turn:
                    found[name].append(sample)
    return found


def medians(found: Starts) -> dict[str, dict[str, Any]]:
    """Start, CPU time and memory of each script."""
    return {
        name: {
            "start_ms": round(statistics.median(seconds for seconds, _, _ in samples) * 1e3, 1),
            "start_least_ms": round(min(seconds for seconds, _, _ in samples) * 1e3, 1),
            "cpu_ms": round(statistics.median(cpu for _, _, cpu in samples) * 1e3, 1),
            "rss_mb": round(statistics.median(resident for _, resident, _ in samples) / MB, 1),
        }
        for name, samples in found.items()
    }


def contenders(bundle: Any, cache: str) -> dict[str, str]:
    """The bare script for one bundle, ours, and ours with a cache folder, which its first round fills."""
    artifact = bundle.manifest.artifact
    inputs = [(spec.name, tuple(spec.shape), spec.dtype) for spec in bundle.signature.inputs]
    native = []
    for binding, (_, shape, _) in zip(artifact.inputs, inputs, strict=True):
        order = binding.perm or range(len(shape))
        native.append((binding.native_name, tuple(shape[axis] for axis in order), binding.native_dtype))
    values = {"BUNDLE": str(bundle.path), "ARTIFACT": str(bundle.artifact_path(artifact)), "INPUTS": inputs, "NATIVE": native}
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    return {"bare": head + BARE[artifact.engine], "ours": f"{head}CACHE = ''\n{OURS}", "ours_kept": f"{head}CACHE = {cache!r}\n{OURS}"}


def first_answer(bundle: Any, variables: dict[str, str]) -> float:
    """Seconds from before ``edgekit serve`` to the answer to a request of zeros."""
    import numpy as np

    from edgekit.protocol import InferRequest, Tensor, connect

    inputs = [Tensor(spec.name, np.zeros(tuple(spec.shape), spec.dtype)) for spec in bundle.signature.inputs]
    command = [PYTHON, "-m", "edgekit", "serve", str(bundle.path), "--http", "127.0.0.1:0", "--grpc", "off", "--threads", "1"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=variables) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            port = re.search(r"http (\d+)", line)
            if port is None:
                raise RuntimeError(f"edgekit serve said {line!r} where it should say its port")
            with contextlib.closing(connect(f"http://127.0.0.1:{port.group(1)}")) as client:
                client.infer(InferRequest(bundle.manifest.name, inputs), 30.0)
            return time.monotonic() - began
        finally:
            server.terminate()


def serve(bundle: Any, rounds: int) -> dict[str, float]:
    """First answers of that many servers, one after the other; one more is started first and dropped."""
    with tempfile.TemporaryDirectory() as folder:
        found = [first_answer(bundle, environment(folder)) * 1e3 for _ in range(rounds + 1)][1:]
    return {"answer_ms": round(statistics.median(found), 1), "answer_most_ms": round(max(found), 1)}


def compare(found: Starts) -> dict[str, Any]:
    """The medians, and each of ours beside the bare script: ratios round by round, whose median and quartiles are told, so that what slowed a whole round counts little."""
    bare = found["bare"]
    relative = {}
    for name, ours in found.items():
        if name != "bare":
            started = [mine[0] / other[0] for mine, other in zip(ours, bare, strict=True)]
            spent = [mine[2] / other[2] for mine, other in zip(ours, bare, strict=True)]
            added = [mine[1] - other[1] for mine, other in zip(ours, bare, strict=True)]
            low, _, high = statistics.quantiles(started, n=4, method="inclusive")
            relative[name] = {
                "start_ratio": round(statistics.median(started), 3),
                "start_ratio_quartiles": [round(low, 3), round(high, 3)],
                "cpu_ratio": round(statistics.median(spent), 3),
                "rss_added_mb": round(statistics.median(added) / MB, 1),
            }
    return {"measured": medians(found), "relative_to_bare": relative}


def installed_mb() -> dict[str, float]:
    """What a device installs beside numpy and the engine: our package as it is, and every other dependency of ours as installed."""
    ours = sum(path.stat().st_size for path in (ROOT / "edgekit").rglob("*") if path.is_file() and path.suffix != ".pyc")
    sizes = {"edgekit": ours / MB}
    for distribution in ("msgspec",):  # numpy is the engine's dependency as well
        files = importlib.metadata.files(distribution) or []
        sizes[distribution] = sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file()) / MB
    return {name: round(size, 2) for name, size in sizes.items()} | {"total": round(sum(sizes.values()), 2)}


def imports(rounds: int) -> dict[str, Any]:
    """What importing adds to `import numpy`, round by round; the medians of that."""
    found = measure(IMPORTS, rounds)
    added = {
        name: round(statistics.median(mine[0] - base[0] for mine, base in zip(samples, found["numpy"], strict=True)) * 1e3, 1)
        for name, samples in found.items()
    }
    return {"measured": medians(found), "added_over_numpy_ms": added}


def main() -> None:
    from edgekit.converters import build
    from examples.models import SHAPES, fetch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["ppocr-cls", "ppocr-det"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", choices=list(DEVICES), action="append", help="only this one; repeat for several")
    parser.add_argument("--python", default=PYTHON, help="interpreter of an environment as a device has it; this one's by default")
    arguments = parser.parse_args()
    globals()["PYTHON"] = arguments.python
    results: dict[str, Any] = {"installed_mb": installed_mb(), "import": imports(arguments.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for engine in arguments.engine or DEVICES:
                path = Path(folder) / f"{model}-{engine}"
                bundle = build(fetch(model), device=DEVICES[engine], precision="fp32", shapes=SHAPES[model], output=path)
                found = compare(measure(contenders(bundle, f"{path}.cache"), arguments.rounds))
                results[f"{model} {engine}"] = found | {"serve": serve(bundle, arguments.rounds)}
    print(json.dumps({"rounds": arguments.rounds, "results": results}, indent=2))


if __name__ == "__main__":
    main()
