"""The RTX PC target: a TensorRT-RTX engine, built ahead of time and finished just in time on the user's GPU."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from edgekit.bundle import Artifact
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters._verify import run_artifact
from edgekit.converters.tensorrt._builder import RtxBuilder, rtx_builder
from edgekit.converters.tensorrt._kit import MODEL, RECIPE, run_lowered, write_kit
from edgekit.errors import EnvironmentMissingError
from edgekit.runtime._cuda import Cuda

__all__ = ["RtxEmitter"]

ENGINE = "model.engine"
_LEFT = ("just-in-time specialisation of the engine on the GPU", "parity with the golden samples", "latency and memory on the device")


class RtxEmitter:
    """Writes ``model.engine``, and ``model.onnx`` with ``recipe.json`` that it was built from; float32 falls back to ONNX Runtime."""

    engine = "tensorrt-rtx"
    static_only = False
    batch_probes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Write the kit and build the engine for every GPU family that TensorRT-RTX targets.

        Raises:
            EnvironmentMissingError: TensorRT-RTX is not installed.
            UnsupportedOperatorsError, BuildError: NVIDIA's parser or builder refused the model.
        """
        builder = rtx_builder()
        kit = write_kit(job)
        recipe, level = job.directory / RECIPE, kit.recipe.optimization_level
        built = builder.build(recipe, job.directory / ENGINE, kit.recipe.workspace_bytes, level)
        options = {"compute_capabilities": ",".join(builder.capabilities), "tensorrt_rtx": builder.version}
        artifact = Artifact("tensorrt-rtx", ENGINE, job.precision, kit.lowered.inputs, kit.lowered.outputs, options)
        report = kit.report | {"layers": built.report.layers, "engine_bytes": built.report.engine_bytes}
        report["engine_reproduced"] = same = self._reproduced(job, builder, kit.recipe.workspace_bytes, level)
        notes: tuple[str, ...] = (
            () if same else (f"{builder.describe()} gave other bytes in a second build of the same model: equal builds differ in {ENGINE}",)
        )
        return Emitted(artifact, kit.fallback, kit.tools | {"tensorrt-rtx": builder.version}, report, notes + kit.notes)

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run the engine where a GPU is; elsewhere the lowered graph with ONNX Runtime, and say that the engine did not run."""
        builder = rtx_builder()
        try:
            Cuda().close()
        except EnvironmentMissingError as exc:
            missing = exc.found
        else:
            outputs, engine = run_artifact(job.directory, emitted.artifact, job.source.signature, job.samples)
            return Proof("host", engine, outputs)
        inputs, outs = emitted.artifact.inputs, emitted.artifact.outputs
        outputs, runtime = run_lowered(job, Artifact("onnxruntime", MODEL, job.precision, inputs, outs))
        built = f"{builder.describe()} parsed {MODEL} and built {ENGINE} for compute capabilities {', '.join(builder.capabilities)}"
        notes = (
            f"the compared numbers are those of {MODEL} through {runtime} on the CPU, not of TensorRT-RTX",
            f"{built}; it did not run: {missing}",
        )
        return Proof("parser", builder.describe(), outputs, notes, _LEFT)

    def _reproduced(self, job: EmitJob, builder: RtxBuilder, workspace_bytes: int, level: int) -> bool:
        """Whether a second build gives the same bytes; a bundle promises equal bytes for equal input."""
        with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
            again = Path(scratch) / ENGINE
            builder.build(job.directory / RECIPE, again, workspace_bytes, level)
            digests = [hashlib.sha256(path.read_bytes()).digest() for path in (job.directory / ENGINE, again)]
        return digests[0] == digests[1]
