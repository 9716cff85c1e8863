"""The exception tree of EdgeKit; every error is one line that says what to do next.

::

    EdgeKitError                      exit 1, HTTP 500
    ├── UsageError                    exit 2, HTTP 400: a flag, name or value that does not exist
    │   └── UnknownNameError          with the nearest names
    ├── ModelError                    the source model is damaged or cannot be read
    │   ├── ShapeRequiredError        dimensions that only the user can know
    │   └── UnsupportedOperatorsError all nodes that stand in the way, at once
    ├── BuildError                    a toolchain failed on a model that was fine
    │   └── VerificationError         the artifact ran and its numbers are wrong
    ├── BundleError                   a bundle that cannot be read
    │   └── IntegrityError            a file's digest is not the manifest's
    ├── EnvironmentMissingError       a package, library or device that is not here; names the extra
    ├── EngineError                   an engine failed while loading or running
    ├── StorageError                  a path that cannot be read or written, a full disk
    ├── RequestError                  HTTP 400: a wrong tensor name, dtype, shape or size
    │   └── NotFoundError             HTTP 404: no such model or version
    ├── OverloadedError               HTTP 503: refused early, a queue is full
    ├── DeadlineError                 HTTP 504: cannot be, or was not, answered in time
    ├── UnavailableError              HTTP 503: a remote tier does not answer
    └── BindError                     a port that is in use
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

__all__ = [
    "BindError",
    "BuildError",
    "BundleError",
    "DeadlineError",
    "EdgeKitError",
    "EngineError",
    "EnvironmentMissingError",
    "IntegrityError",
    "ModelError",
    "NotFoundError",
    "OverloadedError",
    "RequestError",
    "ShapeRequiredError",
    "StorageError",
    "UnavailableError",
    "UnknownNameError",
    "UnsupportedOperatorsError",
    "UsageError",
    "VerificationError",
]


class EdgeKitError(Exception):
    """Root of all errors that EdgeKit raises on purpose.

    Args:
        thing: what the error is about (a path, a flag, a tensor), so that it can be found.
        found: what was found there.
        expected: what was expected instead.
        next_step: what the user can do now.

    ``str(error)`` is one line: ``thing: found; expected …; next step``.
    """

    exit_code = 1
    http_status = 500
    grpc_status = "INTERNAL"  # name of a grpc.StatusCode; the core knows no transport
    retry_after_s: float | None = None  # a remote server asked to be left alone for this long

    def __init__(self, thing: str, found: str, expected: str = "", next_step: str = "") -> None:
        self.thing = thing
        self.found = found
        self.expected = expected
        self.next_step = next_step
        super().__init__(self._line())

    def _line(self) -> str:
        parts = [f"{self.thing}: {self.found}" if self.thing else self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.next_step:
            parts.append(self.next_step)
        return " ".join("; ".join(parts).split())

    def with_next_step(self, next_step: str) -> Self:
        """The same error, of the same type and with all its fields, that tells the user to do something else."""
        error = type(self).__new__(type(self))
        error.__dict__.update(self.__dict__)
        error.next_step = next_step
        error.args = (error._line(),)
        return error

    def __reduce__(self) -> tuple[object, ...]:
        """Errors keep all their fields on the way to another process, whatever their constructors take."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[EdgeKitError], arguments: tuple[object, ...]) -> EdgeKitError:
    error: EdgeKitError = kind.__new__(kind, *arguments)
    return error


class UsageError(EdgeKitError):
    """The command, flag or argument cannot be what the user meant."""

    exit_code = 2
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class UnknownNameError(UsageError):
    """A name that is not among the known ones; the message offers the nearest."""

    def __init__(self, thing: str, name: str, known: Iterable[str], next_step: str = "") -> None:
        import difflib  # costs a device's start milliseconds that only a wrong name needs

        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        expected = f"one of {', '.join(near)}" if near else f"one of {', '.join(names[:12])}"
        super().__init__(thing, f"unknown name {name!r}", expected, next_step)
        self.nearest: Sequence[str] = near


class ModelError(EdgeKitError):
    """The source model is truncated, is not what it claims, or misses a part."""


class ShapeRequiredError(ModelError):
    """Dimensions that the target needs and only the user can know."""

    exit_code = 2


class UnsupportedOperatorsError(ModelError):
    """Every node that a target has no handler for, reported together.

    ``nodes`` holds one ``(node name, operator, opset, reason)`` per refused node.
    """

    def __init__(self, target: str, nodes: Sequence[tuple[str, str, int, str]], next_step: str = "") -> None:
        self.nodes = tuple(nodes)
        listed = ", ".join(f"{op} at {name!r} (opset {opset}: {reason})" for name, op, opset, reason in self.nodes)
        super().__init__(
            target,
            f"cannot take {len(self.nodes)} node(s): {listed}",
            "",
            next_step or "replace these nodes, or build for an engine that takes them (onnxruntime, openvino)",
        )


class BuildError(EdgeKitError):
    """A toolchain failed on a model that passed every check before it.

    ``precision`` is that of the artifact that failed, where one was under way.
    """

    precision = ""


class VerificationError(BuildError):
    """The artifact runs, and its numbers are not the source model's."""


class BundleError(EdgeKitError):
    """A bundle that is missing, incomplete or of an unknown format."""


class IntegrityError(BundleError):
    """A file in a bundle whose SHA-256 is not the one in the manifest."""


class EnvironmentMissingError(EdgeKitError):
    """Something that must be installed or attached first."""

    @classmethod
    def for_extra(cls, thing: str, package: str, extra: str) -> EnvironmentMissingError:
        """The usual case: ``package`` is not importable, and ``extra`` brings it."""
        return cls(thing, f"the package {package!r} is not installed", "", f"pip install 'edgekit-ml[{extra}]'")


class EngineError(EdgeKitError):
    """An engine refused an artifact or failed in a run."""


class StorageError(EdgeKitError):
    """A path that cannot be read or written, or a disk that is full."""


class RequestError(EdgeKitError):
    """A request whose tensors do not fit the model's signature."""

    exit_code = 2
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class NotFoundError(RequestError):
    """No such model or version in the repository."""

    http_status = 404
    grpc_status = "NOT_FOUND"


class OverloadedError(EdgeKitError):
    """Refused before any work was done, because a queue is full."""

    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"


class DeadlineError(EdgeKitError):
    """The deadline has passed, or cannot be met any more."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class UnavailableError(EdgeKitError):
    """A remote server (cloud tier, collector) that does not answer.

    ``unsent`` is true when certainly nothing of the request has left: there was no connection.
    """

    unsent = False
    http_status = 503
    grpc_status = "UNAVAILABLE"


class BindError(EdgeKitError):
    """An address that cannot be listened on."""

    @classmethod
    def in_use(cls, thing: str, host: str, port: int, flag: str) -> BindError:
        """A port that another process holds; ``flag`` is the option that chooses another."""
        return cls(thing, f"port {port} on {host} is in use", "a free port", f"stop the other server or give {flag}")
