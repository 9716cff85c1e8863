"""What both TensorRT targets write: the precision-lowered ONNX, the recipe and the float32 fallback; and what both can prove anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekit.bundle import Artifact, GoldenSample, Signature, TensorBinding, TensorSpec
from edgekit.converters._emitter import EmitJob
from edgekit.converters._opset import opset_of
from edgekit.converters._precision import FLOAT16_SCALES, lower_to_fp16
from edgekit.converters._verify import run_artifact
from edgekit.converters.tensorrt._reading import RTX_LACKS, readable
from edgekit.errors import ModelError, ShapeRequiredError
from edgekit.runtime._tensorrt_plan import RECIPE_FORMAT, Recipe, ShapeRange, generations

if TYPE_CHECKING:
    import onnx

__all__ = ["MODEL", "RECIPE", "Kit", "run_lowered", "shape_ranges", "write_kit"]

MODEL, FALLBACK, RECIPE = "model.onnx", "fallback.onnx", "recipe.json"
# Newest opset that TensorRT 8.5 and 8.6 read (onnx-tensorrt docs/operators.md); used where a profile names none.
_OLDEST_CEILING = 17
_ENGINE_KEY = ("onnx_sha256", "package", "tensorrt", "compute_capability", "cuda", "precision", "shapes", "dla", "options")
_TIMING_KEY = ("package", "tensorrt", "compute_capability", "cuda")


@dataclass(frozen=True)
class Kit:
    """What was written.

    Attributes:
        recipe: content of ``recipe.json``.
        fallback: float32 artifact for ONNX Runtime.
        lowered: the file that TensorRT parses, as an ONNX Runtime artifact: what can be run anywhere.
        tools: versions that shaped the bytes.
        report: facts for ``report.json``.
        notes: for the user.
    """

    recipe: Recipe
    fallback: Artifact
    lowered: Artifact
    tools: dict[str, str]
    report: dict[str, object]
    notes: tuple[str, ...] = ()


def write_kit(job: EmitJob) -> Kit:
    """Write ``model.onnx``, ``recipe.json`` and, when the model was lowered, ``fallback.onnx``.

    Raises:
        UnsupportedOperatorsError: nodes that neither the device's opset nor NVIDIA's parser takes, and that cannot be lowered.
        ModelError: an input or output whose dtype TensorRT has not.
        ShapeRequiredError: a dynamic input without a sample to take its sizes from.
    """
    import onnx

    _check_types(job.source.signature)
    ceiling = job.claim.opset_max or _OLDEST_CEILING
    lacking = RTX_LACKS if job.claim.name == "tensorrt-rtx" else {}
    read = readable(job.source.model, ceiling, lambda made, data: _recipe(job, made, data, ()), lacking)
    plain, samples = read.model, _carried(job.samples, read.carriers)
    report: dict[str, object] = {"opset": opset_of(plain), "ir_version": plain.ir_version}
    report |= {"lowered": list(read.expanded)} if read.expanded else {}
    model, kept = plain, []
    if job.precision == "int8":
        model = readable(job.written.model, ceiling, lambda made, data: _recipe(job, made, data, ())).model
    if job.precision == "fp16" or (job.precision == "int8" and opset_of(model) >= FLOAT16_SCALES):
        model, report["fp16"] = lower_to_fp16(model, samples)
        kept = [entry["name"] for entry in report["fp16"]["kept"]]  # type: ignore[index]
    data = _write(job, MODEL, model)
    inputs, outputs = (_bindings(specs, read.carriers) for specs in (job.source.signature.inputs, job.source.signature.outputs))
    lowered = Artifact("onnxruntime", MODEL, job.precision, inputs, outputs)
    fallback = lowered
    if job.precision != "fp32":
        _write(job, FALLBACK, plain)
        fallback = Artifact("onnxruntime", FALLBACK, "fp32", inputs, outputs)
    recipe = _recipe(job, model, data, kept)
    encoded = msgspec.json.format(msgspec.json.encode(recipe, order="sorted"), indent=2) + b"\n"
    (job.directory / RECIPE).write_bytes(encoded)
    report["recipe"] = msgspec.to_builtins(recipe)
    return Kit(recipe, fallback, lowered, {"onnx": onnx.__version__}, report, _notes(read.carriers))


def _write(job: EmitJob, name: str, model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    (job.directory / name).write_bytes(data)
    return data


def _check_types(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "string":
            raise ModelError(f"tensor {spec.name!r}", "dtype string", "numbers", "build for onnxruntime")


def _bindings(specs: Sequence[TensorSpec], carriers: Mapping[str, str]) -> tuple[TensorBinding, ...]:
    return tuple(TensorBinding(spec.name, spec.name, carriers.get(spec.dtype, spec.dtype)) for spec in specs)


def _carried(samples: Sequence[GoldenSample], carriers: Mapping[str, str]) -> Sequence[GoldenSample]:
    """Samples in the dtypes of the file."""
    if not carriers:
        return samples

    def convert(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.astype(carriers.get(array.dtype.name, array.dtype), copy=False) for name, array in arrays.items()}

    return [GoldenSample(convert(sample.inputs), convert(sample.outputs)) for sample in samples]


def _notes(carriers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"TensorRT does not compute in {old}: {new} stands for it" for old, new in sorted(carriers.items()))


def _recipe(job: EmitJob, model: onnx.ModelProto, data: bytes, kept: Sequence[str]) -> Recipe:
    quantised = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    return Recipe(
        format=RECIPE_FORMAT,
        onnx=MODEL,
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        opset=opset_of(model),
        precision=job.precision,
        generations=generations(
            has_float16=job.precision != "fp32", has_quantisation=quantised, float32_scales=quantised and opset_of(model) < FLOAT16_SCALES
        ),
        # TF32 rounds to 10 bits of mantissa: as good as float16, not float32. It is on by default in TensorRT.
        clear_flags=("TF32",) if job.precision == "fp32" else (),
        float32_nodes=tuple(kept),
        shapes=shape_ranges(job.source.signature, job.samples),
        workspace_bytes=job.profile.workspace_bytes,
        engine_key=_ENGINE_KEY,
        timing_key=_TIMING_KEY,
    )


def shape_ranges(signature: Signature, samples: Sequence[GoldenSample]) -> dict[str, ShapeRange]:
    """Optimisation profile of the dynamic inputs: the sizes that the samples have, tuned for the first.

    Raises:
        ShapeRequiredError: a dynamic input and no sample.
    """
    ranges = {}
    for spec in signature.inputs:
        if spec.is_static:
            continue
        if not samples:
            raise ShapeRequiredError(f"input {spec.name!r}", spec.describe(), "fixed sizes", f"give --shape {spec.name}=…")
        shapes = np.array([sample.inputs[spec.name].shape for sample in samples])
        first = samples[0].inputs[spec.name].shape
        ranges[spec.name] = ShapeRange(tuple(map(int, shapes.min(0))), tuple(map(int, first)), tuple(map(int, shapes.max(0))))
    return ranges


def run_lowered(job: EmitJob, kit_artifact: Artifact) -> tuple[list[dict[str, np.ndarray]], str]:
    """The numbers of the file that TensorRT parses, through ONNX Runtime."""
    return run_artifact(job.directory, kit_artifact, job.source.signature, job.samples)
