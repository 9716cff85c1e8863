"""A process that dies by SIGKILL before the N-th thing that it does to a folder's files, for every N: see test_store.py.

Python reports each such step before it takes it (PEP 578), so no step is left out and the code under test knows nothing of it. Run as
``crash_child.py TEMPLATE WORK OPERATION ARGUMENT…``; prints the step before which each copy of TEMPLATE (WORK/1, WORK/2, …) was abandoned.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec

from edgekit.runtime._rollout import Counts, Observations, progress_of, start_rollout
from edgekit.runtime._store import FolderStore
from edgekit.runtime._versions import set_label, with_model, with_rollout


def label(store, name, text, version):
    def change(state):
        model = state.models[name]
        return with_model(state, name, set_label(model, name, text, version, model.versions))

    store.update(change)


def progress(store, name, baseline, candidate):
    """What a server writes down of a rollout that is under way."""
    rollout = start_rollout("canary", baseline, candidate, 0.0)
    counted = progress_of(rollout, Observations(Counts(30), Counts(20)), 5.0)

    def change(state):
        model = with_rollout(state.models[name], name, rollout, state.models[name].versions)
        return with_model(state, name, msgspec.structs.replace(model, progress=counted))

    store.update(change)


OPERATIONS = {
    "install": lambda store, source, *labels: store.install(source, labels),
    "make-room": lambda store, source, *labels: store.install(source, labels, make_room=True),
    "label": label,
    "progress": progress,
    "remove": lambda store, name, version: store.remove(name, version),
}


def die_before(step, folder, told):
    seen = itertools.count(1)

    def hook(event, arguments):
        if not event.startswith(("os.", "open", "shutil.", "tempfile.", "fcntl.")):
            return
        inside = event in ("os.remove", "os.rmdir") or any(isinstance(one, (str, bytes, Path)) and folder in str(one) for one in arguments)
        if inside and next(seen) == step:
            os.write(told, event.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(template, work, operation, *arguments):
    steps = []
    for step in itertools.count(1):
        folder = Path(work) / str(step)
        shutil.copytree(template, folder)
        heard, told = os.pipe()
        child = os.fork()
        if not child:
            store = FolderStore(folder)
            die_before(step, str(folder), told)
            OPERATIONS[operation](store, *arguments)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.close(told)
        steps.append(os.read(heard, 100).decode())
        os.close(heard)
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            break
    print(json.dumps(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
