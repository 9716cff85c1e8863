"""What a failed build leaves behind: the smallest part of the model found that fails the same way, as one ONNX file and one command."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.bundle import ARCHIVE_SUFFIX, write_file
from edgekit.converters._embedded import embed_samples
from edgekit.converters._emitter import EmitJob
from edgekit.converters._isolation import CancelledError, ProcessEndedError
from edgekit.converters._options import OF_THE_SOURCE, WITHOUT_EFFECT, BuildOptions, Progress
from edgekit.converters._reduction import Cut, cut, reduce_model
from edgekit.converters._scratch import scratch_folder
from edgekit.errors import BuildError, EdgeKitError, VerificationError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["Reproduction", "command", "leave_reproducer"]

REDUCE_S = 60.0
"""Time for making a failing model smaller. Each try is a build; small parts build in a second or less."""
MAX_BYTES = 256 * 2**20
"""A larger file is not left behind: then the failed command itself is what repeats it."""

_LIMITS = ("time_limit_s", "memory_limit_bytes")  # they do not shape the bytes of a bundle, but a failure may be that they were reached


@dataclass(frozen=True)
class Reproduction:
    """How a failed build can be repeated.

    Attributes:
        device: as the user named it.
        destination: where the bundle would have gone; the file goes beside it.
        options: of the failed build.
        build: builds a model file with options, to a place that is thrown away.
        progress: told what is tried.
    """

    device: str
    destination: Path
    options: BuildOptions
    build: Callable[[Path, BuildOptions], None]
    progress: Progress

    @property
    def repeated(self) -> BuildOptions:
        """The options that a part of the model is built with."""
        kept = {key: value for key, value in self.options.items() if key in _LIMITS or key not in OF_THE_SOURCE | WITHOUT_EFFECT}
        return cast("BuildOptions", kept)

    def file(self) -> Path:
        """``<bundle>-reproducer.onnx``, beside the bundle or in the folder that was asked for."""
        folder = self.options.get("reproducer") or self.destination.absolute().parent
        return Path(folder) / f"{self.destination.name.removesuffix(ARCHIVE_SUFFIX)}-reproducer.onnx"


def leave_reproducer(error: BuildError, job: EmitJob, suspect: int, how: Reproduction) -> BuildError:
    """Make the failing model smaller, write it, and return the error with the command that repeats it.

    Args:
        error: what the build failed with.
        job: of the failed build; its source is cut.
        suspect: index of the node where the numbers first go wrong, -1 when that is not known.
        how: to build, and where to write.
    """
    try:
        return error.with_next_step(f"{error.next_step}; {_left(error, job, suspect, how)}".removeprefix("; "))
    except CancelledError:
        raise
    except Exception as exc:  # noqa: BLE001 - this is a help; the build's own error must come through
        return error.with_next_step(f"{error.next_step}; no reproducer was made: {one_line(exc)}".removeprefix("; "))


def _left(error: BuildError, job: EmitJob, suspect: int, how: Reproduction) -> str:
    """Reduce and write; what to tell the user about it."""
    model = job.source.model
    if model.ByteSize() > MAX_BYTES:
        return "no reproducer was made: the model is too large to copy, the command that failed repeats it"
    how.progress("looking for the smallest part of the model that fails")
    clock = _Clock(error, how)
    samples = [sample.inputs for sample in job.samples]
    with scratch_folder("reproducer") as folder:

        def fails(part: Cut) -> bool:
            how.progress(f"trying {len(part.nodes)} of {len(model.graph.node)} nodes")
            return clock.timed(lambda: _fails_alike(error, part, folder, how))

        found = reduce_model(model, samples, suspect, fails, clock.in_time)
    tried = found is not None
    if found is None and clock.tries == 0:
        found = cut(model, range(len(model.graph.node)), samples)
    if found is None:
        return "no reproducer was made: the model's graph alone does not fail, so repeat the command that failed"
    write_file(how.file(), serialised(found))
    size = f"{len(found.nodes)} of {len(model.graph.node)} nodes" + ("" if tried else ", not tried again because one try takes too long")
    return f"reproduce it ({size}) with: {command(how.file(), how.device, how.repeated)}"


class _Clock:
    """Time for the search, and what one try of it costs."""

    def __init__(self, error: BuildError, how: Reproduction) -> None:
        self.ends_s = time.monotonic() + REDUCE_S
        hung = isinstance(error, ProcessEndedError) and error.cause == "time"
        self.cost_s = float(how.options.get("time_limit_s") or REDUCE_S) if hung else 0.0
        self.tries = 0

    def in_time(self) -> bool:
        return time.monotonic() + self.cost_s < self.ends_s

    def timed(self, call: Callable[[], bool]) -> bool:
        started_s = time.monotonic()
        self.tries += 1
        failed = call()
        self.cost_s = time.monotonic() - started_s
        return failed


def _fails_alike(error: BuildError, part: Cut, folder: Path, how: Reproduction) -> bool:
    path = folder / "part.onnx"
    path.write_bytes(serialised(part))
    try:
        how.build(path, how.repeated)
    except BuildError as exc:
        return _kind(exc) == _kind(error)
    except EdgeKitError:  # a part may be refused for a reason of its own
        return False
    return False


def _kind(error: BuildError) -> tuple[str, ...]:
    """What two failures must share to be the same: names and numbers in the message may differ."""
    if isinstance(error, ProcessEndedError):
        return ("process", error.cause)
    if isinstance(error, VerificationError):
        return ("numbers",)
    return (type(error).__name__, re.sub(r"'[^']*'|\"[^\"]*\"|[\d\W]+", " ", error.found)[:80])


def serialised(part: Cut) -> bytes:
    """The one file: the part with its samples inside."""
    model: onnx.ModelProto = type(part.model)()
    model.CopyFrom(part.model)
    embed_samples(model, part.samples)
    return bytes(model.SerializeToString(deterministic=True))


_FLAGS = {"time_limit_s": "--time-limit", "memory_limit_bytes": "--memory-limit", "shapes": "--shape", "image_inputs": "--image-input"}


def command(model: Path, device: str, options: Mapping[str, object]) -> str:
    """``edgekit build FILE --device ID …``, quoted for a shell."""
    words = ["edgekit", "build", str(model), "--device", device]
    for name, value in sorted(options.items()):
        if value is None or value is False or value in ("", "auto"):
            continue
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        if value is True:
            words.append(flag)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [word for item in value for word in (flag, str(item))]
        else:
            words += [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return shlex.join(words)
