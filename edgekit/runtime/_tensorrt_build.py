"""Build TensorRT engines in a child process, retry with less memory, and keep what was built.

Cache layout, below `cache_directory` or the folder that the caller gives: ``engines/<key>/engine.plan`` with ``engine.json`` beside it, and
``timing/<key>.bin``. A key is the SHA-256 of everything that the file depends on, so nothing in the cache is ever out of date.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle import atomic_directory, cache_directory
from edgekit.errors import BuildError, BundleError, EnvironmentMissingError, UnsupportedOperatorsError
from edgekit.runtime._tensorrt_plan import (
    BUILT,
    CHILD_REPORT_DECODER,
    RECIPE_DECODER,
    RECIPE_FORMAT,
    REFUSED,
    UNFIT,
    Attempt,
    ChildReport,
    EngineIdentity,
    Recipe,
    attempts,
    engine_key,
)

__all__ = ["PACKAGES", "BuiltEngine", "build_engine", "cached_engine", "find_package", "forget_engine", "parse_model", "read_recipe"]

# engine -> importable packages that bring it, best first. `tensorrt_rtx` is the metapackage's name for the bindings.
PACKAGES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_HOW = {
    "tensorrt": "install JetPack's TensorRT with its Python bindings (python3-libnvinfer) and make them visible to this Python",
    "tensorrt-rtx": "pip install 'edgekit-ml[tensorrt]'",
}
DEVICE_TIMEOUT_S = 3600.0
"""A large network on a small Jetson takes tens of minutes; an hour is a hang."""


class BuiltEngine(msgspec.Struct, frozen=True):
    """An engine file.

    Attributes:
        path: the serialized engine.
        built: it was built now; false when it was in the cache.
        seconds: wall time of this call.
        attempt: workspace and level that worked.
        report: of the child that built it.
        key: its name in the cache, "" outside of one.
    """

    path: str
    built: bool
    seconds: float
    attempt: Attempt
    report: ChildReport
    key: str = ""


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_BUILT_ENGINE_DECODER = msgspec.json.Decoder(BuiltEngine)


def find_package(engine: str) -> str:
    """Name of the importable package that brings an engine; it is not imported.

    Raises:
        EnvironmentMissingError: none is installed.
    """
    for package in PACKAGES[engine]:
        if importlib.util.find_spec(package) is not None:
            return package
    raise EnvironmentMissingError(
        f"engine {engine}", f"the package {' or '.join(PACKAGES[engine])} is not installed for this Python", "", _HOW[engine]
    )


def read_recipe(path: Path) -> Recipe:
    """Read ``recipe.json`` and check that it belongs to the ONNX file beside it.

    Raises:
        BundleError: it cannot be read, or is for another file.
    """
    try:
        recipe = RECIPE_DECODER.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as exc:
        raise BundleError(str(path), f"cannot be read: {exc}", RECIPE_FORMAT, "build the bundle again") from exc
    if recipe.format != RECIPE_FORMAT:
        raise BundleError(str(path), f"format {recipe.format!r}", RECIPE_FORMAT, "upgrade edgekit")
    model = path.parent / recipe.onnx
    if not model.is_file() or hashlib.sha256(model.read_bytes()).hexdigest() != recipe.onnx_sha256:
        raise BundleError(str(path), f"{recipe.onnx} is not the file that it was written for", "", "build the bundle again")
    return recipe


def build_engine(
    package: str,
    recipe_path: Path,
    engine_path: Path,
    tries: Sequence[Attempt],
    *,
    capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    timeout_s: float = DEVICE_TIMEOUT_S,
) -> BuiltEngine:
    """Parse and build in a child process.

    Args:
        package: as `find_package` gives it.
        recipe_path: ``recipe.json`` beside its ONNX file.
        engine_path: where the engine goes.
        tries: workspaces and levels, in order; the next one is taken when the builder gives nothing or is killed, not when the
            parser refuses, the builder crashes or the time is up.
        capabilities: compute capabilities (``8.6``) for TensorRT-RTX.
        timing_cache: file to read and extend.
        timeout_s: for each try.

    Raises:
        UnsupportedOperatorsError: the parser refused nodes.
        BuildError: every try failed; names the last failure and the command that repeats it.
        EnvironmentMissingError: the package is too old or too new for the recipe.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
        report_path = Path(scratch) / "report.json"
        failure = ""
        for number, attempt in enumerate(tries, 1):  # noqa: B007 - both are reported after the last try
            command = _command(package, recipe_path, engine_path, report_path, attempt, capabilities, timing_cache)
            code, output = _run(command, timeout_s)
            report = CHILD_REPORT_DECODER.decode(report_path.read_bytes()) if report_path.is_file() else None
            if code == BUILT and report is not None:
                return BuiltEngine(str(engine_path), True, time.monotonic() - started, attempt, report)
            if code == UNFIT:
                raise EnvironmentMissingError(package, output.strip(), "", "update it, or build the bundle again")
            if code == REFUSED and report is not None:
                raise _refused(package, report, recipe_path)
            failure = _describe_failure(code, output, report, timeout_s)
            report_path.unlink(missing_ok=True)
            if code in _HOPELESS:
                break
        raise BuildError(
            f"{package} builder",
            f"{failure} ({number} {'try' if number == 1 else 'tries'}, the last with {attempt.workspace_bytes} bytes of workspace)",
            "",
            f"repeat it with: {shlex.join(_reproducer(package, recipe_path, attempt, capabilities))}",
        )


def parse_model(package: str, recipe_path: Path, *, timeout_s: float = DEVICE_TIMEOUT_S) -> ChildReport:
    """Let the parser read a model in a child process.

    Raises:
        UnsupportedOperatorsError: it refused nodes.
        BuildError: it refused the file as a whole, crashed or did not end.
        EnvironmentMissingError: the package is too old or too new for the recipe.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
        report_path = Path(scratch) / "report.json"
        command = _command(package, recipe_path, None, report_path, Attempt(0, 0), ())
        code, output = _run(command, timeout_s)
        report = CHILD_REPORT_DECODER.decode(report_path.read_bytes()) if report_path.is_file() else None
        if code == BUILT and report is not None:
            return report
        if code == UNFIT:
            raise EnvironmentMissingError(package, output.strip(), "", "update it, or build the bundle again")
        if code == REFUSED and report is not None:
            raise _refused(package, report, recipe_path)
        raise BuildError(
            f"{package} parser", _describe_failure(code, output, report, timeout_s), "", f"repeat it with: {shlex.join(command)}"
        )


def cached_engine(engine: str, recipe_path: Path, cuda: Any, cache_dir: Path | None) -> BuiltEngine:
    """The engine of a recipe for the GPU here, from the cache or built now.

    Args:
        engine: ``tensorrt`` or ``tensorrt-rtx``.
        recipe_path: inside the bundle.
        cuda: an open `Cuda`.
        cache_dir: None for `cache_directory`.

    Raises:
        as `build_engine`.
    """
    started = time.monotonic()
    recipe = read_recipe(recipe_path)
    package = find_package(engine)
    trt = importlib.import_module(package)
    device = cuda.device
    options = {"workspace_bytes": str(recipe.workspace_bytes), "optimization_level": str(recipe.optimization_level)}
    options |= {"clear_flags": ",".join(recipe.clear_flags), "pinned": ",".join(recipe.float32_nodes)}
    identity = EngineIdentity(
        recipe.onnx_sha256,
        package,
        str(trt.__version__),
        device.compute_capability,
        device.cuda,
        recipe.precision,
        recipe.shapes,
        recipe.dla,
        options,
    )
    key = engine_key(identity)
    root = cache_dir or cache_directory()
    folder = root / "engines" / key
    record = folder / "engine.json"
    if record.is_file():
        found = _BUILT_ENGINE_DECODER.decode(record.read_bytes())
        return msgspec.structs.replace(found, path=str(folder / "engine.plan"), built=False, seconds=time.monotonic() - started, key=key)
    timing = root / "timing" / f"{engine_key([package, identity.tensorrt, device.compute_capability, device.cuda])}.bin"
    tries = attempts(recipe.workspace_bytes, cuda.free_bytes(), recipe.optimization_level)
    with atomic_directory(folder) as staging:
        built = build_engine(package, recipe_path, staging / "engine.plan", tries, timing_cache=timing)
        built = msgspec.structs.replace(built, path="engine.plan", key=key)
        (staging / "engine.json").write_bytes(msgspec.json.encode(built))
        (staging / "identity.json").write_bytes(msgspec.json.encode(identity, order="sorted"))
    return msgspec.structs.replace(built, path=str(folder / "engine.plan"))


def forget_engine(path: Path) -> None:
    """Drop a cached engine that TensorRT does not take; the next load builds it again."""
    shutil.rmtree(path.parent, ignore_errors=True)


def _command(
    package: str,
    recipe: Path,
    engine: Path | None,
    report: Path,
    attempt: Attempt,
    capabilities: Sequence[str],
    timing_cache: Path | None = None,
) -> list[str]:
    command = [sys.executable, "-m", "edgekit.runtime._tensorrt_child", "--package", package, "--recipe", str(recipe)]
    command += ["--engine", str(engine)] if engine is not None else []
    command += ["--report", str(report), "--workspace-bytes", str(attempt.workspace_bytes)]
    command += ["--level", str(attempt.optimization_level)]
    command += [part for capability in capabilities for part in ("--compute-capability", capability)]
    return command + (["--timing-cache", str(timing_cache)] if timing_cache is not None else [])


def _run(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Exit code (negative: the signal that ended it; `_TIMED_OUT`) and output of the child."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as exc:
        return _TIMED_OUT, str(exc.stdout or "")
    return done.returncode, done.stdout


_TIMED_OUT = 124
# A crash in the builder's code or a hang comes again with less memory, only later.
_HOPELESS = (_TIMED_OUT, -signal.SIGSEGV, -signal.SIGILL, -signal.SIGFPE)


def _refused(package: str, report: ChildReport, recipe: Path) -> Exception:
    """The parser's complaints; ones without a node name are about the whole file."""
    nodes = [(message.node, message.operator or "?", message.message) for message in report.refusals]
    thing = f"NVIDIA's parser ({package} {report.version})"
    opset = RECIPE_DECODER.decode(recipe.read_bytes()).opset
    if any(name for name, _, _ in nodes):
        return UnsupportedOperatorsError(thing, [(name, operator, opset, message) for name, operator, message in nodes])
    said = "; ".join(message for _, _, message in nodes) or "it gave no reason"
    return BuildError(thing, f"refused the model: {said}", "", "build for onnxruntime, or change the model")


def _describe_failure(code: int, output: str, report: ChildReport | None, timeout_s: float) -> str:
    if code == _TIMED_OUT:
        return f"did not end within {timeout_s:.0f} s"
    if code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (the system ran out of memory)" if name == "SIGKILL" else "")
    said = list(report.messages[-3:]) if report is not None else output.strip().splitlines()[-3:]
    return f"gave no engine (exit code {code}): {' | '.join(said) or 'it said nothing'}"


def _reproducer(package: str, recipe_path: Path, attempt: Attempt, capabilities: Sequence[str]) -> list[str]:
    """The command that repeats a failure, on copies that outlive the failed job."""
    recipe = RECIPE_DECODER.decode(recipe_path.read_bytes())
    with atomic_directory(cache_directory() / "failed-builds" / recipe.onnx_sha256[:16]) as staging:
        for name in (recipe_path.name, recipe.onnx):
            shutil.copyfile(recipe_path.parent / name, staging / name)
    kept = cache_directory() / "failed-builds" / recipe.onnx_sha256[:16]
    return _command(package, kept / recipe_path.name, kept / "engine.plan", kept / "report.json", attempt, capabilities)
