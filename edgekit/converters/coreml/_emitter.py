"""The Core ML emitter: build the program, convert, write the package, and prove the saved file."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Artifact, GoldenSample
from edgekit.converters._emitter import EmitJob, Emitted, NormalisedModel, Proof
from edgekit.converters._graph import Graph
from edgekit.converters._lowering import lower_model
from edgekit.converters._open_sizes import batch_symbols, bounds
from edgekit.converters._ranges import FLOAT16_FLAG, FLOAT16_MAX, Range, activation_ranges, largest_magnitude
from edgekit.converters._size_proof import prove_other_sizes
from edgekit.converters._source import graph_from_onnx
from edgekit.converters.coreml._context import ops
from edgekit.converters.coreml._open_sizes import BATCHES, MAX_BATCH, OpenSizeError, open_sizes
from edgekit.converters.coreml._package import write_package
from edgekit.converters.coreml._precision import Float16Selector
from edgekit.converters.coreml._program import MilProgram, build_program
from edgekit.converters.coreml._quantised import compressed
from edgekit.converters.coreml._toolchain import Toolchain, load
from edgekit.converters.quantization import with_float_constants
from edgekit.errors import BuildError, UnsupportedOperatorsError, UsageError
from edgekit.runtime.engines._coreml import CoreMLEngine, logical_outputs, native_inputs

if TYPE_CHECKING:
    import onnx

    from edgekit.converters.coreml_reference import Interpreter

__all__ = ["PACKAGE", "CoreMLEmitter"]

PACKAGE = "model.mlpackage"
_LEFT_TO_DEVICE = "on-device parity with Core ML's own runtime: edgekit verify on macOS, or the golden samples in the app"
# Runs with float16 only and narrows integer operands of gather and top-k to 16 bits without knowing their values: -1 came back as 65535
# (coremltools 9.0; tests/converters/coreml/test_ops.py, Gather_int).
_NARROWING = "common::add_int16_cast"
_REFERENCE = "edgekit Core ML reference interpreter (numpy)"
_LISTED = 10  # tensors and operators that a report names; the rest is counted


class CoreMLEmitter:
    """Writes ``model.mlpackage``; see `edgekit.converters._emitter.Emitter`."""

    engine = "coreml"
    static_only = True
    batch_probes: tuple[int, ...] = BATCHES
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def emit(self, job: EmitJob) -> Emitted:
        """Convert the normalised model; raises as `Emitter.emit` does."""
        tools = load()
        target = tools.target(job.claim.deployment_target)
        source = job.source
        if job.quantization is not None:
            source = replace(job.quantization.model, model=with_float_constants(job.quantization.model.model))
        built, written = _program(job, source, tools, target)
        # What is not int8 is float16, as the Neural Engine wants it.
        ranges = activation_ranges(written, job.samples) if job.precision != "fp32" else {}
        selector = Float16Selector(built.context, ranges) if job.precision != "fp32" else None
        with tempfile.TemporaryDirectory(prefix="edgekit-coreml-") as folder:
            model = _convert(tools, built, target, selector, Path(folder) / PACKAGE)
            model, stored = compressed(tools.ct, model, job.quantization, _quiet)
            _check_interface(model, built)
            size = write_package(model, job.directory / PACKAGE)
        artifact = Artifact("coreml", PACKAGE, job.precision, built.inputs, built.outputs)
        report: dict[str, object] = {
            "deployment_target": target.name,
            "specification_version": int(model.get_spec().specificationVersion),
            "operators": _operator_counts(model),
            "bytes": size,
            **stored,
        }
        notes = _carrier_notes(built.context.graph)
        if selector is not None:
            facts, more = _float16_report(selector, ranges)
            report.update(facts)
            notes += more
        return Emitted(artifact, tools={"coremltools": tools.version}, report=report, notes=notes)

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run the saved package: on macOS Core ML itself, elsewhere the reference interpreter, which reads nothing but the package."""
        path = job.directory / emitted.artifact.path
        if platform.system() == "Darwin":
            engine = CoreMLEngine(path, emitted.artifact, job.source.signature)
            try:
                outputs = [engine.run(sample.inputs) for sample in job.samples]
                described = engine.describe()
            finally:
                engine.close()
            return Proof("host", f"Core ML ({described['os']}, {described['device']})", outputs)
        from edgekit.converters.coreml_reference import Interpreter

        saved = Interpreter(path)
        outputs = []
        for sample in job.samples:
            outputs.append(_run(saved, job, emitted, sample))
        notes: tuple[str, ...] = ()
        if job.source.probes:
            notes = (prove_other_sizes(job, emitted, lambda sample: ([_run(saved, job, emitted, sample)], _REFERENCE)),)
        return Proof(
            "reference",
            _REFERENCE,
            outputs,
            notes=(
                *notes,
                "the saved .mlpackage was re-read and evaluated by an independent interpreter; Core ML itself did not run",
            ),
            left_to_device=(_LEFT_TO_DEVICE,),
        )


def _run(saved: Interpreter, job: EmitJob, emitted: Emitted, sample: GoldenSample) -> dict[str, np.ndarray]:
    """Logical outputs of the saved package for a sample."""
    return logical_outputs(emitted.artifact, job.source.signature, saved.run(native_inputs(emitted.artifact, sample.inputs)))


def _program(job: EmitJob, source: NormalisedModel, tools: Toolchain, target: Any) -> tuple[MilProgram, onnx.ModelProto]:
    """The program of a model, and the ONNX model whose tensors it holds; where sizes stay open, made from several.

    Raises:
        UsageError: the model, or its precision, does not allow open sizes.
    """
    int8 = job.precision == "int8"
    if not job.source.probes:
        graph, model = _lowered(source)
        return build_program(graph, tools, target, int8=int8), model
    one = not job.source.settings.proofs
    thing, fixed = ("an open batch", "a fixed batch") if one else ("open sizes", "fixed sizes")
    next_step = "give --shape with a number for the first dimension" if one else "give --shape with numbers"
    if int8 or job.quantization is not None:
        raise UsageError("int8 or compressed weights", f"with {thing}", fixed, next_step)
    graphs = [replace(_lowered(each)[0], sample_of_open=not one) for each in job.source.probes]
    programs = [build_program(graph, tools, target) for graph in graphs]
    try:
        return open_sizes(programs, _open_axes(job, programs[0]), "the batch" if one else "open sizes", tools, target), source.model
    except OpenSizeError as exc:
        raise UsageError(thing, f"this model cannot have {'one' if one else 'them'} in Core ML: {exc}", fixed, next_step) from exc


def _open_axes(job: EmitJob, program: MilProgram) -> dict[tuple[str, int], tuple[int, int]]:
    """Shortest and longest length of each open dimension, by native name of the input and axis."""
    signature, settings = job.source.signature, job.source.settings
    batch, found = batch_symbols(signature), {}
    for bound, spec in zip(program.inputs, signature.inputs, strict=True):
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                seen = [sample.inputs[spec.name].shape[axis] for sample in job.samples]
                found[bound.native_name, axis] = (1, max(MAX_BATCH, *seen)) if dim in batch else bounds(settings, dim, seen)
    return found


def _lowered(source: NormalisedModel) -> tuple[Graph, onnx.ModelProto]:
    """The graph in operators that have handlers, also as a model that the range scan can run.

    Raises:
        UnsupportedOperatorsError: nodes that cannot be expressed so.
    """
    lowered = lower_model(source.model, ops.refusal, static=True)
    if lowered.refused:
        raise UnsupportedOperatorsError(ops.target, lowered.refused)
    return graph_from_onnx(lowered.model, source.signature), lowered.model


def _flexible_inputs(ct: Any, built: MilProgram) -> list[Any] | None:
    """Ranges of the inputs, where a length is open; None where none is."""
    if not built.open_axes:
        return None
    given = []
    for bound in built.inputs:
        axes = built.open_axes.get(bound.native_name, {})
        shape = [
            ct.RangeDim(*axes[place], default=axes[place][0]) if place in axes else size for place, size in enumerate(built.shape_of(bound))
        ]
        given.append(ct.TensorType(name=bound.native_name, shape=ct.Shape(shape), dtype=np.dtype(bound.native_dtype).type))
    return given


def _convert(tools: Toolchain, built: MilProgram, target: Any, selector: Float16Selector | None, package: Path) -> Any:
    """Run coremltools' passes; it writes a package of its own to ``package``, which `write_package` reads."""
    ct = tools.ct
    passes = ct.PassPipeline()
    passes.remove_passes({_NARROWING})
    precision = ct.precision.FLOAT32 if selector is None else ct.transform.FP16ComputePrecision(op_selector=selector)
    with _quiet():
        try:
            return ct.convert(
                built.program,
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=precision,
                pass_pipeline=passes,
                minimum_deployment_target=target,
                inputs=_flexible_inputs(ct, built),
                skip_model_load=True,
                package_dir=str(package),
            )
        except Exception as exc:
            raise BuildError(
                "Core ML",
                f"coremltools cannot convert the program: {exc}",
                "",
                "report it with the model; meanwhile build for another engine",
            ) from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools' progress bars off stderr, and its advice (NumPy overflow in float16 constants, …) out of the log."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_interface(model: Any, built: MilProgram) -> None:
    """The converted model must have the names, order and types that the bindings promise."""
    array_types = {65568: "float32", 65552: "float16", 131104: "int32"}  # ArrayFeatureType.ArrayDataType in FeatureTypes.proto
    description = model.get_spec().description
    for role, bindings, features in (("inputs", built.inputs, description.input), ("outputs", built.outputs, description.output)):
        found = [(feature.name, array_types.get(feature.type.multiArrayType.dataType, "?")) for feature in features]
        wanted = [(binding.native_name, binding.native_dtype) for binding in bindings]
        if found != wanted:
            raise BuildError("Core ML", f"coremltools gave the model {role} {found}", str(wanted), "report it with the model")


def _operator_counts(model: Any) -> dict[str, int]:
    """MIL operators of the saved program by type, constants excluded."""
    counts: dict[str, int] = {}
    for function in model.get_spec().mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type != "const":
                    counts[operation.type] = counts.get(operation.type, 0) + 1
    return dict(sorted(counts.items()))


def _carrier_notes(graph: Graph) -> tuple[str, ...]:
    """What is computed with less than the source asks for."""
    computed = {graph.types[name].dtype for node in graph.nodes for name in node.outputs if name}
    given = {spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    notes = []
    if "float64" in computed | given:
        notes.append("float64 is computed in float32: Core ML has no float64 operators")
    if wide := sorted(given & {"int64", "uint32", "uint64"}):
        notes.append(f"{', '.join(wide)} inputs and outputs are carried as int32, Core ML's widest integer; an input beyond it is refused")
    return tuple(notes)


def _float16_report(selector: Float16Selector, ranges: Mapping[str, Range]) -> tuple[dict[str, object], tuple[str, ...]]:
    """What the range scan found, for the report and for people."""
    wide = sorted(
        (name for name, limits in ranges.items() if largest_magnitude(limits) > FLOAT16_FLAG),
        key=lambda n: (-largest_magnitude(ranges[n]), n),
    )
    kept = [f"{kind} {name} ({tensor} reaches {magnitude:.3g})" for name, (kind, tensor, magnitude) in sorted(selector.kept.items())]
    facts: dict[str, object] = {
        "fp16_scanned_tensors": len(ranges),
        "fp16_kept_in_fp32": kept,
        "fp16_wide_tensors": {name: float(f"{largest_magnitude(ranges[name]):.4g}") for name in wide[:_LISTED]},
    }
    notes = []
    if not ranges:
        notes.append("no samples were given, so no range scan was made: float16 overflow was not looked for")
    if kept:
        more = f" and {len(kept) - _LISTED} more" if len(kept) > _LISTED else ""
        notes.append(
            f"{len(kept)} operator(s) stay in float32, because values, or squares and exponentials inside them, exceed {FLOAT16_MAX:.0f}: {', '.join(kept[:_LISTED])}{more}"
        )
    if wide:
        notes.append(
            f"{len(wide)} tensor(s) exceed {FLOAT16_FLAG:.0f}, where float16 is coarser than 0.25; the largest is {wide[0]!r} "
            f"with {largest_magnitude(ranges[wide[0]]):.4g}"
        )
    return facts, tuple(notes)
