"""The Jetson target. An engine only runs on the GPU model and TensorRT version that built it, so the device builds it (`edgekit finalize`).

The artifact is a plan kit: ONNX that carries its own precision at the opset of the device's TensorRT, a recipe with every flag by name, golden
samples, and a float32 fallback for ONNX Runtime. What this machine can prove of it is said exactly, and no more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from edgekit.bundle import Artifact
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters.tensorrt._builder import rtx_builder
from edgekit.converters.tensorrt._kit import MODEL, RECIPE, run_lowered, write_kit
from edgekit.converters.tensorrt._reading import RTX_LACKS
from edgekit.errors import EnvironmentMissingError
from edgekit.runtime._tensorrt_build import parse_model
from edgekit.runtime._tensorrt_plan import RECIPE_DECODER

__all__ = ["JetsonEmitter"]

_LEFT = (
    "engine build with the device's own TensorRT (edgekit finalize)",
    "parity of that engine with the golden samples",
    "latency and memory on the device",
)


class JetsonEmitter:
    """Writes ``model.onnx``, ``recipe.json`` and ``fallback.onnx`` (none when the model itself is float32)."""

    engine = "tensorrt"
    static_only = False
    batch_probes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Write the plan kit.

        Raises:
            UnsupportedOperatorsError: nodes that the device's opset cannot express.
            ModelError, ShapeRequiredError: see `write_kit`.
        """
        kit = write_kit(job)
        artifact = Artifact("tensorrt", MODEL, job.precision, kit.lowered.inputs, kit.lowered.outputs, {"recipe": RECIPE})
        notes: tuple[str, ...] = ("the engine is built on the device: run edgekit finalize there, or let the first load do it",)
        if kit.recipe.shapes:
            notes += ("dynamic inputs take the sizes that the samples had, from smallest to largest",)
        return Emitted(artifact, kit.fallback, kit.tools, kit.report, notes + kit.notes)

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run the lowered graph with ONNX Runtime; let NVIDIA's parser and builder read it where TensorRT-RTX is installed.

        Raises:
            UnsupportedOperatorsError, BuildError: NVIDIA's parser or builder refused the file.
        """
        import onnx

        lowered = msgspec.structs.replace(emitted.artifact, engine="onnxruntime", options={})
        outputs, runtime = run_lowered(job, lowered)
        numbers = f"the compared numbers are those of {MODEL} through {runtime} on the CPU, not of TensorRT"
        try:
            builder = rtx_builder()
        except EnvironmentMissingError as exc:
            note = f"NVIDIA's parser did not read {MODEL}: {exc.found}"
            return Proof("deferred", runtime, outputs, (numbers, note), _LEFT)
        recipe_path = job.directory / RECIPE
        model = onnx.load(job.directory / MODEL)
        if lacking := sorted({node.op_type for node in model.graph.node} & set(RTX_LACKS)):
            report = parse_model(builder.package, recipe_path)
            note = (
                f"{builder.describe()} parsed {MODEL} ({report.layers} layers) and built nothing of it, because it has no {' and no '.join(lacking)}; "
                "the TensorRT of a Jetson has"
            )
            return Proof("parser", builder.describe(), outputs, (numbers, note), _LEFT)
        recipe = RECIPE_DECODER.decode(recipe_path.read_bytes())
        with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
            built = builder.build(recipe_path, Path(scratch) / "model.engine", recipe.workspace_bytes, recipe.optimization_level)
        note = (
            f"{builder.describe()} parsed {MODEL} and built an engine of it for compute capabilities {', '.join(builder.capabilities)} "
            f"({built.report.layers} layers); that is not the TensorRT of a Jetson, and its GPU "
            f"({job.claim.compute_capability or 'unknown'}) is not among them"
        )
        return Proof("parser", builder.describe(), outputs, (numbers, note), _LEFT)
