"""Triton's trace extension: which requests are traced, what is noted about each, and when that is handed on to be written. No I/O but through a `TraceFolder`.

References: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_trace.md and docs/user_guide/trace.md.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.errors import RequestError
from edgekit.protocol._tensors import shorten
from edgekit.protocol._types import InferResponse

if TYPE_CHECKING:
    from edgekit.protocol._trace_files import TraceFolder
    from edgekit.protocol._types import InferRequest

__all__ = ["MOST_TRACES", "RECEIVED", "SENT", "Trace", "TraceSetting", "Traces"]

MOST_TRACES = 5000
"""In one file, and so in memory before they are written: about 5 MB."""
RECEIVED = {"HTTP": ("HTTP_RECV_START", "HTTP_RECV_END"), "GRPC": ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END")}
SENT = {"HTTP": ("HTTP_SEND_START", "HTTP_SEND_END"), "GRPC": ("GRPC_SEND_START", "GRPC_SEND_END")}
_MOST_CHARACTERS = 128  # of a name or an id that a client chose
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_MODE = "triton"  # the other is "opentelemetry"


class TraceSetting(msgspec.Struct, frozen=True):
    """What holds for the requests of some models; names and defaults are Triton's.

    Attributes:
        trace_level: ``OFF`` or ``TIMESTAMPS``.
        trace_rate: one request of so many is traced.
        trace_count: so many more traces; -1 for no end.
        log_frequency: traces in one file; 0 for all in one when the settings change or the server stops.
        trace_file: name within the operator's folder.
    """

    trace_level: str = "OFF"
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    trace_file: str = ""

    @property
    def on(self) -> bool:
        """Requests are traced."""
        return self.trace_level != "OFF" and self.trace_count != 0


_LEAST_AND_MOST = {"trace_rate": (1, (1 << 32) - 1), "trace_count": (-1, (1 << 31) - 1), "log_frequency": (0, MOST_TRACES)}


class Trace:
    """One request that is traced: a name and a time (`time.monotonic`) for each step. Its steps come one after the other, in whatever thread.

    Attributes:
        number: of the trace, counted by the server.
        model, version, request_id: of the request; the version that answered once that is known.
        marks: in order.
    """

    __slots__ = ("_answered", "_end", "_ran", "_transport", "marks", "model", "number", "request_id", "version")

    def __init__(self, number: int, model: str, transport: str, received_s: tuple[float, float], end: Callable[[Trace], None]) -> None:
        self.number = number
        self.model = model
        self.version = self.request_id = ""
        self.marks = list(zip(RECEIVED[transport], received_s, strict=True))
        self._transport = transport
        self._end: Callable[[Trace], None] | None = end
        self._ran = self._answered = False

    def attach(self, request: InferRequest) -> None:
        """The request is read, and goes to the core with its trace."""
        self.model, self.version, self.request_id = request.model_name, request.model_version, request.id
        request.trace = self
        self._mark("REQUEST_START")

    def ran(self, arrived_s: float, started_s: float, infer_s: float, output_s: float, end_s: float) -> None:
        """The engine has run it. Only the first run counts.

        Args:
            arrived_s, started_s, end_s: when it came to the queue, began, and was done.
            infer_s, output_s: seconds of the engine and of the answer, which are the last of that.
        """
        if self._ran:
            return
        self._ran = True
        output_start_s = max(started_s, end_s - output_s)
        input_end_s = min(output_start_s, max(started_s, end_s - output_s - infer_s))
        self.marks += (
            ("QUEUE_START", arrived_s),
            ("COMPUTE_START", started_s),
            ("COMPUTE_INPUT_END", input_end_s),
            ("COMPUTE_OUTPUT_START", output_start_s),
            ("COMPUTE_END", end_s),
        )

    def answered(self, answer: Any) -> None:
        """The core has answered, or something has refused the request. Only the first answer counts."""
        if self._answered:
            return
        self._answered = True
        if isinstance(answer, InferResponse):
            self.version = answer.model_version
        self._mark("REQUEST_END")

    def sending(self) -> None:
        """The answer's bytes are about to be handed to the connection."""
        self._mark(SENT[self._transport][0])

    def sent(self) -> None:
        """They were. The last step."""
        self._mark(SENT[self._transport][1])
        self.end()

    def end(self) -> None:
        """Nothing more comes: the answer is out, or its client has left. May be called again."""
        end, self._end = self._end, None
        if end is not None:
            end(self)

    def entries(self) -> list[dict[str, Any]]:
        """As Triton's file has them: what was traced, then one entry for each step."""
        version = self.version[:_MOST_CHARACTERS]
        number = int(version) if version.isascii() and version.isdigit() and len(version) < 19 else version or -1
        head: dict[str, Any] = {"id": self.number, "model_name": self.model[:_MOST_CHARACTERS], "model_version": number}
        if self.request_id:
            head["request_id"] = self.request_id[:_MOST_CHARACTERS]
        steps = [{"id": self.number, "timestamps": [{"name": name, "ns": round(at_s * 1e9)}]} for name, at_s in list(self.marks)]
        return [head, *steps]

    def _mark(self, name: str) -> None:
        self.marks.append((name, time.monotonic()))


class _Collector:
    """Traces under one setting. Not safe from several threads; `Traces` has the lock."""

    def __init__(self, setting: TraceSetting) -> None:
        self.setting = setting
        self.left = setting.trace_count
        self.retired = False
        self._seen = self._open = 0
        self._kept: list[Trace] = []

    def samples(self) -> bool:
        """Whether the next request is traced."""
        if self.setting.trace_level == "OFF" or not self.left:
            return False
        self._seen += 1
        if self._seen % self.setting.trace_rate:
            return False
        self.left -= self.left > 0
        self._open += 1
        return True

    def ended(self, trace: Trace) -> list[Trace]:
        """One more has ended; those that are to be written now."""
        self._open -= 1
        self._kept.append(trace)
        if len(self._kept) >= (self.setting.log_frequency or MOST_TRACES):
            return self._taken()
        return self._taken() if self.is_last else []

    def retire(self) -> list[Trace]:
        """Another setting has taken its place, or the server stops; what is to be written now."""
        self.retired = True
        return self._taken()

    @property
    def is_last(self) -> bool:
        """No more traces will come, but for those under way."""
        return not self._open and (self.retired or not self.left)

    def _taken(self) -> list[Trace]:
        kept, self._kept = self._kept, []
        return kept


class Traces:
    """The trace settings of one server, for all models and for single ones, and its traces. Safe from several threads.

    Args:
        folder: where files may be written; without one, traces cannot be turned on.

    Attributes:
        on: some requests may be traced. The one thing that is looked at while traces are off.
    """

    def __init__(self, folder: TraceFolder | None = None) -> None:
        self.on = False
        self._folder = folder
        self._lock = threading.Lock()
        self._given: dict[str, dict[str, Any]] = {"": {}}  # by model, "" for all of them
        self._collectors = {"": _Collector(TraceSetting())}
        self._last_number = 0
        if folder is not None:
            folder.on_failure = self._stop

    @property
    def possible(self) -> bool:
        """There is a folder."""
        return self._folder is not None

    def read(self, model: str = "") -> dict[str, str | list[str]]:
        """All settings, as text; ``trace_count`` is what is left of it."""
        with self._lock:
            collector = self._collectors.get(model) or self._collectors[""]
            setting = collector.setting
            return {
                "trace_level": [setting.trace_level],
                "trace_rate": str(setting.trace_rate),
                "trace_count": str(collector.left),
                "log_frequency": str(setting.log_frequency),
                "trace_file": setting.trace_file,
                "trace_mode": _MODE,
            }

    def update(self, wanted: Mapping[str, Any], model: str = "") -> dict[str, str | list[str]]:
        """Change some settings, for all models that have none of their own or for one. ``None`` clears: a model's goes back to what holds for all,
        that to the default. Traces so far are written. Returns all settings after it.

        Raises:
            RequestError: an unknown setting, a value that is none, or traces that cannot be written.
            EdgeKitError: the folder takes no more.
        """
        changes = {key: None if value is None else _value(key, value) for key, value in wanted.items()}
        changes.pop("trace_mode", None)
        if changes:
            with self._lock:
                given = self._given_now()
                merged = {**given.get(model, {}), **changes}
                given[model] = {key: value for key, value in merged.items() if value is not None}
                if model and not given[model]:
                    del given[model]
                self._take(given, model)
        return self.read(model)

    def begin(self, model: str, transport: str, received_s: tuple[float, float]) -> Trace | None:
        """A request has come in; ``None`` when it is not traced.

        Args:
            model: its name.
            transport: ``HTTP`` or ``GRPC``.
            received_s: when its first and its last byte were there, as far as that is known.
        """
        with self._lock:
            collector = self._collectors.get(model) or self._collectors[""]
            if not collector.samples():
                return None
            if not collector.left:
                self.on = self._any_on()
            self._last_number += 1
            return Trace(self._last_number, model, transport, received_s, lambda trace: self._ended(collector, trace))

    def close(self) -> None:
        """Write what is left, and end. The transports have stopped."""
        with self._lock:
            self.on = False
            for collector in self._collectors.values():
                self._write(collector, collector.retire())
        if self._folder is not None:
            self._folder.close()

    def _ended(self, collector: _Collector, trace: Trace) -> None:
        with self._lock:
            self._write(collector, collector.ended(trace))

    def _stop(self) -> None:
        """The folder takes no more: all levels are off, and the settings say so."""
        with self._lock:
            given = {name: {key: value for key, value in own.items() if key != "trace_level"} for name, own in self._given_now().items()}
            self._take({name: own for name, own in given.items() if own or not name})

    # With the lock held.

    def _given_now(self) -> dict[str, dict[str, Any]]:
        """What was set, a count being what is left of it."""
        given = {name: dict(own) for name, own in self._given.items()}
        for name, own in given.items():
            if "trace_count" in own:
                own["trace_count"] = self._collectors[name].left
        return given

    def _take(self, given: dict[str, dict[str, Any]], changed: str | None = None) -> None:
        """Let these settings hold, which raises what is wrong with them before anything has changed.

        Args:
            given: by model.
            changed: the one that was changed, which begins to count again; where that is one model, the others stay as they are.
        """
        settings = {name: TraceSetting(**{**given[""], **own}) for name, own in given.items() if not changed or name == changed}
        for setting in settings.values():
            self._check(setting)
        self._given = given
        before = self._collectors
        after = {name: collector for name, collector in before.items() if name in given}
        for name, setting in settings.items():
            known = before.get(name)
            if known is None or name == changed or setting != msgspec.structs.replace(known.setting, trace_count=known.left):
                after[name] = _Collector(setting)
        self._collectors = after
        for name, collector in before.items():
            if after.get(name) is not collector:
                self._write(collector, collector.retire())
        self.on = self._any_on()

    def _check(self, setting: TraceSetting) -> None:
        if not setting.on:
            return
        if self._folder is None:
            raise RequestError(
                "trace setting 'trace_level'", setting.trace_level, "OFF", "start the server with --trace-dir, a folder for the files"
            )
        if not setting.trace_file:
            raise RequestError(
                "trace setting 'trace_file'", "none", "the name of a file in the server's folder for traces", "give one as well"
            )
        self._folder.check_room()

    def _any_on(self) -> bool:
        return any(collector.setting.on and collector.left for collector in self._collectors.values())

    def _write(self, collector: _Collector, traces: list[Trace]) -> None:
        if traces and self._folder is not None:
            setting = collector.setting
            apart = bool(setting.log_frequency) or not collector.retired
            self._folder.submit(setting.trace_file, traces, numbered=apart)


def _value(key: str, value: Any) -> Any:
    """A setting's value; raises `RequestError`."""
    thing = f"trace setting {shorten(key)!r}"
    found = shorten(repr(value))
    if key in _LEAST_AND_MOST:
        least, most = _LEAST_AND_MOST[key]
        number = int(value) if not isinstance(value, bool) and _NUMBER.fullmatch(str(value)) else least - 1
        if not least <= number <= most:
            raise RequestError(thing, found, f"a whole number from {least} to {most}")
        return number
    if key == "trace_level":
        levels = value if isinstance(value, list) else [value]
        if levels not in (["OFF"], ["TIMESTAMPS"]):
            raise RequestError(thing, found, "OFF or TIMESTAMPS; what is in tensors is not written to files")
        return levels[0]
    if key == "trace_file":
        if not isinstance(value, str) or (value and not _FILE_NAME.fullmatch(value)):
            raise RequestError(thing, found, "a plain file name of letters, digits, '.', '_' and '-'", "the operator chose the folder")
        return value
    if key != "trace_mode":
        raise RequestError(thing, "no such setting", f"one of {', '.join(TraceSetting.__struct_fields__)}, trace_mode")
    if value != _MODE:
        raise RequestError(thing, found, repr(_MODE), "--collector exports telemetry by OTLP")
    return value
