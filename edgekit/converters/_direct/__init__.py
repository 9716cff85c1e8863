"""Keras models and SavedModels straight through the vendors' own TensorFlow converters, where those give a model that is right.

ONNX stays the judge: what a vendor's converter makes is run and compared like every artifact, and where it fails, is wrong, or is known to be slow, the
target's ONNX path makes the artifact and the notes say why.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil

from edgekit.converters._emitter import EmitJob, Emitted, Emitter
from edgekit.converters._large import emit_large
from edgekit.converters._verify import judge
from edgekit.errors import BuildError, EnvironmentMissingError
from edgekit.runtime.engines import one_line

__all__ = ["DIRECT_MODULES", "emit", "is_direct"]

DIRECT_MODULES = {
    "tflite": "edgekit.converters._direct._tflite",
    "openvino": "edgekit.converters._direct._openvino",
    "coreml": "edgekit.converters._direct._coreml",
}
"""Engine to the module whose ``convert(job)`` writes the artifact from the TensorFlow original."""


def is_direct(engine: str, job: EmitJob) -> bool:
    """Whether the vendor's converter is tried: there is an original, and nothing was written into the ONNX graph that it does not have."""
    return engine in DIRECT_MODULES and job.source.native is not None and job.quantization is None and job.precision in ("fp32", "fp16")


def emit(emitter: Emitter, job: EmitJob) -> Emitted:
    """`Emitter.emit`; by the vendor's own TensorFlow converter where that gives the source's numbers, around protobuf for a model beyond 2 GB.

    Raises:
        As `Emitter.emit`.
    """
    if job.source.weights is not None:
        return emit_large(emitter.engine, job)
    if not is_direct(emitter.engine, job):
        return emitter.emit(job)
    try:
        emitted: Emitted = importlib.import_module(DIRECT_MODULES[emitter.engine]).convert(job)
        _refuse_loops(job, emitted)
        proof = emitter.prove(job, emitted)
        if proof.outputs:
            judge(emitted.artifact.path, job.samples, proof.outputs, job.source.signature, job.precision)
    except EnvironmentMissingError:
        raise
    except Exception as exc:  # noqa: BLE001 - a vendor's converter raises anything; the ONNX path is there for it
        reason = one_line(exc)
    else:
        note = f"converted from the TensorFlow model by {emitter.engine}'s own converter"
        return dataclasses.replace(emitted, report={**emitted.report, "path": "tensorflow"}, notes=(*emitted.notes, note))
    for entry in job.directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    emitted = emitter.emit(job)
    note = f"converted through ONNX: {emitter.engine}'s own TensorFlow converter was tried first, and {reason}"
    return dataclasses.replace(emitted, report={**emitted.report, "path": "onnx", "tensorflow": reason}, notes=(*emitted.notes, note))


def _refuse_loops(job: EmitJob, emitted: Emitted) -> None:
    """Set aside what runs a recurrent layer as a loop over its steps, where ONNX has one operator for it.

    Measured with Keras' LSTM (benchmarks/tensorflow_sources.py): TFLite takes twice as long with the loop, OpenVINO five times.

    Raises:
        BuildError: there are such loops.
    """
    loops = emitted.report.get("loops")
    if loops and not any(node.op_type in ("Loop", "Scan") for node in job.source.model.graph.node):
        raise BuildError(emitted.artifact.path, f"it has {loops} loop(s) over steps", "recurrent operators, which run faster", "")
