"""The process that toolchains run in: native code that may crash, hang or take all memory, so the build itself does not run beside it.

Lines come in on one pipe and go out on another; what is called and what it gives are pickles in files, because they may be large::

    in    call FOLDER          request.pkl there: sys.path, then ("module:function", arguments)
    out   tell TEXT            what it does now
    out   done                 response.pkl there: (worked, result or error)

``tmp`` in the folder is where temporary files go during the call.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import select
import sys
import threading
import traceback
from pathlib import Path

from edgekit.converters._scratch import use
from edgekit.errors import BuildError, EdgeKitError
from edgekit.runtime._parent import end_with_parent

__all__ = ["IDLE_S", "REQUEST", "RESPONSE", "TEMPORARY", "main", "resolve"]

REQUEST, RESPONSE, TEMPORARY = "request.pkl", "response.pkl", "tmp"
IDLE_S = 300.0
"""An idle worker ends: TensorFlow alone holds some 600 MB, and a build long after the last one can pay for a new start."""


def main() -> None:
    """Serve calls until the other side goes away. Arguments: descriptor to read, descriptor to write, the parent's process id."""
    requests, answers, parent = map(int, sys.argv[1:4])
    _end_with(parent, requests)
    faulthandler.enable()
    buffer = b""
    while select.select([requests], [], [], IDLE_S)[0]:
        data = os.read(requests, 1 << 16)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            _serve(Path(os.fsdecode(line.removeprefix(b"call "))), answers)


def resolve(name: str) -> object:
    """The function of ``"module:function"``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _end_with(parent: int, requests: int) -> None:
    """Make sure that this process does not outlive its parent, also in the middle of a call.

    The system's signal works even while native code keeps Python's lock; the thread works where there is no such signal.
    """
    end_with_parent(parent)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # when memory runs out the system shall take this process, not the build
            Path("/proc/self/oom_score_adj").write_text("500")

    def watch() -> None:
        poll = select.poll()
        poll.register(requests, 0)  # hang-up is always reported
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(folder: Path, answers: int) -> None:
    def tell(text: str) -> None:
        os.write(answers, b"tell " + " ".join(text.split()).encode() + b"\n")

    use(folder / TEMPORARY)  # what toolchains leave there goes with the call
    try:
        with open(folder / REQUEST, "rb") as file:
            sys.path[:] = pickle.load(file)  # noqa: S301 - in a folder that only this user can write
            name, arguments = pickle.load(file)  # noqa: S301 - may need that path
        response: tuple[bool, object] = (True, resolve(name)(tell, *arguments))  # type: ignore[operator]
    except Exception as exc:  # noqa: BLE001 - the process boundary
        exc.add_note("in the toolchain's process:\n" + traceback.format_exc())
        response = (False, exc if isinstance(exc, (EdgeKitError, OSError)) else _foreign(exc))
    try:
        (folder / RESPONSE).write_bytes(_encoded(response))
    except OSError as exc:  # the disk is full; an error is short
        (folder / RESPONSE).write_bytes(_encoded((False, exc)))
    os.write(answers, b"done\n")


def _encoded(response: tuple[bool, object]) -> bytes:
    try:
        return pickle.dumps(response, pickle.HIGHEST_PROTOCOL)
    except Exception as exc:  # noqa: BLE001 - pickling runs code of any type
        return pickle.dumps((False, _foreign(exc)), pickle.HIGHEST_PROTOCOL)


def _foreign(exc: Exception) -> BuildError:
    """An exception that may not exist, or not unpickle, on the other side."""
    error = BuildError("toolchain", f"{type(exc).__name__}: {exc}", "", "report this model")
    error.__notes__ = list(getattr(exc, "__notes__", ()))
    return error
