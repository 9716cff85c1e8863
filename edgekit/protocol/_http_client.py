"""Open Inference Protocol v2 client over HTTP: the standard library's `http.client`, kept-alive connections, binary tensors."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec

from edgekit._retry_after import retry_after_s
from edgekit.errors import DeadlineError, EdgeKitError, EngineError, RequestError, UnavailableError
from edgekit.protocol._access import Credentials
from edgekit.protocol._client import InFlight
from edgekit.protocol._connecting import connected_socket, reason_of
from edgekit.protocol._deadline import call_deadline, with_timeout
from edgekit.protocol._event_loop import Host, host_here
from edgekit.protocol._http_client_loop import Answer, LoopExchange, StaleError, UnframedError
from edgekit.protocol._http_codec import HEADER_LENGTH, HttpMessage, decode_response, encode_request
from edgekit.protocol._remote_errors import ERROR_HEADER, bad_answer, error_from_http
from edgekit.protocol._target import Target
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferRequest, InferResponse, ModelMetadata

__all__ = ["HttpClient"]

_CHUNK_BYTES = 1 << 20
_LOOP_BYTES = (
    16 << 20
)  # of an answer that the event loop reads: the system gives its pages as they are filled. A larger one is read by a thread
# What a kept-alive connection that the server has just closed shows; the request did not reach it, so one more try on a fresh one is safe.
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)

# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_METADATA = msgspec.json.Decoder(ModelMetadata)
_STATISTICS = msgspec.json.Decoder(dict[str, list[dict[str, Any]]])


def _answer_within(deadline_s: float, sock: socket.socket, begin: bytes = b"", **kind: Any) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_Answering(sock, deadline_s, begin), **kind)  # type: ignore[arg-type]  # it needs makefile alone


class _Call:
    """One exchange under way, so that another thread can cut its connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self.cancelled = False

    def attach(self, connection: http.client.HTTPConnection | None) -> None:
        with self._lock:
            self._connection = connection
        if self.cancelled and connection is not None:
            self.abort()

    def abort(self) -> None:
        """Shut the socket down: a thread that waits on it wakes with an error. Connecting itself cannot be cut short."""
        with self._lock:
            self.cancelled = True
            sock = self._connection.sock if self._connection is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _TimedReader(io.RawIOBase):
    """An answer's bytes, ``begin`` first. Each read may last as long as is left of the request's time, not as long as the first one might."""

    def __init__(self, sock: socket.socket, deadline_s: float, begin: bytes = b"") -> None:
        super().__init__()
        self._begin = begin
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open while http.client hands it from the connection to the answer
        self._deadline_s = deadline_s
        self._timed = True  # the request has just set the socket's time

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._begin:
            count = min(len(buffer), len(self._begin))
            buffer[:count], self._begin = self._begin[:count], self._begin[count:]
            return count
        if not self._timed:
            remaining_s = self._deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            self._sock.settimeout(remaining_s)
        self._timed = False
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answering:
    """Makes `http.client` read one answer through a `_TimedReader`: it asks its socket for a file and for nothing else."""

    def __init__(self, sock: socket.socket, deadline_s: float, begin: bytes) -> None:
        self._reader = _TimedReader(sock, deadline_s, begin)

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - always "rb"
        return io.BufferedReader(self._reader)


class HttpClient:
    """See `InferenceClient`.

    Args:
        target: of the server.
        credentials: what TLS checks and shows, and the token.
        connections: most requests that `start` runs at once; more of them wait, and spend their time.
        limits: what an answer may hold.

    Raises:
        StorageError: a certificate, key or CA that cannot be read.
    """

    def __init__(self, target: Target, credentials: Credentials, *, connections: int = 64, limits: Limits | None = None) -> None:
        self.url = target.url
        self._target = target
        self._host = target.host or "localhost"  # of the field Host
        self._prefix = f"{target.prefix}/v2"
        self._tls = credentials.tls_context() if target.tls else None
        self._authorization = credentials.authorization()
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._most_idle = connections
        self._calls: set[_Call] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        return self._infer(request, call_deadline(request, timeout_s, time.monotonic()), _Call())

    def start(self, request: InferRequest, timeout_s: float) -> InFlight:
        deadline_s = call_deadline(request, timeout_s, time.monotonic())
        call = _Call()
        handle = InFlight(self.url, call.abort)
        host = host_here() if self._tls is None else None
        try:
            connection = self._take_idle() if host is not None else None
            if host is None or connection is None:
                self._in_pool(handle, lambda: self._infer(request, deadline_s, call))
            else:
                self._in_loop(host, connection, request, deadline_s, call, handle)
        except EdgeKitError as exc:
            handle.reject(exc)
        return handle

    def _in_pool(self, handle: InFlight, answer: Callable[[], InferResponse]) -> None:
        """Finish ``handle`` in a thread."""

        def work() -> None:
            try:
                if not handle.done():  # cancelled while it waited
                    handle.resolve(answer())
            except BaseException as exc:  # noqa: BLE001 - the thread's boundary: whoever waits gets it
                handle.reject(exc)

        self._executor().submit(work)

    def _in_loop(
        self, host: Host, connection: http.client.HTTPConnection, request: InferRequest, deadline_s: float, call: _Call, handle: InFlight
    ) -> None:
        """Finish ``handle`` in this thread's event loop, on a connection that is open."""

        def ended(outcome: Answer | Exception) -> None:
            if isinstance(outcome, UnframedError):
                connection.sock.settimeout(max(0.001, deadline_s - time.monotonic()))
                self._in_pool(handle, lambda: self._read_on(connection, outcome.begin, deadline_s, call))
                return
            self._detach(call, connection, keep=isinstance(outcome, Answer) and outcome.keep)
            if isinstance(outcome, Answer):
                handle.resolve(self._response(outcome))
            elif isinstance(outcome, StaleError) and not call.cancelled:
                self._in_pool(handle, lambda: self._infer(request, deadline_s, call, idle=False))
            else:
                raise self._broken(outcome, call) from outcome

        def told(outcome: Answer | Exception) -> None:
            try:
                ended(outcome)
            except Exception as exc:  # noqa: BLE001 - the loop's boundary: whoever waits gets it
                handle.reject(exc)

        try:
            remaining_s = self._remaining(deadline_s, "before it was sent")
            path, message = self._message(request, remaining_s)
            head = self._head("POST", path, message.length, message.headers())
        except BaseException:
            self._give_back(connection)
            raise
        with self._lock:
            self._calls.add(call)
        call.attach(connection)
        LoopExchange(
            host, connection.sock, [head, message.json, *message.raws], remaining_s, min(_LOOP_BYTES, self._limits.body_bytes), told
        )

    def _read_on(self, connection: http.client.HTTPConnection, begin: bytes, deadline_s: float, call: _Call) -> InferResponse:
        """The rest of an answer of which ``begin`` is here."""
        keep = False
        try:
            response = _answer_within(deadline_s, connection.sock, begin, method="POST")
            response.begin()
            answer = Answer(response.status, response.headers, self._read(response), keep=not response.will_close)
            keep = answer.keep
        except (OSError, http.client.HTTPException) as exc:
            raise self._broken(exc, call) from exc
        finally:
            self._detach(call, connection, keep=keep)
        return self._response(answer)

    def _detach(self, call: _Call, connection: http.client.HTTPConnection, *, keep: bool) -> None:
        """A call is over: its connection is free for others, or is closed."""
        call.attach(None)
        with self._lock:
            self._calls.discard(call)
        if keep and not call.cancelled:
            self._give_back(connection)
        else:
            connection.close()

    def ready(self, timeout_s: float = 1.0) -> bool:
        return self._healthy("/health/ready", timeout_s)

    def model_ready(self, name: str, version: str = "", timeout_s: float = 1.0) -> bool:
        return self._healthy(f"{_model_path(name, version)}/ready", timeout_s)

    def model_metadata(self, name: str, version: str = "", timeout_s: float = 5.0) -> ModelMetadata:
        metadata: ModelMetadata = self._decode(self._get(_model_path(name, version), timeout_s), _METADATA)
        return metadata

    def statistics(self, name: str = "", version: str = "", timeout_s: float = 5.0) -> list[dict[str, Any]]:
        path = f"{_model_path(name, version)}/stats" if name else "/models/stats"
        found = self._decode(self._get(path, timeout_s), _STATISTICS)
        return list(found.get("model_stats", []))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            calls = list(self._calls)
            pool = self._pool
        for call in calls:
            call.abort()
        for connection in idle:
            connection.close()
        if pool is not None:
            pool.shutdown(wait=True)

    def _infer(self, request: InferRequest, deadline_s: float, call: _Call, *, idle: bool = True) -> InferResponse:
        path, message = self._message(request, self._remaining(deadline_s, "before it was sent"))
        return self._response(self._exchange("POST", path, message.body, message.headers(), deadline_s, call, idle=idle))

    def _message(self, request: InferRequest, remaining_s: float) -> tuple[str, HttpMessage]:
        return f"{_model_path(request.model_name, request.model_version)}/infer", encode_request(with_timeout(request, remaining_s))

    def _head(self, method: str, path: str, length: int, fields: Mapping[str, str]) -> bytes:
        host = f"[{self._host}]" if ":" in self._host else self._host
        told = {
            "Host": f"{host}:{self._target.port}" if self._target.port else host,
            "Content-Length": str(length),
            **fields,
            **self._authorization,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        return f"{method} {self._prefix}{path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")

    def _response(self, answer: Answer) -> InferResponse:
        body = self._accept(answer)
        try:
            return decode_response(body, answer.fields.get(HEADER_LENGTH.lower()), self._limits)
        except RequestError as exc:
            raise bad_answer(self.url, exc) from exc

    def _healthy(self, path: str, timeout_s: float) -> bool:
        try:
            return self._exchange("GET", path, b"", {}, time.monotonic() + timeout_s, _Call()).status == http.HTTPStatus.OK
        except (UnavailableError, DeadlineError):
            return False

    def _get(self, path: str, timeout_s: float) -> bytes | bytearray:
        return self._accept(self._exchange("GET", path, b"", {}, time.monotonic() + timeout_s, _Call()))

    def _decode(self, body: bytes | bytearray, decoder: msgspec.json.Decoder[Any]) -> Any:
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise bad_answer(self.url, exc) from exc

    def _accept(self, answer: Answer) -> bytes | bytearray:
        """The body of a good answer; raises for any other."""
        if answer.status == http.HTTPStatus.OK:
            return answer.body
        try:
            message = str(msgspec.json.decode(answer.body, type=dict[str, Any]).get("error", ""))
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = bytes(answer.body[:200]).decode(errors="replace")
        error = error_from_http(self.url, answer.status, answer.fields.get(ERROR_HEADER), message)
        error.retry_after_s = retry_after_s(answer.fields.get("retry-after", ""), time.time())
        raise error

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], deadline_s: float, call: _Call, *, idle: bool = True
    ) -> Answer:
        """One request and its answer, on a kept-alive connection if there is one; without ``idle`` on a new one: it was sent on a stale one before."""
        with self._lock:
            self._calls.add(call)
        try:
            fresh = idle
            connection = self._take_idle() if idle else None
            if connection is not None:
                fresh = False
                try:
                    return self._converse(connection, method, path, body, headers, deadline_s, call)
                except _STALE as exc:
                    if call.cancelled:
                        raise UnavailableError(self.url, "the request was cancelled") from exc
            return self._converse(self._open(deadline_s, unsent=fresh), method, path, body, headers, deadline_s, call)
        except (OSError, http.client.HTTPException) as exc:
            raise self._broken(exc, call) from exc
        finally:
            with self._lock:
                self._calls.discard(call)

    def _broken(self, exc: Exception, call: _Call) -> EdgeKitError:
        """The error for what a connection ended with."""
        if isinstance(exc, TimeoutError):
            return DeadlineError(self.url, "no answer in time")
        return UnavailableError(self.url, "the request was cancelled" if call.cancelled else f"the connection broke ({reason_of(exc)})")

    def _converse(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        deadline_s: float,
        call: _Call,
    ) -> Answer:
        keep = False
        try:
            call.attach(connection)
            connection.sock.settimeout(self._remaining(deadline_s, "before it was sent"))
            connection.request(method, self._prefix + path, body or None, {**headers, **self._authorization})
            connection.response_class = functools.partial(_answer_within, deadline_s)  # type: ignore[assignment]  # any callable does
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, self._read(response), keep=not response.will_close)
            keep = answer.keep and not call.cancelled
            return answer
        finally:
            call.attach(None)
            if keep:
                self._give_back(connection)
            else:
                connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes | bytearray:
        """The body, never beyond the limit."""
        limit = self._limits.body_bytes
        if (response.length or 0) > limit:
            raise EngineError(self.url, f"an answer of {response.length} bytes", f"at most {limit}")
        if response.length is not None and response.length <= _CHUNK_BYTES:
            return response.read()
        body = bytearray()
        while piece := response.read(_CHUNK_BYTES):
            body += piece
            if len(body) > limit:
                raise EngineError(self.url, f"an answer of more than {limit} bytes", f"at most {limit}")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return body

    def _open(self, deadline_s: float, *, unsent: bool) -> http.client.HTTPConnection:
        """A new connection; ``unsent`` when nothing was sent on another one before.

        Raises:
            UnavailableError: refused, unknown host, or not accepted in time.
        """
        timeout_s = self._remaining(deadline_s, "before it was sent")
        try:
            sock = self._secure(connected_socket(self._target, timeout_s))
        except OSError as exc:
            slow = isinstance(exc, TimeoutError)
            found, step = f"cannot be reached ({reason_of(exc)})", "check that the server runs and the address is right"
            error = (
                UnavailableError(self.url, f"no connection within {timeout_s:.3f} s")
                if slow
                else UnavailableError(self.url, found, "", step)
            )
            error.unsent = unsent
            raise error from exc
        connection = http.client.HTTPConnection(self._host, self._target.port)
        connection.auto_open = 0
        connection.sock = sock
        return connection

    def _secure(self, sock: socket.socket) -> socket.socket:
        """The socket, with TLS on it if the URL says so."""
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise

    def _take_idle(self) -> http.client.HTTPConnection | None:
        """The idle connection used last that the server has not closed meanwhile."""
        while True:
            with self._lock:
                if self._closed:
                    raise UnavailableError(self.url, "the client was closed", "", "make a new one with connect()")
                if not self._idle:
                    return None
                connection = self._idle.pop()
            poller = select.poll()
            poller.register(connection.sock, select.POLLIN)
            if not poller.poll(0):  # readable now can only be the end, or bytes that nobody asked for
                return connection
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise UnavailableError(self.url, "the client was closed", "", "make a new one with connect()")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._most_idle, thread_name_prefix="edgekit-http-client")
            return self._pool

    def _remaining(self, deadline_s: float, when: str) -> float:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineError(self.url, f"the request's time ran out {when}")
        return remaining_s


def _model_path(name: str, version: str) -> str:
    path = f"/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path
