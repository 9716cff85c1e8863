"""Build the TensorFlow function, convert it, and prove the file."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import keyword
import re
from typing import Any, ClassVar

import numpy as np

from edgekit.bundle import Artifact, GoldenSample, TensorBinding, TensorSpec, write_file
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.converters._graph import Graph
from edgekit.converters._lowering import lowered_graph
from edgekit.converters._size_proof import prove_other_sizes
from edgekit.converters._verify import prove_on_host, run_artifact
from edgekit.converters.sources._tensorflow import import_tensorflow, quiet_tensorflow
from edgekit.converters.tflite._blocks import with_ordered_blocks
from edgekit.converters.tflite._carry import carried, carrier
from edgekit.converters.tflite._context import Context, ops
from edgekit.converters.tflite._edgetpu import check_edgetpu, edgetpu_notes
from edgekit.converters.tflite._fewer_axes import with_fewer_axes
from edgekit.converters.tflite._float16 import overflow_notes, too_large
from edgekit.converters.tflite._guard import hold_constants
from edgekit.converters.tflite._integer import bind_integers, configure, coverage, emitted_form
from edgekit.converters.tflite._layout import Order, channels_last, identity, is_free, permuted
from edgekit.converters.tflite._open_sizes import BATCHES, OpenSizeError, open_sizes
from edgekit.converters.tflite._scopes import scope_of
from edgekit.errors import BuildError, EdgeKitError, EngineError, EnvironmentMissingError, UsageError

__all__ = ["EMITTERS", "TfliteEmitter", "load_handlers", "operator_counts", "tflite_from_graph"]

_FILE = "model.tflite"
_SIGNATURE = "serving_default"
_FAMILIES = (
    "_math",
    "_integers",
    "_functions",
    "_nn",
    "_conv",
    "_pool",
    "_norm",
    "_sampling",
    "_blocks",
    "_tensor",
    "_padding",
    "_scatter",
    "_resize",
    "_reduction",
    "_ranking",
    "_recurrent",
    "_quantised",
)
# Operators that want channels last; an image that feeds only these, perhaps through element-wise operators, comes in that order.
_CHANNELS_LAST = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"})
_ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "BatchNormalization", "Neg", "Abs"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)


class TfliteEmitter:
    """ONNX to TensorFlow Lite through a front end of our own and TensorFlow's official converter; builtin operators only."""

    engine: ClassVar[str] = "tflite"
    static_only: ClassVar[bool] = True
    batch_probes: ClassVar[tuple[int, ...]] = BATCHES
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Write ``model.tflite``. With ``fp16`` the weights are float16 and are widened when the file is loaded.

        Raises:
            EnvironmentMissingError: TensorFlow is not installed.
            UnsupportedOperatorsError: all nodes without a handler, or that break a rule.
            BuildError: TensorFlow's converter failed.
        """
        load_handlers()
        edge = job.quantization is not None and job.profile.family == "coral"
        graph, (data, inputs, outputs) = _open_file(job) if job.source.probes else _fixed_file(job, edge)
        write_file(job.directory / _FILE, data)
        return Emitted(
            Artifact(
                self.engine, _FILE, job.precision, inputs, outputs, {"threads": str(job.profile.threads)} if job.profile.threads else {}
            ),
            tools={"tensorflow": importlib.metadata.version(_tensorflow_distribution())},
            report={
                "operators": operator_counts(data),
                "nodes": len(job.source.model.graph.node),
                **_integer_report(data, job.precision, edge),
            },
            notes=_carrier_notes(graph) + (edgetpu_notes(data) if edge else ()) + _float16_notes(job, graph),
        )

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run the file on every sample through LiteRT; one with open sizes at others too.

        Raises:
            UsageError: LiteRT does not run a file with open sizes at all of them.
        """
        if not job.source.settings.proofs:
            return self._proven(job, emitted)
        try:
            return self._proven(job, emitted)
        except EngineError as exc:
            # XNNPACK fails to reshape some graphs of which batch, height and width are open at once: the PP-OCRv4 detector, for one.
            step = "leave fewer sizes open, for instance give a number for the batch"
            raise UsageError("open sizes", f"LiteRT does not run this model at all of them: {exc.found}", "fewer open sizes", step) from exc

    def _proven(self, job: EmitJob, emitted: Emitted) -> Proof:
        proof = prove_on_host(job, emitted)
        if not job.source.probes:
            return proof

        def run(sample: GoldenSample) -> tuple[list[dict[str, np.ndarray]], str]:
            return run_artifact(job.directory, emitted.artifact, job.source.signature, [sample])

        return dataclasses.replace(proof, notes=(*proof.notes, prove_other_sizes(job, emitted, run)))


EMITTERS = {"tflite": TfliteEmitter()}

_File = tuple[bytes, tuple[TensorBinding, ...], tuple[TensorBinding, ...]]


def _fixed_file(job: EmitJob, edge: bool) -> tuple[Graph, _File]:
    graph = lowered_graph(job.source if job.quantization is None else emitted_form(job.quantization), ops)
    precision = "fp32" if job.precision == "fp16" and too_large(graph) else job.precision
    sparse = job.quantization is not None and job.quantization.compression is not None
    return graph, tflite_from_graph(graph, precision, integer_io=edge, sparse=sparse)


def _open_file(job: EmitJob) -> tuple[Graph, _File]:
    """The file of a model whose batch, height or width stays open.

    Raises:
        UsageError: the model, or its precision, does not allow that.
    """
    one = not job.source.settings.proofs
    thing, fixed = ("an open batch", "a fixed batch") if one else ("open sizes", "fixed sizes")
    next_step = "give --shape with a number for the first dimension" if one else "give --shape with numbers"
    if job.quantization is not None:
        raise UsageError("int8 or compressed weights", f"with {thing}", fixed, next_step)
    graphs = [dataclasses.replace(lowered_graph(each, ops), sample_of_open=not one) for each in job.source.probes]
    precision = "fp32" if job.precision == "fp16" and too_large(graphs[0]) else job.precision
    files, what = [tflite_from_graph(graph, precision) for graph in graphs], "the batch" if one else "open sizes"
    _, inputs, outputs = files[0]
    try:
        if any(others != [inputs, outputs] for _, *others in files):
            raise OpenSizeError(f"its layout depends on {what}")
        return graphs[0], (open_sizes([data for data, _, _ in files], what), inputs, outputs)
    except OpenSizeError as exc:
        raise UsageError(thing, f"this model cannot have {'one' if one else 'them'} in TensorFlow Lite: {exc}", fixed, next_step) from exc


def load_handlers() -> None:
    """Fill the registry; needs no TensorFlow."""
    for family in _FAMILIES:
        importlib.import_module(f"edgekit.converters.tflite.{family}")


def tflite_from_graph(
    graph: Graph, precision: str = "fp32", *, integer_io: bool = False, sparse: bool = False
) -> tuple[bytes, tuple[TensorBinding, ...], tuple[TensorBinding, ...]]:
    """The file's bytes, and how its inputs and outputs map to the graph's.

    Raises:
        EnvironmentMissingError, UnsupportedOperatorsError, BuildError: see `TfliteEmitter.emit`.
    """
    load_handlers()
    ops.check(graph)
    graph = with_ordered_blocks(graph)
    logical = with_fewer_axes(graph)
    graph = carried(logical)
    tf = import_tensorflow()
    names = _native_names(graph)
    orders = {spec.name: _input_order(graph, spec) for spec in graph.inputs}
    with quiet_tensorflow():
        module, function, result_orders = _function(tf, graph, logical, names, orders, precision)
    data = _convert(tf, module, function, precision, integer_io, sparse)
    _check_signature(data, {names[spec.name] for spec in (*graph.inputs, *graph.outputs)})
    inputs = tuple(_binding(spec, names, orders[spec.name]) for spec in graph.inputs)
    outputs = tuple(_binding(spec, names, result_orders[spec.name]) for spec in graph.outputs)
    return (data, bind_integers(data, inputs), bind_integers(data, outputs)) if integer_io else (data, inputs, outputs)


def _integer_report(data: bytes, precision: str, edge: bool) -> dict[str, object]:
    """What an int8 file computes in integers, and what of it the Edge TPU would run."""
    if precision != "int8":
        return {}
    return {"int8": coverage(data), **({"edgetpu": check_edgetpu(data)} if edge else {})}


def _float16_notes(job: EmitJob, graph: Graph) -> tuple[str, ...]:
    """What does not fit float16: weights, for a build that stores them in it, and tensors, for a GPU that computes in it."""
    kept = too_large(graph) if job.precision == "fp16" else ""
    return ((kept,) if kept else ()) + overflow_notes(job)


def _carrier_notes(graph: Graph) -> tuple[str, ...]:
    """What is computed with less precision than the source asks for."""
    tensors = {name for node in graph.nodes for name in (*node.inputs, *node.outputs) if name}
    wide = any(graph.types[name].dtype == "float64" for name in tensors)
    return (f"float64 is computed in {carrier('float64')}: TensorFlow Lite has no float64 kernels",) if wide else ()


def operator_counts(data: bytes) -> dict[str, int]:
    """How often each builtin operator stands in a file, by name."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    counts: dict[str, int] = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "UNKNOWN")
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _check_signature(data: bytes, wanted: set[str]) -> None:
    """Refuse a file whose signature lacks a name: without it no engine could address the tensor."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    found = {
        entry.name.decode()
        for signature in model.signatureDefs or ()
        if signature.signatureKey.decode() == _SIGNATURE
        for entry in (*(signature.inputs or ()), *(signature.outputs or ()))
    }
    if missing := wanted - found:
        raise BuildError(
            "target tflite", f"the converted file has no signature name for {', '.join(sorted(missing))}", "", "report this model"
        )


# --- names and orders ------------------------------------------------------------------------------------------------------------------------


def _native_names(graph: Graph) -> dict[str, str]:
    """Signature keys: the source's names where TensorFlow takes them, else with other characters replaced; unique."""
    taken: set[str] = set()
    names: dict[str, str] = {}
    for spec in (*graph.inputs, *graph.outputs):
        if spec.name in names:
            continue
        plain = re.sub(r"[^A-Za-z0-9_]", "_", spec.name)
        plain = plain if plain[:1].isalpha() else f"t_{plain}"
        if plain == "self" or keyword.iskeyword(plain):  # they become argument names of a Python function
            plain += "_"
        found, count = plain, 1
        while found in taken:
            count += 1
            found = f"{plain}_{count}"
        taken.add(found)
        names[spec.name] = found
    return names


def _input_order(graph: Graph, spec: TensorSpec) -> Order:
    """Channels last for an image that only operators with that order read, else logical."""
    rank = len(spec.shape)
    if rank == 4 and spec.dtype == "float32" and _wants_channels_last(graph, spec.name, spec.shape):
        return channels_last(rank)
    return identity(rank)


def _wants_channels_last(graph: Graph, name: str, shape: tuple[Any, ...]) -> bool:
    """True when every path from a tensor leads through element-wise operators to a channels-last one."""
    consumers = graph.consumers(name)
    if not consumers or any(output.name == name for output in graph.outputs):
        return False
    return all(
        node.op in _CHANNELS_LAST
        or (node.op in _ELEMENTWISE and graph.types[node.outputs[0]].shape == shape and _wants_channels_last(graph, node.outputs[0], shape))
        for node in consumers
    )


def _binding(spec: TensorSpec, names: dict[str, str], order: Order) -> TensorBinding:
    return TensorBinding(spec.name, names[spec.name], spec.dtype, None if order == identity(len(spec.shape)) else order)


# --- TensorFlow ------------------------------------------------------------------------------------------------------------------------------


def _tensorflow_distribution() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            return name
    raise EnvironmentMissingError.for_extra("target tflite", "tensorflow", "convert")


def _function(
    tf: Any, graph: Graph, logical: Graph, names: dict[str, str], orders: dict[str, Order], precision: str
) -> tuple[Any, Any, dict[str, Order]]:
    """A concrete function of the whole graph, the module that owns it, and the order of every output."""
    result_orders: dict[str, Order] = {}

    def build(*tensors: Any) -> dict[str, Any]:
        context = Context(tf, graph, logical, int8=precision == "int8")
        for spec, tensor in zip(graph.inputs, tensors, strict=True):
            context.put(spec.name, tensor, orders[spec.name])
        for node in graph.nodes:
            _emit_node(node, context)
        results = {}
        for spec in graph.outputs:
            lies, plain = context.order(spec.name), identity(len(spec.shape))
            result_orders[spec.name] = plain if is_free(context.shape(spec.name), lies, plain) else lies
            # An output under a name of its own, also where it is an input or another output.
            results[names[spec.name]] = tf.identity(context.get(spec.name, result_orders[spec.name]))
        hold_constants(tf)
        return results

    signature = [
        tf.TensorSpec(permuted(graph.types[spec.name].shape, orders[spec.name]), spec.dtype, names[spec.name]) for spec in graph.inputs
    ]
    module = tf.Module()
    module.function = tf.function(build, input_signature=signature, autograph=False)
    return module, module.function.get_concrete_function(), result_orders


def _emit_node(node: Any, context: Context) -> None:
    found = ops.find(node.op, node.opset)
    assert found is not None  # `check` passed
    if all(0 in context.shape(name) for name in node.outputs if name):
        for name in filter(None, node.outputs):  # nothing to compute, and not every kernel takes an empty tensor
            context.put_constant(name, np.zeros(context.shape(name), context.dtype(name)))
        return
    try:
        with context.tf.name_scope(scope_of(next(filter(None, node.outputs)))):  # the proof finds the file's tensors by it
            found.handler(node, context)
    except EdgeKitError:
        raise
    except Exception as exc:
        raise BuildError(f"node {node.name!r} ({node.op})", f"TensorFlow refused it: {_line(exc)}", "", "report this model") from exc


def _convert(tf: Any, module: Any, function: Any, precision: str, integer_io: bool = False, sparse: bool = False) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.canonicalizing_inf_as_min_max_float = False  # an infinite constant stays infinite
    if precision == "fp16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        configure(tf, converter, integer_io=integer_io)
    if sparse:  # tensors that are mostly zeros are stored without them
        converter.optimizations = [*converter.optimizations, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    try:
        with quiet_tensorflow() as written:
            data = bytes(converter.convert())
    except Exception as exc:
        cause = next((line for line in written if "error:" in line), _line(exc))
        raise BuildError(
            "target tflite", f"TensorFlow's converter failed: {' '.join(cause.split())[:300]}", "", "report this model"
        ) from exc
    return data


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
