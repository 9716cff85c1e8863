"""What the router accepts as its edge, made into a `LocalRunner`: a bundle, a session, a client, or the URL of an edge server."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import EdgeKitError, EngineError, NotFoundError, RequestError, UsageError
from edgekit.protocol import InferenceClient, InFlight, ModelMetadata, TensorMetadata, connect, is_server_url, oip_datatype
from edgekit.router._carrier import Took, export_of
from edgekit.router._kept_states import KeptStates
from edgekit.router._work import Answer, OnDone, Work, answer_of, payload_bytes, request_from_work, response_of
from edgekit.runtime import Session, load
from edgekit.runtime._sequence_table import SEQUENCE_ID, Control, read_control

__all__ = ["ClientRunner", "EdgeTarget", "SessionRunner", "open_edge"]

EdgeTarget = str | os.PathLike[str] | Bundle | Session | InferenceClient
_WARM_UP_RUNS = 4
_JOIN_S = 5.0


class SessionRunner:
    """The device in this process."""

    def __init__(self, session: Session, owned: bool) -> None:
        self.session = session
        self._jobs: queue.SimpleQueue[tuple[Work, OnDone] | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._owned = owned
        manifest = session.bundle.manifest
        self.model = manifest.name
        self.version = manifest.version
        self.class_labels = session.bundle.class_labels()
        self._kept = KeptStates(session)
        self._texts = {spec.name for spec in session.signature.inputs if spec.dtype == "string"}

    def serves(self, model: str, version: str) -> bool:
        """The bundle's own name; an empty version is any."""
        return model == self.model and version in ("", self.version)

    def open(self, workers: int) -> None:
        """Start the threads that requests run in."""
        for index in range(workers):
            thread = threading.Thread(target=self._loop, name=f"edgekit-router-edge-{index}", daemon=True)
            self._workers.append(thread)
            thread.start()

    def start(self, work: Work, done: OnDone) -> None:
        """Run in one of the threads; nothing can be cancelled, since engines cannot stop midway."""
        self._jobs.put((work, done))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result: Answer | BaseException
            try:
                result = self._run(work)
            except EdgeKitError as exc:
                result = exc
            except Exception as exc:  # noqa: BLE001 - a worker must outlive whatever an engine raises
                result = EngineError("edge", f"failed with {type(exc).__name__}: {exc}")
                result.__cause__ = exc
            done(result)
            del job, work, done, result  # an idle worker keeps nobody's arrays

    def _run(self, work: Work) -> Answer:
        """One inference. BYTES from the wire become text, which is what engines take."""
        if not self.serves(work.model, work.version):
            raise absent(work.model, work.version, self.model)
        if self._texts:
            inputs = {name: _as_text(name, array) if name in self._texts else array for name, array in work.inputs.items()}
            work = msgspec.structs.replace(work, inputs=inputs)
        control = self._control(work)
        return Answer(self.session.run(work.inputs), self.version) if control is None else self._kept.run(work, control)

    def _control(self, work: Work) -> Control | None:
        """What a request says about its sequence; ``None`` without one, and for a model without states."""
        return read_control(work.parameters) if self._kept and SEQUENCE_ID in work.parameters else None

    def check(self, work: Work) -> None:
        """Raise `RequestError` for inputs that do not fit the signature."""
        if self._control(work) is None:
            self.session.signature.check(work.inputs)
        else:
            self._kept.check(work)

    def take_state(self, work: Work, took: Took) -> None:
        """End the work's sequence here, and hand its state over."""
        try:
            took(self._kept.take(work))
        except RequestError as exc:
            took(exc)

    def close(self) -> None:
        """End the threads; close the session if the router opened it."""
        for _ in self._workers:
            self._jobs.put(None)
        for thread in self._workers:
            thread.join(_JOIN_S)
        if self._owned:
            self.session.close()

    def metadata(self, model: str) -> ModelMetadata:
        """From the bundle's signature, without the states; symbolic dimensions are -1."""
        signature, states = self.session.signature, self._kept.states
        tensors = [
            [
                TensorMetadata(spec.name, oip_datatype(spec.dtype), [dim if isinstance(dim, int) else -1 for dim in spec.shape])
                for spec in side
                if spec.name not in kept
            ]
            for side, kept in ((signature.inputs, states.inputs), (signature.outputs, states.outputs))
        ]
        return ModelMetadata(model, [self.version], f"edgekit_{self.session.artifact.engine}", *tensors)

    def ready(self, model: str, version: str) -> bool:
        """A loaded session is ready."""
        return self.serves(model, version)

    def warm_up(self) -> tuple[int, Sequence[float]]:
        """Payload bytes and seconds of a few runs on the bundle's first golden sample; the first run, which also warms the engine, is left out."""
        inputs = self.session.bundle.first_inputs()
        if not inputs:
            return 0, ()
        seconds = []
        for _ in range(_WARM_UP_RUNS):
            started = time.perf_counter()
            self.session.run(inputs)
            seconds.append(time.perf_counter() - started)
        return payload_bytes(inputs), seconds[1:]


class ClientRunner:
    """An edge server, asked over the Open Inference Protocol."""

    def __init__(self, client: InferenceClient, owned: bool, model: str) -> None:
        self.client = client
        self._owned = owned
        self.model = model
        self.version = ""

    def serves(self, model: str, version: str) -> bool:  # noqa: ARG002 - the interface's
        """Only the server knows; it answers `NotFoundError` for what it does not have."""
        return True

    def open(self, workers: int) -> None:
        """Nothing: the client has its own threads."""

    def start(self, work: Work, done: OnDone) -> InFlight:
        """Send, with what remains as its time."""
        handle = self.client.start(request_from_work(work), max(0.001, work.limit_s - time.monotonic()))
        handle.add_done_callback(lambda ended: done(answer_of(ended)))
        return handle

    def check(self, work: Work) -> None:
        """Nothing: the tier that is asked checks."""

    def take_state(self, work: Work, took: Took) -> None:
        """Ask for the state of the work's sequence."""
        take_state(self.client, work, took)

    def close(self) -> None:
        """Close the client if the router opened it."""
        if self._owned:
            self.client.close()

    def metadata(self, model: str) -> ModelMetadata:
        """As the edge server tells it."""
        return self.client.model_metadata(model)

    def ready(self, model: str, version: str) -> bool:
        """The edge server says so."""
        return self.client.model_ready(model, version) if model else self.client.ready()

    def warm_up(self) -> tuple[int, Sequence[float]]:
        """Nothing: what a server's models take as input is the caller's to know."""
        return 0, ()


def open_edge(edge: EdgeTarget, model: str) -> SessionRunner | ClientRunner:
    """The runner for ``edge``.

    Raises:
        UsageError: ``model`` is given and is not the bundle's.
        BundleError, EnvironmentMissingError, EngineError: as `edgekit.runtime.load`.
    """
    if isinstance(edge, str) and is_server_url(edge):
        return ClientRunner(connect(edge), owned=True, model=model)
    if isinstance(edge, Session):
        return SessionRunner(edge, owned=False)
    if isinstance(edge, str | os.PathLike | Bundle):
        runner = SessionRunner(load(edge), owned=True)
        if model and model != runner.model:
            runner.close()
            raise UsageError("model", repr(model), f"{runner.model!r}, the bundle's name")
        return runner
    if callable(getattr(edge, "infer", None)):
        return ClientRunner(edge, owned=False, model=model)
    raise UsageError("edge", f"a {type(edge).__name__}", "a bundle, its path, a Session, a client, or a server's URL")


def take_state(client: InferenceClient, work: Work, took: Took) -> None:
    """Ask a server to end the work's sequence and to hand its state over."""
    handle = client.start(export_of(work), max(0.001, work.limit_s - time.monotonic()))
    handle.add_done_callback(lambda ended: took(response_of(ended)))


def _as_text(name: str, array: np.ndarray) -> np.ndarray:
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as exc:
        raise RequestError(f"input {name!r}", "bytes that are not UTF-8", "text") from exc
    return np.array([*texts, ""], dtype=object)[:-1].reshape(array.shape)


def absent(model: str, version: str, has: str) -> NotFoundError:
    """The error for a model that no tier has."""
    wanted = f"{model} version {version}" if version else model
    return NotFoundError(f"model {wanted!r}", "no such model", f"{has!r}" if has else "")
