"""A small core that answers with what it got, and servers over it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol import (
    InferResponse,
    ModelMetadata,
    RepositoryEntry,
    ServerMetadata,
    Tensor,
    TensorMetadata,
    connect,
    serve,
)


class EchoCore:
    """Model ``echo``: every input comes back as an output of the same name. The real interface, nothing behind it.

    Model ``bug`` fails as a programming error does; ``held`` waits for ``release``; ``nan`` answers NaN.
    """

    models = ("bug", "echo", "held", "nan")

    def __init__(self):
        self.requests = []
        self.changes = []
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def live(self):
        return True

    def ready(self):
        return True

    def server_metadata(self):
        return ServerMetadata("echo-server", "1.2", ["binary_tensor_data"])

    def _known(self, name):
        if name not in self.models:
            raise NotFoundError(f"model {name!r}", "no such model")

    def model_ready(self, name, version=""):
        self._known(name)
        return True

    def model_metadata(self, name, version=""):
        self._known(name)
        tensor = TensorMetadata("x", "FP32", [-1, 4])
        return ModelMetadata(name, ["1"], "edgekit_test", [tensor], [tensor])

    def model_config(self, name, version=""):
        self._known(name)
        return {"name": name, "max_batch_size": 0, "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}]}

    def class_labels(self, name, version=""):
        return ("ant", "bee", "cat") if (name, version) == ("echo", "1") else ()

    def infer(self, request):
        self._known(request.model_name)
        self.requests.append(request)
        if request.model_name == "bug":
            raise ZeroDivisionError("secret detail")
        if request.model_name == "held":
            self.entered.release()
            self.release.wait()
        outputs = request.inputs
        if request.model_name == "nan":
            outputs = [Tensor("y", np.array([np.nan, 1], np.float32))]
        names = [tensor.name for tensor in outputs]
        for output in request.outputs:
            if output.name not in names:
                raise RequestError(f"output {output.name!r}", "no such output")
        parameters = {"edgekit_decision": "local\r\nx-evil: 1"}
        return InferResponse(request.model_name, "1", list(outputs), id=request.id, parameters=parameters)

    def repository_index(self, ready_only=False):
        rows = [RepositoryEntry("echo", "1", "READY"), RepositoryEntry("other", "1", "UNAVAILABLE", "unloaded")]
        return [row for row in rows if not ready_only or row.state == "READY"]

    def repository_load(self, name, parameters):
        self._known(name)
        self.changes.append(("load", name, dict(parameters)))

    def repository_unload(self, name, parameters):
        self._known(name)
        self.changes.append(("unload", name, dict(parameters)))

    def statistics(self, name="", version=""):
        steps = {"success": {"count": 3, "ns": 1 << 40}, "fail": {"count": 0, "ns": 0}}
        return [{"name": name or "echo", "version": "1", "inference_count": 3, "inference_stats": steps}]


@pytest.fixture(scope="module")
def core():
    return EchoCore()


@pytest.fixture(scope="module")
def server(core):
    with serve(core, ("127.0.0.1", 0), ("127.0.0.1", 0)) as running:
        yield running
        core.release.set()


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request, server):
    port = server.http_port if request.param == "http" else server.grpc_port
    connected = connect(f"{request.param}://127.0.0.1:{port}")
    yield connected
    connected.close()


@pytest.fixture
def echo_core():
    """A core of the test's own; what waits in it is let go at the end."""
    fresh = EchoCore()
    yield fresh
    fresh.release.set()


class SubmittingEcho(EchoCore):
    """`EchoCore` for transports that submit: all of a turn is answered in `turn`, model ``held`` in a thread once ``release`` is set."""

    def __init__(self):
        super().__init__()
        self.turns = []
        self.cancelled = []
        self.cancels = threading.Semaphore(0)
        self.threads = []
        self._inbox = []

    def submit(self, request, done):
        ticket = _Ticket(self, request, done)
        self._inbox.append(ticket)
        return ticket

    def turn(self):
        inbox, self._inbox = self._inbox, []
        self.turns.append(len(inbox))
        for ticket in inbox:
            if ticket.request.model_name == "held":
                self.threads.append(threading.Thread(target=self._answer, args=(ticket,)))
                self.threads[-1].start()
            else:
                self._answer(ticket)

    def _answer(self, ticket):
        try:
            answer = self.infer(ticket.request)
        except Exception as exc:  # noqa: BLE001 - as a core does: the transport tells errors from bugs
            answer = exc
        ticket.done(answer)


class _Ticket:
    def __init__(self, core, request, done):
        self.core, self.request, self.done = core, request, done

    def cancel(self):
        self.core.cancelled.append(self.request.id)
        self.core.cancels.release()


@pytest.fixture
def submitting_core():
    """A `SubmittingEcho` of the test's own."""
    fresh = SubmittingEcho()
    yield fresh
    fresh.release.set()
    for thread in fresh.threads:
        thread.join(5)
        assert not thread.is_alive()
