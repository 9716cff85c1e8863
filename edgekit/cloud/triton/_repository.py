"""Writing a Triton model repository from bundles: ``<model>/config.pbtxt`` and ``<model>/<version>/model.onnx``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from edgekit.bundle import Artifact, Bundle, TensorSpec, atomic_directory
from edgekit.cloud.triton._config import ModelConfig, TensorConfig, render, triton_type
from edgekit.errors import BundleError, UsageError

__all__ = ["RepositoryModel", "Target", "plan_model", "write_repository"]

Target = Literal["cpu", "gpu"]
# Triton's own example value; a larger batch costs memory on every instance and gains little past it on small models.
DEFAULT_MAX_BATCH = 16


@dataclass(frozen=True)
class RepositoryModel:
    """One model as it goes into the repository.

    Attributes:
        config: rendered as ``config.pbtxt``; versions of one model share it.
        version: Triton's version folder, a positive integer.
        onnx: the file that becomes ``model.onnx``.
        plan_command: for the ``tensorrt`` back end: the command that makes ``model.plan`` on the GPU node, else empty.
    """

    config: ModelConfig
    version: int
    onnx: Path
    plan_command: tuple[str, ...] = ()


def plan_model(
    bundle: Bundle, target: Target, *, instances: int = 1, max_batch: int = DEFAULT_MAX_BATCH, threads: int = 1
) -> RepositoryModel:
    """Decide how Triton serves one bundle.

    ``cpu``: the Python back end on ONNX Runtime. ``gpu``: the TensorRT back end for bundles built for TensorRT (their plan is built on the GPU
    node), the ONNX Runtime back end for all others.

    Raises:
        BundleError: the bundle carries no ONNX form.
        UsageError: its version is not a number, or ``max_batch`` or ``threads`` is none that can be.
    """
    for name, value, least in (("max batch", max_batch, 1), ("threads", threads, 0)):
        if value < least:
            raise UsageError(name, str(value), f"{least} or more")
    manifest = bundle.manifest
    artifact = _onnx_artifact(bundle)
    tensorrt = target == "gpu" and manifest.artifact.engine == "tensorrt"
    if tensorrt:
        artifact = manifest.artifact
    batched = _is_batched(bundle)
    config = ModelConfig(
        name=manifest.name,
        backend="python" if target == "cpu" else "tensorrt" if tensorrt else "onnxruntime",
        inputs=tuple(_tensor(spec, batched) for spec in manifest.signature.inputs),
        outputs=tuple(_tensor(spec, batched) for spec in manifest.signature.outputs),
        max_batch_size=max_batch if batched else 0,
        instance_kind="KIND_CPU" if target == "cpu" else "KIND_GPU",
        instance_count=instances,
        dynamic_batching=batched,
        parameters={"threads": str(threads)} if target == "cpu" else {},
    )
    return RepositoryModel(config, _version(bundle), bundle.artifact_path(artifact), _plan_command(config) if tensorrt else ())


def write_repository(
    bundles: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    target: Target = "cpu",
    *,
    instances: int = 1,
    max_batch: int = DEFAULT_MAX_BATCH,
    threads: int = 1,
) -> list[RepositoryModel]:
    """Write the whole repository, or nothing.

    Args:
        bundles: bundle directories or ``.edgekit`` files; several versions of one model are allowed.
        output: the repository; an existing repository there is replaced.
        target: ``cpu`` for a machine without a GPU (development), ``gpu`` for the tier itself.
        instances: instances per model (and per GPU).
        max_batch: largest dynamic batch, for models whose first dimension is symbolic.
        threads: ONNX Runtime threads per instance of the Python back end.

    Raises:
        UsageError: no bundle, two bundles of one model and version, or ``output`` holds something else.
    """
    if not bundles:
        raise UsageError("cloud repository", "no bundle", "at least one bundle path")
    root = Path(output)
    _check_output(root)
    models = [plan_model(Bundle.open(path), target, instances=instances, max_batch=max_batch, threads=threads) for path in bundles]
    seen: dict[tuple[str, int], int] = {}
    for index, model in enumerate(models):
        key = (model.config.name, model.version)
        if key in seen:
            raise UsageError(str(bundles[index]), f"is model {key[0]!r} version {key[1]} again", "one bundle per version")
        seen[key] = index
    with atomic_directory(root) as staging:
        for model in models:
            _write_model(staging, model)
    return models


def _check_output(root: Path) -> None:
    if root.is_file():
        raise UsageError(str(root), "is a file", "a directory for the model repository", "choose another path")
    if root.is_dir() and any(root.iterdir()) and not any(root.glob("*/config.pbtxt")):
        raise UsageError(str(root), "holds other files", "a new directory or a model repository", "choose another path")


def _onnx_artifact(bundle: Bundle) -> Artifact:
    """ONNX in float32 first: the fallback of a TensorRT bundle, the artifact of an ONNX Runtime one."""
    for artifact in (bundle.manifest.fallback, bundle.manifest.artifact):
        if artifact is not None and artifact.engine == "onnxruntime" and artifact.path.endswith(".onnx"):
            return artifact
    raise BundleError(
        str(bundle.path),
        f"holds {bundle.manifest.artifact.engine} and no ONNX form",
        "a bundle for an ONNX Runtime or TensorRT device",
        "build the model once more with --device generic-x86 for the cloud tier",
    )


def _is_batched(bundle: Bundle) -> bool:
    """True when every input and output starts with the same kind of symbolic dimension: Triton's batch."""
    specs = (*bundle.manifest.signature.inputs, *bundle.manifest.signature.outputs)
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)


def _tensor(spec: TensorSpec, batched: bool) -> TensorConfig:
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in (spec.shape[1:] if batched else spec.shape))
    return TensorConfig(spec.name, triton_type(spec.dtype), dims)


def _version(bundle: Bundle) -> int:
    text = bundle.manifest.version
    if not text.isdigit() or int(text) < 1:
        raise UsageError(
            str(bundle.path),
            f"version {text!r}",
            "a positive whole number, as Triton's version folders are",
            "build with --model-version 1",
        )
    return int(text)


def _plan_command(config: ModelConfig) -> tuple[str, ...]:
    """``trtexec`` for the node's own TensorRT; precision is in the graph, so no precision flag is needed from 10 on."""
    command = ["trtexec", "--onnx=model.onnx", "--saveEngine=model.plan"]
    if config.max_batch_size and all(dim > 0 for tensor in config.inputs for dim in tensor.dims):
        for flag, batch in (("min", 1), ("opt", max(1, config.max_batch_size // 2)), ("max", config.max_batch_size)):
            shapes = ",".join(f"{t.name}:{'x'.join(map(str, (batch, *t.dims)))}" for t in config.inputs)
            command.append(f"--{flag}Shapes={shapes}")
    return tuple(command)


def _write_model(root: Path, model: RepositoryModel) -> None:
    folder = root / model.config.name
    version = folder / str(model.version)
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(render(model.config), "utf-8")
    (version / "model.onnx").write_bytes(model.onnx.read_bytes())
    if model.config.backend == "python":
        source = resources.files("edgekit.cloud.triton") / "_model.py"
        (version / "model.py").write_text(source.read_text("utf-8"), "utf-8")
    if model.plan_command:
        script = version / "build_plan.sh"
        script.write_text(f'#!/bin/sh\nset -e\ncd "$(dirname "$0")"\n{shlex.join(model.plan_command)}\n', "utf-8")
        script.chmod(0o755)
