"""The OpenVINO target: one IR (``model.xml``, ``model.bin``) for CPU, GPU and NPU."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Artifact
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters._onnxruntime import plain_bindings
from edgekit.converters._openvino_reading import read_for_openvino
from edgekit.converters._verify import prove_on_host
from edgekit.errors import BuildError, EnvironmentMissingError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["EMITTERS", "OpenVinoEmitter"]


class OpenVinoEmitter:
    """Writes an IR; fp16 means weights stored in float16, computed in what the device has (see the engine). Dynamic dimensions stay."""

    engine = "openvino"
    static_only = False
    batch_probes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Write ``model.xml`` and ``model.bin``.

        `read_model` is used, not `convert_model`: that one reports each use to a telemetry server when openvino-telemetry is installed.

        Raises:
            EnvironmentMissingError: OpenVINO is not installed.
            UnsupportedOperatorsError: nodes that OpenVINO does not take, or computes wrongly, and that cannot be lowered.
            BuildError: OpenVINO cannot write the model, or not read it for a reason that names no node.
        """
        try:
            import openvino
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("target openvino", "openvino", "openvino") from exc
        path = job.directory / "model.xml"
        model, lowered = read_for_openvino(job.written.model)
        _rename_generated(model, lowered.model)
        try:
            openvino.save_model(model, str(path), compress_to_fp16=job.precision == "fp16")
        except Exception as exc:
            raise BuildError("target openvino", f"OpenVINO cannot write the model: {one_line(exc)}", "", "try onnxruntime") from exc
        options = {"threads": str(job.profile.threads)} if job.profile.threads else {}
        inputs, outputs = plain_bindings(job.source.signature)
        artifact = Artifact("openvino", "model.xml", job.precision, inputs, outputs, options)
        notes = ("fp16: weights are stored in float16; a device without float16 arithmetic computes in float32",)
        return Emitted(
            artifact,
            tools={"openvino": importlib.metadata.version("openvino")},
            report={"operations": len(model.get_ordered_ops())} | ({"lowered": list(lowered.expanded)} if lowered.expanded else {}),
            notes=notes if job.precision == "fp16" else (),
        )

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run it with OpenVINO on this machine's CPU."""
        return prove_on_host(job, emitted)


def _rename_generated(model: Any, source: onnx.ModelProto) -> None:
    """Name the operations that OpenVINO made up by their place in the graph.

    It numbers them from a counter of the process (``Constant_37991``), so a second conversion in one process would write other bytes.
    Names that come from the source stay: profiles of the device speak of them.
    """
    kept = {node.name for node in source.graph.node} | {name for node in source.graph.node for name in node.output}
    kept |= {value.name for value in (*source.graph.input, *source.graph.output)} | {tensor.name for tensor in source.graph.initializer}
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() not in kept:
            operation.set_friendly_name(f"{operation.get_type_name()}_at_{index}")


EMITTERS = {"openvino": OpenVinoEmitter()}
