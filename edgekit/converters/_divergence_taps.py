"""Inner tensors of an artifact by the source's names, one way for each engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Artifact, TensorBinding
from edgekit.converters._emitter import EmitJob
from edgekit.errors import BuildError
from edgekit.runtime.engines._coreml import native_inputs

if TYPE_CHECKING:
    import onnx

__all__ = ["Tapped", "reference_values", "tap"]

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Tapped:
    """Inner values of one run.

    Attributes:
        values: by the source's tensor name; several where the artifact has more than one tensor that may be it.
        how: what ran, where that is not the engine as the device runs it.
    """

    values: dict[str, list[np.ndarray]]
    how: str = ""


def tap(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """Run an artifact and keep what it computes on the way.

    Args:
        job: whose directory holds it.
        artifact: what is run.
        names: tensors of the source that are looked for.
        inputs: one sample.

    Raises:
        BuildError: inner tensors of this engine cannot be read. Whatever the engine raises.
    """
    found = _TAPS.get(artifact.engine)
    if found is None:
        raise BuildError(f"engine {artifact.engine}", "its inner tensors cannot be read", "", "compare its outputs")
    return found(job, artifact, names, inputs)


def reference_values(model: onnx.ModelProto, names: Sequence[str], inputs: Inputs) -> dict[str, np.ndarray]:
    """Values of inner tensors of an ONNX model through ONNX Runtime, unoptimised so that none is fused away."""
    import onnx
    import onnxruntime

    if not names:
        return {}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    have = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session: Any = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = zip(names, session.run(list(names), dict(inputs)), strict=True)
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def _onnx(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """An ONNX file keeps the names; a tensor that was lowered is ``<name>_fp16``."""
    return Tapped(_onnx_values(job.directory / artifact.path, names, inputs))


def _tensorrt(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """What NVIDIA's parser reads, through ONNX Runtime; the engine itself needs the GPU."""
    path = (job.directory / artifact.path).with_name("model.onnx")
    return Tapped(_onnx_values(path, names, inputs), "ONNX Runtime's run of the graph that TensorRT parses")


def _onnx_values(path: Path, names: Sequence[str], inputs: Inputs) -> dict[str, list[np.ndarray]]:
    import onnx

    built = onnx.load(path)
    there = {name for node in built.graph.node for name in node.output if name}
    forms = {name: [form for form in (name, f"{name}_fp16") if form in there] for name in names}
    values = reference_values(built, [form for each in forms.values() for form in each], inputs)
    return {name: [values[form] for form in each if form in values] for name, each in forms.items()}


def _openvino(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """The IR keeps the source's names at the ports that still exist; each becomes an output."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(job.directory / artifact.path))
    ports = {name: port for operation in model.get_ordered_ops() for port in operation.outputs() for name in port.get_names()}
    already = {name for port in model.outputs for name in port.get_names()}
    kept = [name for name in names if name in ports]
    model.add_outputs([name for name in kept if name not in already])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    result = compiled({binding.native_name: inputs[binding.name] for binding in artifact.inputs})
    return Tapped({name: [np.array(result[name])] for name in kept})


def _tflite(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """Tensors are found by the name scope of their node, outputs by the signature; delegates would compute several operators as one, so
    LiteRT's own kernels run.
    """
    from ai_edge_litert import interpreter as litert

    from edgekit.converters.tflite._scopes import scope_of, scopes_in

    path = job.directory / artifact.path
    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = litert.Interpreter(str(path), experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True, num_threads=1)
    # The runner itself is let go: it refers to the interpreter's memory, which then refuses to run.
    details, results = (interpreter.get_signature_runner().get_input_details(), interpreter.get_signature_runner().get_output_details())
    native = {details[binding.native_name]["index"]: _in_native_order(binding, inputs[binding.name]) for binding in artifact.inputs}
    for index, array in native.items():
        interpreter.resize_tensor_input(index, array.shape, strict=True)  # where the batch was left open
    interpreter.allocate_tensors()
    for index, array in native.items():
        interpreter.set_tensor(index, array)
    interpreter.invoke()
    computed = _computed_tensors(path)
    place = {scope_of(name): position for position, name in enumerate(names)}
    scopes: dict[str, list[np.ndarray]] = {}
    for detail in interpreter.get_tensor_details():
        known = [scope for scope in scopes_in(detail["name"]) if scope in place]
        if detail["index"] in computed and known:
            scopes.setdefault(max(known, key=place.__getitem__), []).append(_real(interpreter, detail))
    values = {name: scopes.get(scope_of(name), []) for name in names}
    for binding in artifact.outputs:
        values[binding.name] = [_real(interpreter, results[binding.native_name])]
    return Tapped(values, "LiteRT's kernels without delegates")


def _in_native_order(binding: TensorBinding, array: np.ndarray) -> np.ndarray:
    ordered = array if binding.perm is None else array.transpose(binding.perm)
    return np.ascontiguousarray(ordered.astype(binding.native_dtype))


def _computed_tensors(path: Path) -> set[int]:
    """Indices of the tensors that an operator of the main subgraph makes: constants carry names of nodes too."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    return {int(index) for operator in model.subgraphs[0].operators for index in operator.outputs}


def _real(interpreter: Any, detail: Mapping[str, Any]) -> np.ndarray:
    """The numbers that a tensor stands for: a quantised one is scaled back."""
    array: np.ndarray = interpreter.get_tensor(detail["index"])
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale) if scale else array


def _coreml(job: EmitJob, artifact: Artifact, names: Sequence[str], inputs: Inputs) -> Tapped:
    """The reference interpreter computes every tensor of the program; identifiers are the source's names where Core ML takes those."""
    from edgekit.converters.coreml._context import identifier
    from edgekit.converters.coreml_reference import Interpreter

    seen: dict[str, np.ndarray] = {}

    def keep(name: str, value: object) -> None:
        if isinstance(value, np.ndarray):
            seen[name] = value

    Interpreter(job.directory / artifact.path).run(native_inputs(artifact, inputs), keep)
    forms = {name: (identifier(name), f"{identifier(name)}_cast_fp16") for name in names}
    return Tapped(
        {name: [seen[form] for form in each if form in seen] for name, each in forms.items()}, "the Core ML reference interpreter"
    )


_TAPS: dict[str, Callable[[EmitJob, Artifact, Sequence[str], Inputs], Tapped]] = {
    "onnxruntime": _onnx,
    "openvino": _openvino,
    "tflite": _tflite,
    "coreml": _coreml,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}
