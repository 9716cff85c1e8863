"""What an operator asks of a model: load, label, begin or end a rollout. The parameters of the protocol's repository requests, and the same from the
command line. Pure, but for `change_model`.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edgekit.errors import NotFoundError, RequestError, UsageError
from edgekit.protocol import Parameters
from edgekit.runtime._rollout import RolloutLimits, start_rollout
from edgekit.runtime._store import VersionStore
from edgekit.runtime._versions import STABLE, ModelState, RepositoryState, default_version, end_rollout, set_label, with_model, with_rollout

__all__ = ["ModelCommand", "apply_command", "change_model", "parse_command"]

_IGNORED = {"unload_dependents"}  # there are no ensembles
_ENDS = {"promote": "promoted", "rollback": "rolled_back", "stop": "stopped"}


class ModelCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with a model, in this order: load, label, roll out.

    Attributes:
        version: which; empty for all that are there (load), or the present one (rollout).
        label: to put on ``version``. unlabel: to take away.
        rollout: ``canary``, ``split`` or ``shadow`` begin one with ``version`` as the candidate; ``promote``, ``rollback`` or ``stop`` end the one under way.
            ``rollback`` without one makes the version stable again that was so before.
        share: of the requests; see `start_rollout`.
        others: limits of the rollout, see `RolloutLimits`.
    """

    version: str = ""
    label: str = ""
    unlabel: str = ""
    rollout: str = ""
    share: float | None = None
    max_error_rate: float | None = None
    slo_ms: float | None = None
    max_slow_rate: float | None = None
    min_requests: int | None = None
    min_step_s: float | None = None
    risk: float | None = None

    @property
    def changes(self) -> bool:
        """There is more to do than to load."""
        return bool(self.label or self.unlabel or self.rollout)

    @property
    def limits(self) -> RolloutLimits:
        """Those given; defaults for the others. Raises `UsageError`."""
        given = {name: getattr(self, name) for name in RolloutLimits.__struct_fields__}
        return RolloutLimits(**{name: value for name, value in given.items() if value is not None})


def parse_command(parameters: Parameters) -> ModelCommand:
    """The command in a load request's parameters. Numbers may come as text, since gRPC's repository requests know no fractions.

    Raises:
        RequestError: a parameter that is not known, or not of its type.
    """
    known = ModelCommand.__struct_fields__
    for key in parameters:
        if key not in known and key not in _IGNORED:
            raise RequestError(
                f"parameter {key[:96]!r}", "not supported", f"one of {', '.join(known)}", "put bundles into the repository and load by name"
            )
    given = {key: value for key, value in parameters.items() if key in known}
    try:
        return msgspec.convert(given, ModelCommand, strict=False)
    except msgspec.ValidationError as exc:
        raise RequestError("parameters of the load request", str(exc)[:200], "see docs/models.md") from exc


def apply_command(command: ModelCommand, name: str, model: ModelState, versions: Collection[str], now_s: float) -> ModelState:
    """The model's state after the command's labels and rollout.

    Raises:
        UsageError, NotFoundError: it cannot be done.
    """
    if command.unlabel:
        model = set_label(model, name, command.unlabel, "", versions)
    if command.label:
        if not command.version:
            raise UsageError(f"label {command.label[:96]!r}", "no version given", "the version that it names")
        model = set_label(model, name, command.label, command.version, versions)
    if command.rollout in _ENDS:
        return _end(command.rollout, name, model, versions, now_s)
    if command.rollout:
        if not command.version:
            raise UsageError(f"rollout {command.rollout[:96]!r}", "no version given", "the candidate's version")
        # Without a stable version, what would answer if the candidate were not there.
        others = versions if STABLE in model.labels else [version for version in versions if version != command.version]
        baseline = default_version(model, others)
        if not baseline:
            raise UsageError(
                f"model {name}", f"version {command.version} is the only one", "a version to compare it with", "install two versions"
            )
        rollout = start_rollout(command.rollout, baseline, command.version, now_s, command.limits, command.share)
        return with_rollout(model, name, rollout, versions)
    return model


def change_model(store: VersionStore, name: str, parameters: Parameters, now_s: float) -> ModelState:
    """Do in a store what a load request with these parameters does in a server, but for the loading; servers that follow the store do that.

    Raises:
        RequestError, UsageError, NotFoundError: it cannot be done.
        StorageError: the store cannot be written.
    """
    command = parse_command(parameters)

    def change(state: RepositoryState) -> RepositoryState:
        model = state.models.get(name)
        if model is None:
            raise NotFoundError(
                f"model {name[:96]!r}", "not installed", f"one of {', '.join(sorted(state.models)) or 'none'}", "install it first"
            )
        return with_model(state, name, apply_command(command, name, model, list(model.versions), now_s))

    return store.update(change).models[name]


def _end(verb: str, name: str, model: ModelState, versions: Collection[str], now_s: float) -> ModelState:
    if model.rollout is not None:
        return end_rollout(model, _ENDS[verb], "by hand", now_s)
    if verb == "rollback" and model.previous:
        return set_label(model, name, STABLE, model.previous, versions)
    step = "install a version and begin one" if verb != "rollback" else f"label a version {STABLE}"
    raise UsageError(
        f"model {name}",
        f"no rollout is under way to {verb}",
        "a rollout" if verb != "rollback" else "a rollout or an earlier stable version",
        step,
    )
