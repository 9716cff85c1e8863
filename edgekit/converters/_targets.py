"""What a build is for: the devices, each with its emitter, its precision and the place of its bundle. All that can be refused before the model is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import ARCHIVE_SUFFIX, check_destination
from edgekit.converters._emitter import Emitter
from edgekit.converters._emitters import emitter_for
from edgekit.converters._options import BuildOptions
from edgekit.device_profiles import DeviceProfile, load_profile
from edgekit.errors import UsageError

__all__ = ["PRECISIONS", "Target", "choose_precision", "resolve_targets"]

PRECISIONS = ("auto", "fp32", "fp16", "int8")


@dataclass(frozen=True)
class Target:
    """One device of a build.

    Attributes:
        given: the device as the user named it.
        profile: the device.
        emitter: of the device's engine.
        precision: as chosen, never ``auto``.
        destination: where the bundle goes.
    """

    given: str
    profile: DeviceProfile
    emitter: Emitter
    precision: str
    destination: Path


def resolve_targets(stem: str, devices: Sequence[str], options: BuildOptions) -> list[Target]:
    """The targets of a build, each device once.

    Args:
        stem: of the model's file, for the names of bundles.
        devices: ids, aliases or paths of profiles.
        options: ``output`` and ``precision`` are read.

    Raises:
        UnknownNameError: no such device. UsageError: a precision or an output that cannot be.
        StorageError: the output's folder cannot be written.
    """
    profiles = {profile.id: profile for profile in map(load_profile, devices)}
    given = {load_profile(device).id: str(device) for device in devices}
    output = options.get("output")
    if len(profiles) == 1 and output is not None:
        destinations = [Path(output)]
    else:
        folder = Path(output) if output is not None else Path()
        destinations = [folder / f"{stem}-{device}{ARCHIVE_SUFFIX}" for device in profiles]
        if folder.suffix == ARCHIVE_SUFFIX:
            raise UsageError(f"--output {folder}", f"one file for {len(profiles)} devices", "a folder", "give a folder")
    return [_target(given[profile.id], profile, place, options) for profile, place in zip(profiles.values(), destinations, strict=True)]


def _target(given: str, profile: DeviceProfile, destination: Path, options: BuildOptions) -> Target:
    emitter = emitter_for(profile.engine.name)
    chosen = choose_precision(profile, options.get("precision", "auto"), emitter.precisions)
    check_destination(destination)
    return Target(given, profile, emitter, chosen, destination)


def choose_precision(profile: DeviceProfile, wanted: str, emitted: Sequence[str]) -> str:
    """The precision to build in. Pure.

    Args:
        profile: what the device takes.
        wanted: one of ``auto``, ``fp32``, ``fp16``, ``int8``.
        emitted: what the target's emitter writes.

    Raises:
        UsageError: the device or the emitter does not take it.
    """
    if wanted not in PRECISIONS:
        raise UsageError("--precision", f"unknown value {wanted!r}", f"one of {', '.join(PRECISIONS)}")
    taken = [name for name in emitted if profile.precisions.get(name, "no") != "no"]
    if not taken:
        runs = ", ".join(name for name, status in profile.precisions.items() if status != "no") or "nothing"
        raise UsageError(
            f"device {profile.id}", f"runs {runs} only", "", f"this version builds {' and '.join(emitted)}; choose another device"
        )
    if wanted == "auto":
        return "fp16" if "fp16" in taken and profile.precisions["fp16"] == "fast" else taken[0]
    if wanted == "int8":
        raise UsageError("--precision int8", "not in this version", f"one of auto, {', '.join(taken)}", "leave the flag out")
    if wanted not in taken:
        raise UsageError(
            f"--precision {wanted}", f"{profile.id} does not take it", f"one of auto, {', '.join(taken)}", "leave the flag out"
        )
    return wanted
