"""A bundle that runs in milliseconds, a scripted core behind real servers, and a scripted client for what needs no socket."""

from __future__ import annotations

import hashlib
import shutil
import threading

import numpy as np
import pytest

from edgekit.bundle import (
    FORMAT,
    Artifact,
    Bundle,
    GoldenSample,
    Manifest,
    Signature,
    Source,
    TensorBinding,
    TensorSpec,
    Verification,
    write_bundle,
)
from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol import InferResponse, InFlight, ModelMetadata, ServerMetadata, Tensor, TensorMetadata


@pytest.fixture(scope="session")
def bundle(tiny_mlp, tmp_path_factory) -> Bundle:
    """The tiny MLP for ONNX Runtime, with one golden sample; made without the converters."""
    folder = tmp_path_factory.mktemp("router-bundle")
    (folder / "files").mkdir()
    shutil.copy(tiny_mlp, folder / "files" / "model.onnx")
    signature = Signature((TensorSpec("x", "float32", (1, 8)),), (TensorSpec("probabilities", "float32", (1, 4)),))
    artifact = Artifact(
        "onnxruntime",
        "model.onnx",
        "fp32",
        (TensorBinding("x", "x", "float32"),),
        (TensorBinding("probabilities", "probabilities", "float32"),),
    )
    manifest = Manifest(
        FORMAT,
        "tiny_mlp",
        "1",
        "generic-x86",
        "fp32",
        signature,
        artifact,
        Verification("deferred", "", 0, "synthetic", {}, {}),
        Source("tiny_mlp.onnx", "onnx", hashlib.sha256(tiny_mlp.read_bytes()).hexdigest(), 17),
        {},
    )
    sample = GoldenSample({"x": np.ones((1, 8), np.float32)}, {"probabilities": np.full((1, 4), 0.25, np.float32)})
    return write_bundle(folder / "bundle", manifest, folder / "files", [sample], {})


class Script:
    """What a tier does with a request, changed by the test while it runs: ``answer``, ``hang`` (until `release`), or an exception to raise."""

    def __init__(self):
        self.mode = "answer"
        self.ready = True
        self.calls = 0
        self.answered = 0
        self.ids = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.reached = threading.Event()  # a request got here

    def release(self):
        self._released.set()

    def handle(self, request):
        with self._lock:
            self.calls += 1
            self.ids.append(request.id)
        self.reached.set()
        mode = self.mode
        if isinstance(mode, Exception):
            raise mode
        if mode == "hang":
            self._released.wait(30.0)
        x = next((tensor.data for tensor in request.inputs if tensor.name == "x"), None)
        if x is None:
            raise RequestError("input 'x'", "missing", "float32[N,8]")
        with self._lock:
            self.answered += 1
        return InferResponse(request.model_name, "7", [Tensor("y", x * 2)], id=request.id)


class ScriptedCore:
    """An `InferenceCore` that doubles ``x``, as its script says; to be put behind real servers."""

    def __init__(self, script, model="m"):
        self.script, self.model = script, model

    def live(self):
        return True

    def ready(self):
        return self.script.ready

    def server_metadata(self):
        return ServerMetadata("scripted", "1", [])

    def model_ready(self, name, version=""):
        return self.script.ready

    def model_metadata(self, name, version=""):
        self._check(name)
        return ModelMetadata(name, ["7"], "scripted", [TensorMetadata("x", "FP32", [-1, 8])], [TensorMetadata("y", "FP32", [-1, 8])])

    def model_config(self, name, version=""):
        return {"name": name}

    def infer(self, request):
        self._check(request.model_name)
        return self.script.handle(request)

    def repository_index(self, ready_only=False):
        return []

    def repository_load(self, name, parameters):
        raise AssertionError("not used")

    def repository_unload(self, name, parameters):
        raise AssertionError("not used")

    def statistics(self, name="", version=""):
        return []

    def _check(self, name):
        if name != self.model:
            raise NotFoundError(f"model {name!r}", "no such model")


class ScriptedClient:
    """An `InferenceClient` without a socket: each request runs its script in a thread of its own."""

    def __init__(self, script, url="http://scripted:1"):
        self.url = url
        self.script = script
        self.cancelled = 0
        self.closed = False
        self.threads = []

    def infer(self, request, timeout_s):
        return self.start(request, timeout_s).result(timeout_s)

    def start(self, request, timeout_s):
        def abort():
            self.cancelled += 1
            self.script.release()

        handle = InFlight(self.url, abort)

        def work():
            try:
                handle.resolve(self.script.handle(request))
            except Exception as exc:  # noqa: BLE001 - handed to whoever waits
                handle.reject(exc)

        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()
        return handle

    def ready(self, timeout_s=1.0):
        return self.script.ready

    def model_ready(self, name, version="", timeout_s=1.0):
        return self.script.ready

    def model_metadata(self, name, version="", timeout_s=5.0):
        return ScriptedCore(self.script).model_metadata(name, version)

    def statistics(self, name="", version="", timeout_s=5.0):
        return []

    def close(self):
        self.closed = True


@pytest.fixture
def scripts():
    """Scripts of the edge and of the cloud; both are released at the end, so that no thread is left."""
    made = Script(), Script()
    yield made
    for script in made:
        script.release()


@pytest.fixture
def clients(scripts):
    """Clients of the edge and of the cloud."""
    made = [ScriptedClient(script, f"http://{name}:1") for script, name in zip(scripts, ("edge", "cloud"), strict=True)]
    yield made
    for client in made:
        client.script.release()
        for thread in client.threads:
            thread.join(5.0)
            assert not thread.is_alive()


@pytest.fixture
def scripted_core():
    """The class, for tests that serve it."""
    return ScriptedCore


@pytest.fixture
def no_thread_left():
    """Checks that a test leaves none of the router's threads."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("edgekit-router")]
    assert left == []
