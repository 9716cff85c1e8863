"""OpenVINO's TensorFlow front end on the TensorFlow original, by way of a SavedModel."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

from edgekit.bundle import Artifact
from edgekit.converters._direct._original import function_of
from edgekit.converters._emitter import EmitJob, Emitted
from edgekit.converters._onnxruntime import plain_bindings
from edgekit.converters.sources._tensorflow import import_tensorflow, quiet_tensorflow
from edgekit.errors import BuildError, EnvironmentMissingError

__all__ = ["convert"]


def convert(job: EmitJob) -> Emitted:
    """Write ``model.xml`` and ``model.bin``.

    `read_model` is used, not `convert_model`: that one reports each use to a telemetry server when openvino-telemetry is installed.

    Raises:
        EnvironmentMissingError: OpenVINO is not installed.
        BuildError: OpenVINO lost an input or output.
    """
    try:
        import openvino
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("target openvino", "openvino", "openvino") from exc
    tf = import_tensorflow()
    function = function_of(job)
    with tempfile.TemporaryDirectory(prefix="edgekit-openvino-") as folder:
        with quiet_tensorflow():
            tf.saved_model.save(function.module, folder, signatures={"serving_default": function.concrete})
        model = openvino.Core().read_model(Path(folder))
    signature = job.source.signature
    for role, ports, natives, specs in (
        ("inputs", model.inputs, function.inputs, signature.inputs),
        ("outputs", model.outputs, function.outputs, signature.outputs),
    ):
        by_name = {name: port for port in ports for name in port.get_names()}
        if len(ports) != len(specs) or not all(native in by_name for native in natives):
            raise BuildError("OpenVINO", f"the {role} came out as {sorted(by_name)}", f"{list(natives)}", "")
        for native, spec in zip(natives, specs, strict=True):
            by_name[native].set_names({spec.name})
    for index, operation in enumerate(model.get_ordered_ops()):  # TensorFlow numbers its functions by process
        operation.set_friendly_name(f"{operation.get_type_name()}_at_{index}")
    openvino.save_model(model, str(job.directory / "model.xml"), compress_to_fp16=job.precision == "fp16")
    options = {"threads": str(job.profile.threads)} if job.profile.threads else {}
    artifact = Artifact("openvino", "model.xml", job.precision, *plain_bindings(signature), options)
    tools = {name: importlib.metadata.version(name) for name in ("openvino",)} | {"tensorflow": str(tf.__version__)}
    kinds = [operation.get_type_name() for operation in model.get_ordered_ops()]
    return Emitted(artifact, tools=tools, report={"operations": len(kinds), "loops": kinds.count("Loop") + kinds.count("TensorIterator")})
