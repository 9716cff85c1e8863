"""The environment that a local Triton runs in: another interpreter's, because its Python back end needs NumPy 1.x.

``nvidia-pytriton`` on PyPI carries NVIDIA's ``tritonserver`` with the Python back end for Linux on x86-64; nothing else of it is used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgekit.bundle import atomic_directory, cache_directory
from edgekit.errors import BuildError, EnvironmentMissingError

__all__ = ["TritonEnvironment", "find_environment", "install_environment"]

_VARIABLE = "EDGEKIT_TRITON_ENV"


@dataclass(frozen=True)
class TritonEnvironment:
    """Paths of an installed Triton."""

    root: Path
    site_packages: Path
    python_version: str

    @property
    def server(self) -> Path:
        """The ``tritonserver`` binary."""
        return self.site_packages / "pytriton/tritonserver/bin/tritonserver"

    def backend_directory(self) -> Path:
        """A back-end directory with the Python back end and the stub of this interpreter, made once in the cache."""
        target = cache_directory() / "triton" / f"backends-{self._release()}-{self.python_version}"
        if target.is_dir():
            return target
        bundled = self.site_packages / "pytriton/tritonserver"
        with atomic_directory(target) as staging:
            python = staging / "python"
            shutil.copytree(bundled / "backends/python", python)
            stub = bundled / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"
            shutil.copy2(stub, python / "triton_python_backend_stub")
            # Wheels do not keep the executable bit.
            (python / "triton_python_backend_stub").chmod(0o755)
        return target

    def variables(self) -> dict[str, str]:
        """Environment variables that the server and its back end need."""
        # The stub links libpython; LIBDIR is where this interpreter's lies.
        library = sysconfig.get_config_var("LIBDIR") or str(Path(sys.base_prefix) / "lib")
        libraries = [str(self.site_packages / "nvidia_pytriton.libs"), library, os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(path for path in libraries if path),
            # The back end's interpreter ignores PYTHONPATH (isolated start), but finds its home as `python3` on PATH: pyvenv.cfg beside it
            # leads to the site-packages of this environment.
            "PATH": f"{self.root / 'bin'}:{os.environ.get('PATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _release(self) -> str:
        found = next(self.site_packages.glob("nvidia_pytriton-*.dist-info"), None)
        return found.name.split("-")[1].removesuffix(".dist") if found else "unknown"


def find_environment() -> TritonEnvironment:
    """The installed Triton: ``$EDGEKIT_TRITON_ENV``, ``.venv-triton`` beside this environment, or the cache.

    Raises:
        EnvironmentMissingError: there is none; says how to install one.
    """
    for root in _candidates():
        site = root / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        environment = TritonEnvironment(root, site, f"{sys.version_info.major}.{sys.version_info.minor}")
        if environment.server.is_file():
            # As above: the wheel's binary comes without its executable bit.
            if not os.access(environment.server, os.X_OK):
                environment.server.chmod(0o755)
            return environment
    raise EnvironmentMissingError(
        "Triton",
        "no Triton environment was found",
        f"one in ${_VARIABLE}, .venv-triton or the cache",
        "edgekit cloud up --install makes one (about 400 MB from PyPI)",
    )


def _candidates() -> list[Path]:
    chosen = os.environ.get(_VARIABLE)
    roots = [Path(chosen)] if chosen else []
    return [*roots, Path(sys.prefix).parent / ".venv-triton", cache_directory() / "triton" / "environment"]


def install_environment() -> TritonEnvironment:
    """Make the environment with pip from the locked list; returns at once when it is there.

    Raises:
        BuildError: pip failed; carries its last line.
    """
    try:
        return find_environment()
    except EnvironmentMissingError:
        pass
    target = cache_directory() / "triton" / "environment"
    target.parent.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("edgekit.cloud.triton") / "requirements.txt") as requirements:
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(target)],
            [str(target / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                shutil.rmtree(target, ignore_errors=True)
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise BuildError("Triton environment", f"{' '.join(command[1:4])} failed: {last}", "", "check the network and run it again")
    return find_environment()
