"""The machine a benchmark runs on, and the commit that is measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks._results import Machine

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "edgekit-ml",
    "numpy",
    "msgspec",
    "onnxruntime",
    "openvino",
    "ai-edge-litert",
    "uvloop",
    "ngh2",
    "grpcio",
    "protobuf",
    "redis",
    "blake3",
)
TOOLS = {"wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"]}
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def machine() -> Machine:
    """This machine, with the versions of what counts."""
    return Machine(
        cpu=cpu_model(_text(Path("/proc/cpuinfo"))) or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        governor=_text(GOVERNOR).strip() or "not reported",
        python=platform.python_version(),
        versions=packages() | tools(),
    )


def cpu_model(cpuinfo: str) -> str:
    """The first ``model name`` of ``/proc/cpuinfo``; empty where there is none (Arm)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def packages() -> dict[str, str]:
    """Versions of those packages of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tools() -> dict[str, str]:
    """Versions of the load generators that are there."""
    return {name: tool_version(_said(command)) for name, command in TOOLS.items() if shutil.which(name)}


def tool_version(said: str) -> str:
    """The first thing that looks like a version; wrk's first word is its name, h2load's second its version."""
    found = re.search(r"\d+\.\d+[\w.-]*", said)
    return found[0] if found else "unknown"


def commit() -> str:
    """Short id of the commit, with ``+`` when the tree differs from it; ``unknown`` outside a checkout."""
    found = _said(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
    if not re.fullmatch(r"[0-9a-f]{12,40}", found):
        return "unknown"
    changed = _said(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "edgekit", "benchmarks"]).strip()
    return found + ("+" if changed else "")


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout or done.stderr


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
