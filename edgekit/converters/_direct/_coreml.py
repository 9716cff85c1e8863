"""coremltools' TensorFlow front end on the TensorFlow original."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from edgekit.bundle import Artifact, TensorBinding
from edgekit.converters._direct._original import Function, function_of
from edgekit.converters._emitter import EmitJob, Emitted
from edgekit.converters.coreml import _emitter
from edgekit.converters.coreml._package import write_package
from edgekit.converters.coreml._toolchain import load
from edgekit.converters.sources._tensorflow import import_tensorflow, quiet_tensorflow
from edgekit.errors import BuildError

__all__ = ["convert"]

_ARRAY_TYPES = {65568: "float32", 65552: "float16", 131104: "int32"}  # ArrayFeatureType.ArrayDataType in FeatureTypes.proto


def convert(job: EmitJob) -> Emitted:
    """Write ``model.mlpackage``.

    Raises:
        BuildError: coremltools came into this process without TensorFlow, or gives another interface.
    """
    tf = import_tensorflow()  # before coremltools, which offers the front end only then
    tools = load()
    if not importlib.import_module("coremltools._deps")._HAS_TF_2:
        raise BuildError("coremltools", "it was loaded without TensorFlow in this process", "TensorFlow first", "")
    target = tools.target(job.claim.deployment_target)
    function = function_of(job)
    with tempfile.TemporaryDirectory(prefix="edgekit-coreml-") as folder:
        model = _convert(tools.ct, function, target, job.precision, Path(folder) / _emitter.PACKAGE)
        inputs, outputs = _bindings(model, function, job)
        size = write_package(model, job.directory / _emitter.PACKAGE)
    counts = _emitter._operator_counts(model)
    return Emitted(
        Artifact("coreml", _emitter.PACKAGE, job.precision, inputs, outputs),
        tools={"coremltools": tools.version, "tensorflow": str(tf.__version__)},
        report={"deployment_target": target.name, "operators": counts, "loops": counts.get("while_loop", 0), "bytes": size},
    )


def _convert(ct: Any, function: Function, target: Any, precision: str, package: Path) -> Any:
    passes = ct.PassPipeline()
    passes.remove_passes({_emitter._NARROWING})
    with _emitter._quiet(), quiet_tensorflow():
        return ct.convert(
            [function.concrete],
            source="tensorflow",
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            pass_pipeline=passes,
            minimum_deployment_target=target,
            skip_model_load=True,
            package_dir=str(package),
        )


def _bindings(model: Any, function: Function, job: EmitJob) -> tuple[tuple[TensorBinding, ...], tuple[TensorBinding, ...]]:
    """How the package's tensors map to the source's; coremltools calls a result after the tensor that the function returns."""
    description = model.get_spec().description
    results = [function.concrete.structured_outputs[key].name.partition(":")[0] for key in function.outputs]
    found = []
    for role, features, natives, specs in (
        ("inputs", description.input, function.inputs, job.source.signature.inputs),
        ("outputs", description.output, results, job.source.signature.outputs),
    ):
        types = {feature.name: _ARRAY_TYPES.get(feature.type.multiArrayType.dataType, "") for feature in features}
        if set(types) != set(natives) or not all(types.values()):
            raise BuildError("coremltools", f"the {role} came out as {types}", str(list(natives)), "")
        found.append(tuple(TensorBinding(spec.name, native, types[native]) for spec, native in zip(specs, natives, strict=True)))
    return found[0], found[1]
