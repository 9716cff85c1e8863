"""``edgekit devices``: the profiles, and what this machine really has."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from edgekit.cli._output import memory, show, table
from edgekit.device_profiles import DeviceProfile, contradictions, list_profiles, load_profile, probe

__all__ = ["register"]

_FIGURES = ("memory_bytes", "memory_bandwidth_bytes_per_s", "cpu_cores", "tops", "tdp_w", "threads", "workspace_bytes")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    devices = typer.Typer(help="Device profiles; what this machine really has.", invoke_without_command=True, rich_markup_mode=None)
    devices.callback()(list_devices)
    devices.command("show")(show_device)
    devices.command("probe", short_help="Probe this machine, and say what it really has.")(probe_device)
    app.add_typer(devices, name="devices")


def _row(profile: DeviceProfile) -> dict[str, object]:
    """What scripts read, then everything else that the profile says."""
    everything: dict[str, object] = msgspec.to_builtins(profile)
    return everything | {"engine": profile.engine.name, "opset_max": profile.engine.opset_max}


def list_devices(context: typer.Context) -> None:
    """List the device profiles."""
    if context.invoked_subcommand:
        return
    profiles = list_profiles()
    rows = [
        (profile.id, profile.engine.name, ",".join(profile.fast_precisions) or "fp32", memory(profile.memory_bytes), profile.title)
        for profile in profiles
    ]
    show([_row(profile) for profile in profiles], table(rows, ("id", "engine", "fast", "memory", "device")))


def show_device(device: Annotated[str, typer.Argument(metavar="ID", help="Id, alias, or a .toml file.")]) -> None:
    """Show one profile with the source of each figure."""
    profile = load_profile(device)
    lines = [f"{profile.id}: {profile.title}", f"  aliases: {', '.join(profile.aliases) or '-'}   verified by: {profile.verified_by}"]
    for engine in profile.engines:
        extras = [f"opset <= {engine.opset_max}" if engine.opset_max else "", engine.deployment_target, engine.compute_capability]
        lines.append(f"  engine {engine.name}: {engine.versions} {' '.join(part for part in extras if part)}".rstrip())
    lines.append("  precisions: " + ", ".join(f"{name} {status}" for name, status in profile.precisions.items()))
    lines += [f"  {key}: {value:_}   ({profile.sources.get(key, '-')})" for key in _FIGURES if (value := getattr(profile, key))]
    lines += [f"  limit: {limit}" for limit in profile.limits]
    show(_row(profile), lines)


def probe_device(
    device: Annotated[str, typer.Option("--device", metavar="ID", help="Compare with this profile.")] = "",
) -> None:
    """Probe this machine: CPU features, memory, engines, drivers, accelerators."""
    found = probe()
    said = contradictions(load_profile(device), found) if device else []
    lines = [
        f"{found['model'] or 'unknown board'}, {found['os']} {found['arch']}, Python {found['python']}",
        f"  CPU: {found['cpu']['name']}, {found['cpu']['cores']} usable cores; {' '.join(found['cpu']['features'])}",
        f"  memory: {memory(found['memory_bytes'])}, {memory(found['memory_available_bytes'])} available",
        "  engines: " + (", ".join(f"{name} {version}" for name, version in found["engines"].items()) or "none"),
        "  accelerators: " + (", ".join(f"{count} {name}" for name, count in found["accelerators"].items()) or "none found"),
    ]
    if found["nvidia"]:
        lines.append(f"  NVIDIA: {found['nvidia']}")
    if device:
        lines += [f"  not as {device} claims: {sentence}" for sentence in said] or [f"  agrees with {device}"]
    show({**found, "contradictions": said} if device else found, lines)
