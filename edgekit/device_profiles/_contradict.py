"""Where a probe contradicts a profile. The probe wins; the receipt carries these sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.device_profiles._profile import DeviceProfile

__all__ = ["contradictions"]

# The kernel, firmware and GPU carve-outs take their share before MemTotal: 8 GB modules report 7.4 - 7.6.
_MEMORY_TOLERANCE = 0.15
_ARCH = {"arm64": "aarch64", "amd64": "x86_64"}


def contradictions(profile: DeviceProfile, found: Mapping[str, Any]) -> list[str]:
    """Claims of ``profile`` that ``found`` (a result of `probe`) denies, one sentence each; empty when they agree.

    What the probe could not see is not a contradiction.
    """
    said = []
    arch = _ARCH.get(str(found.get("arch", "")), found.get("arch", ""))
    if arch and arch != profile.arch:
        said.append(f"arch is {arch}, the profile says {profile.arch}")
    cpu = found.get("cpu", {})
    if features := cpu.get("features"):
        missing = [name for name in profile.cpu_features if name not in features]
        if missing:
            said.append(f"the CPU lacks {', '.join(missing)}, which the profile claims")
    cores = cpu.get("cores", 0)
    if profile.cpu_cores and cores and cores < profile.cpu_cores:
        said.append(f"{cores} CPU cores are usable, the profile says {profile.cpu_cores}")
    memory = found.get("memory_bytes", 0)
    if memory and profile.family != "coral" and memory < profile.memory_bytes * (1 - _MEMORY_TOLERANCE):
        said.append(f"memory is {memory / 2**30:.1f} GiB, the profile says {profile.memory_bytes / 2**30:.1f} GiB")
    said += _accelerators(profile, found)
    return said


def _accelerators(profile: DeviceProfile, found: Mapping[str, Any]) -> list[str]:
    said = []
    seen = found.get("accelerators", {})
    # Device nodes name these three reliably on Linux; phones and Apple systems do not show theirs.
    if found.get("os") == "linux" and profile.os == "linux":
        said += [
            f"no {name} was found, the profile claims {count}"
            for name, count in profile.accelerators.items()
            if name in ("gpu", "npu", "tpu") and name not in seen
        ]
    capability = profile.engine.compute_capability
    gpus = found.get("nvidia", {}).get("gpus", [])
    if capability and gpus and gpus[0]["compute_capability"] not in {part.strip() for part in capability.split(",")}:
        said.append(f"the GPU's compute capability is {gpus[0]['compute_capability']}, the profile says {capability}")
    if profile.engine.name not in found.get("engines", {}) and not (
        profile.engine.name == "tensorrt" and found.get("nvidia", {}).get("tensorrt_libraries")
    ):
        said.append(f"the engine {profile.engine.name} is not installed")
    return said
