"""Which versions of which models are installed, what they are called, and which one answers. Pure: every change gives a new state.

A request that names no version gets the *default*: the version labelled ``stable``, or the highest where there is no such label (and the version that was stable before, where the stable one cannot be loaded). A request may name a
version or a label; a version wins over a label of the same text, and such a label cannot be made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import msgspec

from edgekit.errors import BundleError, NotFoundError, UsageError
from edgekit.runtime._found import version_key
from edgekit.runtime._rollout import Progress, Rollout

__all__ = [
    "CANARY",
    "STABLE",
    "InstalledVersion",
    "ModelState",
    "Outcome",
    "RepositoryState",
    "choose_removals",
    "decode_state",
    "default_version",
    "encode_state",
    "end_rollout",
    "labels_of",
    "set_label",
    "with_installed",
    "with_model",
    "with_rollout",
    "without_version",
]

STABLE = "stable"
CANARY = "canary"
FORMAT = "edgekit-models/1"
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class InstalledVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle in the repository's folder.

    Attributes:
        folder: its directory, below the repository's.
        digest: SHA-256 of its manifest, hex.
        bytes: of all its files.
        order: counts installations; the lowest is the oldest.
    """

    folder: str
    digest: str
    bytes: int
    order: int


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the last rollout of a model ended: ``promoted``, ``rolled_back`` or ``stopped``, and why. ``at_s`` is seconds since the Unix epoch."""

    result: str
    baseline: str
    candidate: str
    reason: str
    at_s: float


class ModelState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model.

    Attributes:
        versions: what is installed; empty for models that are served from where they lie.
        labels: name to version.
        rollout: under way, or none.
        progress: of its running step, as the server wrote it down last; of several servers, any of them.
        previous: the version that was ``stable`` before the present one: where a rollback by hand goes.
        last: how the last rollout ended.
    """

    versions: dict[str, InstalledVersion] = {}
    labels: dict[str, str] = {}
    rollout: Rollout | None = None
    progress: Progress | None = None
    previous: str = ""
    last: Outcome | None = None


class RepositoryState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All models; the content of ``models.json``. ``quota_bytes`` is what the installed bundles may take, 0 for no limit."""

    format: str = FORMAT
    models: dict[str, ModelState] = {}
    quota_bytes: int = 0


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_DECODER = msgspec.json.Decoder(RepositoryState)


def decode_state(raw: bytes, thing: str) -> RepositoryState:
    """Read a state.

    Raises:
        BundleError: not a state of this format.
    """
    try:
        state = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, UsageError) as exc:
        raise BundleError(
            thing, f"cannot be read: {exc}", FORMAT, "restore it from a copy, or install the models into a new folder"
        ) from exc
    if state.format != FORMAT:
        raise BundleError(thing, f"format {state.format!r}", FORMAT, "upgrade edgekit")
    return state


def encode_state(state: RepositoryState) -> bytes:
    """As bytes; equal states give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(state, order="sorted"), indent=2) + b"\n"


def default_version(model: ModelState, versions: Collection[str]) -> str:
    """The version that answers requests which name none: the stable one; where that is missing the one before it; else the highest; empty for none."""
    for version in (model.labels.get(STABLE, ""), model.previous):
        if version in versions:
            return version
    return max(versions, key=version_key, default="")


def with_model(state: RepositoryState, name: str, model: ModelState) -> RepositoryState:
    """The state with one model replaced; a model that says nothing is left out."""
    models = {key: value for key, value in state.models.items() if key != name}
    if model != ModelState():
        models[name] = model
    return msgspec.structs.replace(state, models=models)


def with_installed(
    state: RepositoryState, name: str, version: str, installed: InstalledVersion, labels: Collection[str] = ()
) -> RepositoryState:
    """The state after an installation, with ``labels`` moved to the new version at the same moment.

    Raises:
        UsageError: a label that cannot be one; or the version is there with another content and in use.
    """
    model = state.models.get(name, ModelState())
    before = model.versions.get(version)
    if before is not None and before.digest != installed.digest and (users := _users(model, version)):
        thing = f"model {name} version {version}"
        raise UsageError(
            thing, f"is installed with another content, and {users}", "a version of its own", "build with another --model-version"
        )
    model = msgspec.structs.replace(model, versions={**model.versions, version: installed})
    for label in labels:
        model = set_label(model, name, label, version, model.versions)
    return with_model(state, name, model)


def without_version(state: RepositoryState, name: str, version: str) -> RepositoryState:
    """The state after a removal.

    Raises:
        NotFoundError: it is not installed.
        UsageError: a label or a rollout needs it.
    """
    model = state.models.get(name, ModelState())
    if version not in model.versions:
        raise NotFoundError(f"model {name!r} version {version!r}", "not installed", f"one of {', '.join(model.versions) or 'none'}")
    if users := _users(model, version):
        raise UsageError(
            f"model {name} version {version}", users, "a version that nothing needs", "move the label or end the rollout first"
        )
    left = {other: installed for other, installed in model.versions.items() if other != version}
    previous = "" if model.previous == version else model.previous
    model = msgspec.structs.replace(model, versions=left, previous=previous) if left else ModelState()
    return with_model(state, name, model)


def set_label(model: ModelState, name: str, label: str, version: str, versions: Collection[str]) -> ModelState:
    """Put ``label`` on ``version``; an empty version takes the label away.

    Raises:
        UsageError: no label can be called that; a rollout holds it.
        NotFoundError: there is no such version.
    """
    thing = f"label {label[:96]!r}"
    if not _LABEL.fullmatch(label):
        raise UsageError(thing, "not a label", "a letter, then letters, digits, '.', '_' or '-', 64 at most")
    if label in versions:
        raise UsageError(thing, f"is a version of model {name}", "another name")
    if model.rollout is not None and label in (STABLE, CANARY):
        raise UsageError(thing, f"a rollout of model {name} holds it", "no rollout under way", "promote it, roll it back or stop it first")
    if version and version not in versions:
        raise NotFoundError(f"model {name!r}", f"no version {version[:96]!r}", f"one of {', '.join(versions)}")
    labels = {key: value for key, value in model.labels.items() if key != label}
    if version:
        labels[label] = version
    before = model.labels.get(STABLE, "")
    previous = before if label == STABLE and before and before != version else model.previous
    return msgspec.structs.replace(model, labels=labels, previous=previous)


def with_rollout(model: ModelState, name: str, rollout: Rollout, versions: Collection[str]) -> ModelState:
    """Begin a rollout: its versions get the labels ``stable`` and ``canary``, so that nothing else becomes the default meanwhile.

    Raises:
        UsageError: one is under way. NotFoundError: there is no such version.
    """
    if model.rollout is not None:
        there = f"a {model.rollout.mode} of version {model.rollout.candidate} is under way"
        raise UsageError(f"model {name}", there, "one rollout at a time", "promote it, roll it back or stop it first")
    for label, version in ((STABLE, rollout.baseline), (CANARY, rollout.candidate)):
        assert version  # an empty one would take the label away
        if model.labels.get(label) != version:
            model = set_label(model, name, label, version, versions)
    return msgspec.structs.replace(model, rollout=rollout, progress=None)


def end_rollout(model: ModelState, result: str, reason: str, now_s: float) -> ModelState:
    """The state after a rollout: ``promoted`` makes the candidate stable, ``rolled_back`` and ``stopped`` leave the baseline."""
    rollout = model.rollout
    assert rollout is not None
    labels = {label: version for label, version in model.labels.items() if label != CANARY}
    previous = model.previous
    if result == "promoted":
        labels[STABLE], previous = rollout.candidate, rollout.baseline
    outcome = Outcome(result, rollout.baseline, rollout.candidate, reason, now_s)
    return msgspec.structs.replace(model, labels=labels, rollout=None, progress=None, previous=previous, last=outcome)


def choose_removals(state: RepositoryState, needed_bytes: int, spare: Collection[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Versions to remove so that ``needed_bytes`` more fit the quota: the oldest that no label, rollout or default needs. Pairs of name and version.

    Args:
        needed_bytes: of the bundle that comes.
        spare: name and version of what must stay as well.

    Raises:
        UsageError: not enough can be removed.
    """
    free = state.quota_bytes - sum(installed.bytes for model in state.models.values() for installed in model.versions.values())
    if not state.quota_bytes or needed_bytes <= free:
        return []
    idle = sorted(
        (installed.order, name, version, installed.bytes)
        for name, model in state.models.items()
        for version, installed in model.versions.items()
        if (name, version) not in spare and not _users(model, version) and version != default_version(model, model.versions)
    )
    chosen: list[tuple[str, str]] = []
    for _, name, version, size in idle:
        chosen.append((name, version))
        free += size
        if needed_bytes <= free:
            return chosen
    raise UsageError(
        "disk quota",
        f"the bundle takes {needed_bytes} bytes, {max(0, free)} are or can be made free",
        f"a bundle that fits into {state.quota_bytes} bytes beside what is in use",
        "raise the quota, or remove versions",
    )


def _users(model: ModelState, version: str) -> str:
    """What needs a version, as part of a sentence; empty when nothing does."""
    labels = sorted(label for label, labelled in model.labels.items() if labelled == version)
    if labels:
        return f"carries the label {', '.join(labels)}"
    if model.rollout is not None and version in (model.rollout.baseline, model.rollout.candidate):
        return "takes part in a rollout"
    return ""


def labels_of(labels: Mapping[str, str], version: str) -> list[str]:
    """The labels of a version, in order."""
    return sorted(label for label, labelled in labels.items() if labelled == version)
