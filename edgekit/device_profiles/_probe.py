"""What this machine really has. Reads files and asks ``nvidia-smi``; imports no engine and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["ENGINE_PACKAGES", "probe"]

# engine -> distributions that bring it, any of them.
ENGINE_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tflite": ("ai-edge-litert",),
    "coreml": ("coremltools",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
# Features that steer a build; names as Linux prints them in /proc/cpuinfo.
_FEATURES = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
]


def probe(root: Path = Path("/")) -> dict[str, Any]:
    """Describe this machine.

    Args:
        root: where ``proc``, ``sys``, ``etc`` and ``dev`` are looked up; another one for tests.

    Returns:
        JSON-able: ``arch``, ``os``, ``python``, ``model`` (board), ``cpu`` (name, cores, features), ``memory_bytes``,
        ``memory_available_bytes``, ``engines`` (name to installed version), ``nvidia`` (driver, GPUs, JetPack's L4T, TensorRT libraries),
        ``accelerators`` (name to count), ``power_mode``, ``temperature_c``. What could not be found is absent or empty, never guessed.
    """
    memory = _memory(root)
    return {
        "arch": platform.machine(),
        "os": platform.system().lower(),
        "python": platform.python_version(),
        "model": _text(root / "proc/device-tree/model").strip("\0\n ") or _text(root / "sys/class/dmi/id/product_name").strip(),
        "cpu": _cpu(root),
        "memory_bytes": memory.get("MemTotal", 0),
        "memory_available_bytes": memory.get("MemAvailable", 0),
        "engines": _engines(),
        "nvidia": _nvidia(root),
        "accelerators": _accelerators(root),
        "power_mode": _power_mode(),
        "temperature_c": _temperature_c(root),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _cpu(root: Path) -> dict[str, Any]:
    name, flags, parts = "", set(), set()
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = name or value
        elif key in ("flags", "Features"):
            flags |= set(value.split())
        elif key == "CPU part":
            parts.add(value)
    return {
        "name": name or " ".join(sorted(parts)),
        # What this process may use: a container's share, not the whole machine.
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "features": [feature for feature in _FEATURES if feature in flags],
    }


def _memory(root: Path) -> dict[str, int]:
    """``/proc/meminfo`` in bytes; it prints KiB."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found[key] = int(value.split()[0]) * 1024
    return found


def _engines() -> dict[str, str]:
    found = {}
    for engine, packages in ENGINE_PACKAGES.items():
        for package in packages:
            try:
                found[engine] = metadata.version(package)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def _run(*command: str) -> str:
    """Output of a read-only vendor tool, "" when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _nvidia(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = _run("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits")
    if rows:
        gpus = [[cell.strip() for cell in row.split(",")] for row in rows.splitlines()]
        found["driver"] = gpus[0][1]
        found["gpus"] = [
            {"name": gpu[0], "memory_bytes": int(gpu[2]) * 2**20 if gpu[2].isdigit() else 0, "compute_capability": gpu[3]} for gpu in gpus
        ]
    # "# R36 (release), REVISION: 4.3, …" is L4T 36.4.3, which names the JetPack.
    release = _text(root / "etc/nv_tegra_release")
    if release.startswith("# R"):
        found["l4t"] = f"{release[3:].split()[0]}.{release.partition('REVISION:')[2].split(',')[0].strip()}"
    libraries = sorted(
        path.name.partition(".so.")[2]
        for folder in ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        for path in (root / folder).glob("libnvinfer.so.*.*")
    )
    if libraries:
        found["tensorrt_libraries"] = libraries
    return found


def _accelerators(root: Path) -> dict[str, int]:
    """Counted device nodes: GPUs, NPUs of the kernel's accel class, Edge TPUs on PCIe, DLA cores of a Jetson."""
    patterns = {
        "gpu": ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/dri/renderD*"),
        "npu": ("dev/accel/accel*",),
        "tpu": ("dev/apex_*",),
        "dla": ("sys/class/nvdla/*", "dev/nvhost-nvdla*"),
    }
    found = {}
    for name, globs in patterns.items():
        count = max(sum(1 for _ in root.glob(pattern)) for pattern in globs)
        if count:
            found[name] = count
    return found


def _power_mode() -> str:
    """Jetson's ``nvpmodel -q``: the line that names the mode."""
    for line in _run("nvpmodel", "-q").splitlines():
        if "Power Mode" in line:
            return line.partition(":")[2].strip()
    return ""


def _temperature_c(root: Path) -> float | None:
    """Hottest thermal zone; the kernel reports millidegrees."""
    values = [text.strip() for path in root.glob("sys/class/thermal/thermal_zone*/temp") if (text := _text(path))]
    degrees = [int(value) / 1000 for value in values if value.lstrip("-").isdigit()]
    return max(degrees) if degrees else None
