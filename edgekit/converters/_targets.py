"""What a build is for: the devices, each with its emitter, its precision and the place of its bundle. All that can be refused before the model is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import ARCHIVE_SUFFIX, check_destination
from edgekit.converters._emitter import Emitter
from edgekit.converters._emitters import emitter_for
from edgekit.converters._options import BuildOptions
from edgekit.converters.quantization import DEFAULT_AGREEMENT, check_settings, parse_compression
from edgekit.device_profiles import DeviceProfile, load_profile
from edgekit.errors import UsageError

__all__ = ["PRECISIONS", "Target", "choose_precision", "precisions_to_try", "resolve_targets"]

PRECISIONS = ("auto", "fp32", "fp16", "int8")


@dataclass(frozen=True)
class Target:
    """One device of a build.

    Attributes:
        given: the device as the user named it.
        profile: the device.
        emitter: of the device's engine.
        precisions: to try in this order, never ``auto``; more than one only where ``auto`` may take int8, which must prove itself.
        destination: where the bundle goes.
    """

    given: str
    profile: DeviceProfile
    emitter: Emitter
    precisions: tuple[str, ...]
    destination: Path

    @property
    def precision(self) -> str:
        """The first choice."""
        return self.precisions[0]


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
    check_settings(options.get("calibration_method") or "auto", options.get("min_agreement") or DEFAULT_AGREEMENT)
    compressed = options.get("compress")
    if compressed:
        parse_compression(compressed)
    chosen = precisions_to_try(
        profile,
        options.get("precision", "auto"),
        emitter.precisions,
        calibrated=options.get("calibration") is not None and not (compressed and options.get("precision", "auto") == "auto"),
    )
    check_destination(destination)
    return Target(given, profile, emitter, chosen, destination)


def choose_precision(profile: DeviceProfile, wanted: str, emitted: Sequence[str], *, calibrated: bool = False) -> str:
    """The first of `precisions_to_try`."""
    return precisions_to_try(profile, wanted, emitted, calibrated=calibrated)[0]


def precisions_to_try(profile: DeviceProfile, wanted: str, emitted: Sequence[str], *, calibrated: bool) -> tuple[str, ...]:
    """The precisions to build in, the best first. Pure.

    Args:
        profile: what the device takes.
        wanted: one of ``auto``, ``fp32``, ``fp16``, ``int8``. ``auto`` is int8 where the profile calls that fast and there are samples to find ranges on, then
            fp16 where the profile calls that fast, then what else there is.
        emitted: what the target's emitter writes.
        calibrated: real samples were given.

    Raises:
        UsageError: the device or the emitter does not take it, or int8 has no samples.
    """
    if wanted not in PRECISIONS:
        raise UsageError("--precision", f"unknown value {wanted!r}", f"one of {', '.join(PRECISIONS)}")
    taken = [name for name in emitted if profile.precisions.get(name, "no") != "no"]
    if not taken:
        runs = ", ".join(name for name, status in profile.precisions.items() if status != "no") or "nothing"
        raise UsageError(
            f"device {profile.id}", f"runs {runs} only", "", f"this version builds {' and '.join(emitted)}; choose another device"
        )
    tried = _automatic(profile, taken, calibrated) if wanted == "auto" else (wanted,)
    if tried[0] not in taken:
        raise UsageError(
            f"--precision {wanted}", f"{profile.id} does not take it", f"one of auto, {', '.join(taken)}", "leave the flag out"
        )
    if tried[0] == "int8" and not calibrated:
        raise UsageError(
            f"--precision {wanted}" if wanted != "auto" else f"device {profile.id}",
            "int8 needs real samples, and none were given: the ranges of random ones would be wrong",
            "--calibration PATH",
            "give a folder of pictures, .npy or .npz files, or Parquet",
        )
    return tried


def _automatic(profile: DeviceProfile, taken: Sequence[str], calibrated: bool) -> tuple[str, ...]:
    floats = [name for name in taken if name != "int8"]
    best = ("fp16",) if "fp16" in floats and profile.precisions["fp16"] == "fast" else tuple(floats[:1])
    quick = "int8" in taken and profile.precisions["int8"] == "fast"
    return ("int8", *best) if not floats or (quick and calibrated) else best
