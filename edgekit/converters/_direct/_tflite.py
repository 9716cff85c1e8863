"""TensorFlow's TFLite converter on the TensorFlow original; builtin operators only."""

from __future__ import annotations

import importlib.metadata

from edgekit.bundle import Artifact, TensorBinding, write_file
from edgekit.converters._direct._original import function_of
from edgekit.converters._emitter import EmitJob, Emitted
from edgekit.converters.sources._tensorflow import import_tensorflow
from edgekit.converters.tflite import _emit

__all__ = ["convert"]


def convert(job: EmitJob) -> Emitted:
    """Write ``model.tflite``.

    Raises:
        BuildError: the converter failed.
    """
    tf = import_tensorflow()
    function = function_of(job)
    data = _emit._convert(tf, function.module, function.concrete, job.precision)
    _emit._check_signature(data, {*function.inputs, *function.outputs})
    write_file(job.directory / _emit._FILE, data)
    signature = job.source.signature
    artifact = Artifact(
        "tflite",
        _emit._FILE,
        job.precision,
        tuple(TensorBinding(spec.name, name, spec.dtype) for spec, name in zip(signature.inputs, function.inputs, strict=True)),
        tuple(TensorBinding(spec.name, name, spec.dtype) for spec, name in zip(signature.outputs, function.outputs, strict=True)),
        {"threads": str(job.profile.threads)} if job.profile.threads else {},
    )
    tools = {"tensorflow": importlib.metadata.version(_emit._tensorflow_distribution())}
    counts = _emit.operator_counts(data)
    return Emitted(artifact, tools=tools, report={"operators": counts, "loops": counts.get("WHILE", 0)})
