"""``edgekit policy check``: what a policy file says, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli._output import show, size, table

__all__ = ["register"]

policy = typer.Typer(no_args_is_help=True, help="What the router may do: the file that `edgekit route --policy` follows.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(policy, name="policy", short_help="What the router may do.")


@policy.callback()
def _group() -> None:
    """With a callback, one command stays a command of its group."""


@policy.command("check", short_help="Check a policy file, and print what holds.")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Policy file in TOML; see docs/policy.md.")],
    model: Annotated[
        list[str], typer.Option("--model", metavar="NAME", help="Tell what holds for this model too; repeat for several.")
    ] = [],  # noqa: B006
) -> None:
    """Check a policy file, and print what holds for each model with every default filled in."""
    from edgekit.router import read_policy

    told = read_policy(file).described(tuple(model))
    models: dict[str, dict[str, Any]] = {**told["models"], "(others)": told["default"]}
    rows = [
        (
            name,
            _milliseconds(held["sla_ms"]),
            ", ".join(f"{priority}: {_milliseconds(sla_ms)}" for priority, sla_ms in held["priority_sla_ms"].items()) or "-",
            held["data"],
            "yes" if held["hedge"] else "no",
            _cascade(held["cascade"]),
            _share(held["canary"], "tier"),
            _share(held["shadow"], ""),
        )
        for name, held in models.items()
    ]
    lines = table(rows, ("model", "sla", "by priority", "data", "hedge", "escalate", "canary", "shadow"))
    lines += [f"budget per {window}: {_limit(told['budget'][f'per_{window}'])}" for window in ("hour", "day")]
    show({"valid": True, "file": str(file), **told}, lines)


def _milliseconds(value: float | None) -> str:
    return "router's" if value is None else f"{value:g} ms"


def _cascade(held: dict[str, Any] | None) -> str:
    return "-" if held is None else f"{held['kind']} < {held['below']:g}"


def _share(held: dict[str, Any] | None, tier: str) -> str:
    if held is None:
        return "-"
    version = f" of {held['version']}" if held["version"] else ""
    return f"{held['share']:.2%}{version}{f' ({held[tier]})' if tier else ''}"


def _limit(held: dict[str, Any]) -> str:
    told = [
        f"{held['requests']:,} requests" if held["requests"] is not None else "",
        size(held["bytes"]) if held["bytes"] is not None else "",
        f"${held['dollars']:,.2f}" if held["dollars"] is not None else "",
    ]
    return ", ".join(part for part in told if part) or "no limit"
