"""The ONNX Runtime target: portable ONNX at the opset that the device's runtime reads.

No hardware-specific optimisation is written into the file: ONNX Runtime's extended and layout levels are bound to the machine that made
them (onnxruntime#9200), and the session on the device does them again at load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.bundle import Artifact, Signature, TensorBinding
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters._normalise import MAX_OPSET
from edgekit.converters._verify import prove_on_host
from edgekit.errors import UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["EMITTERS", "OnnxRuntimeEmitter", "plain_bindings"]


class OnnxRuntimeEmitter:
    """Writes ``model.onnx``; dynamic dimensions stay."""

    engine = "onnxruntime"
    static_only = False
    batch_probes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Write ``model.onnx``; fp16 is in the graph, inputs and outputs keep the source's dtypes.

        Raises:
            BuildError: the result is not a valid model.
        """
        import onnx

        from edgekit.converters._opset import ir_version_for
        from edgekit.converters._precision import lower_to_fp16

        ceiling = job.claim.opset_max or MAX_OPSET
        model, notes = _at_opset(job.written.model, job.written.opset, ceiling)
        report: dict[str, object] = {}
        if job.precision == "fp16":
            model, report["fp16"] = lower_to_fp16(model, job.samples)
        written = onnx.ModelProto()
        written.CopyFrom(model)
        opset = next(entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx"))
        written.ir_version = min(written.ir_version, max(ir_version_for(opset), ir_version_for(min(ceiling, MAX_OPSET))))
        report["opset"] = opset
        (job.directory / "model.onnx").write_bytes(written.SerializeToString(deterministic=True))
        options = {"threads": str(job.profile.threads)} if job.profile.threads else {}
        inputs, outputs = plain_bindings(job.source.signature)
        artifact = Artifact("onnxruntime", "model.onnx", job.precision, inputs, outputs, options)
        return Emitted(artifact, tools={"onnx": onnx.__version__}, report=report, notes=notes)

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run it with ONNX Runtime here."""
        return prove_on_host(job, emitted)


def _at_opset(model: onnx.ModelProto, opset: int, ceiling: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model at the device's opset, and what to say; newer operators are lowered, and the opset only stays where that is not possible."""
    from edgekit.converters._lowering import lower_until
    from edgekit.converters._opset import to_opset

    if opset <= ceiling:
        return model, ()
    try:
        return lower_until(model, lambda made: to_opset(made, ceiling))[0], ()
    except UnsupportedOperatorsError as exc:
        found = ", ".join(sorted({op for _, op, _, _ in exc.nodes}))
        return model, (f"the device needs an ONNX Runtime that reads opset {opset}: {found} cannot be written at opset {ceiling}",)


def plain_bindings(signature: Signature) -> tuple[tuple[TensorBinding, ...], tuple[TensorBinding, ...]]:
    """Bindings of an artifact that keeps the source's names, dtypes and axis order."""
    return (
        tuple(TensorBinding(spec.name, spec.name, spec.dtype) for spec in signature.inputs),
        tuple(TensorBinding(spec.name, spec.name, spec.dtype) for spec in signature.outputs),
    )


EMITTERS = {"onnxruntime": OnnxRuntimeEmitter()}
