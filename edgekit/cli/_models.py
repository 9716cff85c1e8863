"""``edgekit models``: what is installed in a repository's folder, what it is called, and who gets it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli._build import parse_size
from edgekit.cli._output import show, size, table
from edgekit.errors import UsageError

__all__ = ["byte_limit", "register"]

Folder = Annotated[str, typer.Option("--repository", "-r", metavar="DIR", help="Folder of the repository; install and quota make it.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Model.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Version.")]

models = typer.Typer(no_args_is_help=True, help="Versions of models in a repository that `edgekit serve --repository` follows.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(models, name="models", short_help="Versions of models that a server follows.")


def byte_limit(text: str, flag: str) -> int:
    """``512MB`` to bytes; ``0`` is no limit.

    Raises:
        UsageError: not a size.
    """
    return 0 if text.strip() == "0" else parse_size(text, flag)


@models.command("list")
def list_models(repository: Folder) -> None:
    """Installed versions, their labels, and rollouts under way."""
    from edgekit.runtime import FolderStore, default_version, version_key

    state = FolderStore(_existing(repository)).state()
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "version": version,
            "labels": sorted(label for label, labelled in model.labels.items() if labelled == version),
            "default": version == default_version(model, model.versions),
            "bytes": model.versions[version].bytes,
            "digest": model.versions[version].digest,
            "rollout": _rollout(model.rollout, version),
        }
        for name, model in sorted(state.models.items())
        for version in sorted(model.versions, key=version_key)
    ]
    cells = [
        [
            row["name"],
            row["version"],
            "*" if row["default"] else "",
            ",".join(row["labels"]),
            row["rollout"],
            size(row["bytes"]),
            row["digest"][:16],
        ]
        for row in rows
    ]
    lines = table(cells, ["model", "version", "default", "labels", "rollout", "size", "digest"])
    lines += [
        f"{name}: version {model.last.candidate} {model.last.result.replace('_', ' ')}: {model.last.reason}"
        for name, model in sorted(state.models.items())
        if model.last is not None
    ]
    show({"models": rows, "quota_bytes": state.quota_bytes}, lines)


@models.command("install", short_help="Copy bundles into the repository.")
def install(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundles made by edgekit build.")],
    repository: Folder,
    label: Annotated[list[str], typer.Option(metavar="LABEL", help="Put this label on it at the same moment; repeat for several.")] = [],  # noqa: B006
    make_room: Annotated[
        bool, typer.Option("--make-room", help="Remove the oldest versions that nothing needs, if the quota asks for it.")
    ] = False,
) -> None:
    """Copy bundles into the repository; a server that follows it loads and warms them before they answer."""
    from edgekit.runtime import FolderStore

    store = FolderStore(repository)
    done = [store.install(bundle, label, make_room=make_room) for bundle in bundles]
    rows = [{"name": name, "version": version, "labels": [*label]} for name, version in done]
    named = f" as {', '.join(label)}" if label else ""
    show(rows, [f"installed {name} version {version}{named}" for name, version in done])


@models.command("remove")
def remove(name: Name, version: Version, repository: Folder) -> None:
    """Remove a version that no label and no rollout needs."""
    from edgekit.runtime import FolderStore

    FolderStore(_existing(repository)).remove(name, version)
    show({"removed": {"name": name, "version": version}}, [f"removed {name} version {version}"])


@models.command("label")
def label_version(
    name: Name,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="`stable` answers requests that name no version.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Version, or - to take the label away.")],
    repository: Folder,
) -> None:
    """Put a label on a version, at once."""
    change = {"unlabel": label} if version == "-" else {"label": label, "version": version}
    labels = _change(repository, name, change)
    show(
        {"name": name, "labels": labels}, [f"{name}: {', '.join(f'{key}={value}' for key, value in sorted(labels.items())) or 'no labels'}"]
    )


@models.command("rollout", short_help="Try a version on a share of the requests.")
def rollout(
    name: Name,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="canary, split or shadow begin one; promote, rollback or stop end it.")],
    repository: Folder,
    version: Annotated[str, typer.Option(metavar="VERSION", help="The candidate.")] = "",
    share: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the requests, 0 to 1: of a split, a shadow, or a canary's first step.")
    ] = None,
    slo_ms: Annotated[float | None, typer.Option("--slo-ms", metavar="X", help="An answer later than this counts as slow.")] = None,
    max_slow_rate: Annotated[float | None, typer.Option("--max-slow", metavar="X", help="Share that may be slow or refused; 0.01.")] = None,
    max_error_rate: Annotated[float | None, typer.Option("--max-errors", metavar="X", help="Share that may fail; 0.01.")] = None,
    min_requests: Annotated[int | None, typer.Option("--min-requests", metavar="N", help="Of each step of a canary; 400.")] = None,
    min_step_s: Annotated[float | None, typer.Option("--min-step-s", metavar="S", help="Seconds of each step of a canary; 10.")] = None,
) -> None:
    """Try a version on a share of the requests; it goes back by itself when it fails more or is slower than it may be."""
    given = {
        "version": version,
        "share": share,
        "slo_ms": slo_ms,
        "max_slow_rate": max_slow_rate,
        "max_error_rate": max_error_rate,
        "min_requests": min_requests,
        "min_step_s": min_step_s,
    }
    labels = _change(repository, name, {"rollout": action, **{key: value for key, value in given.items() if value is not None}})
    show({"name": name, "rollout": action, "labels": labels}, [f"{name}: {action}{f' of version {version}' if version else ''}"])


@models.command("quota")
def quota(
    repository: Folder,
    disk: Annotated[str, typer.Option(metavar="SIZE", help="What the installed bundles may take, for example 2GB; 0 for no limit.")],
) -> None:
    """Bound what the repository takes on disk."""
    from edgekit.runtime import FolderStore

    limit = byte_limit(disk, "--disk")
    FolderStore(repository).set_quota(limit)
    show({"quota_bytes": limit}, [f"at most {size(limit)}" if limit else "no limit"])


def _existing(repository: str) -> str:
    """A slip of the pen must not make an empty repository that looks like one from which the models have gone."""
    if not Path(repository).exists():
        raise UsageError(f"--repository {repository}", "no such folder", "a repository", "edgekit models install makes one")
    return repository


def _change(repository: str, name: str, parameters: dict[str, Any]) -> dict[str, str]:
    """Do what a load request with these parameters would do, but for the loading; returns the labels after it."""
    from edgekit.runtime import FolderStore, change_model

    return change_model(FolderStore(_existing(repository)), name, parameters, time.time()).labels


def _rollout(rollout: Any, version: str) -> str:
    if rollout is None or version not in (rollout.baseline, rollout.candidate):
        return ""
    if version == rollout.baseline:
        return f"{rollout.mode}: baseline"
    return f"{rollout.mode}: candidate at {rollout.share:.0%}"
