"""Environments of the peers: each in its own folder below ``out/peers``, from its locked list in ``requirements/peers``.

An environment is made when it is first asked for and made anew when its list changes. Nothing of a peer is installed beside EdgeKit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks._processes import without_folders

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements" / "peers"
ENVIRONMENTS = ROOT / "out" / "peers"
INSTALL_S = 900.0
OWN = {"aiohttp": "aiohttp", "probe": "uvloop", "triton": "nvidia-pytriton", "grpcio-echo": "grpcio", "grpcio-aio-echo": "grpcio"}
"""Peers that need no environment here (Triton has its own, `make setup`), with the package whose version is theirs."""


class PeerMissingError(Exception):
    """A peer that cannot run here; the text says why, in one line."""


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment; makes the environment if need be.

    Raises:
        PeerMissingError: the environment cannot be made, for example without a network.
    """
    lock = LOCKS / f"{name}.txt"
    if not lock.is_file():
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    installed = folder / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        print(f"installing {name} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
        _install(name, lock, folder)
        shutil.copyfile(lock, installed)
    return folder / "bin" / "python"


def locked_version(name: str) -> str:
    """``package version`` of a peer, out of its locked list; empty for what is no peer."""
    package = OWN.get(name, name.removesuffix("-serve"))
    lock = LOCKS / f"{name}.txt"
    if name == "triton":
        lock = ROOT / "edgekit" / "cloud" / "triton" / "requirements.txt"
    elif name in OWN:
        lock = ROOT / "requirements" / "lock.txt"
    if not lock.is_file():
        return ""
    found = [line.split("==") for line in lock.read_text("utf-8").splitlines() if line.startswith(f"{package}==")]
    return " ".join(part.split()[0] for part in found[0]) if found else ""


def _install(name: str, lock: Path, folder: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    if not uv.is_file():
        raise PeerMissingError(f"{name}: uv is not in this environment, which installs peers; run make setup")
    make = [str(uv), "venv", "-q", "--clear", "--python", sys.executable, str(folder)]
    fill = [str(uv), "pip", "install", "-q", "--compile-bytecode", "--python", str(folder / "bin" / "python"), "-r", str(lock)]
    for command in (make, fill):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            raise PeerMissingError(f"{name}: not installed within {INSTALL_S:g} s") from None
        if done.returncode:
            raise PeerMissingError(f"{name}: cannot be installed: {without_folders(' '.join(done.stderr.split()))[:200]}")
