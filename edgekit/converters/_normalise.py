"""Normalisation: one ONNX form that every target reads, never further from the original than rounding.

Every step has a stable id, the steps are tried as ordered pipelines from the most to the least simplified, and a pipeline's result is taken
only after ONNX Runtime gave the same outputs for it as for the original on seeded random inputs (simplifiers are known to break models:
OnnxSlim#118, onnx-simplifier#271).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from msgspec import structs

from edgekit.bundle import Dim, Signature, TensorSpec
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._folding import fold_constants
from edgekit.converters._source import SourceModel
from edgekit.converters._version_cap import MAX_IR_VERSION, MAX_OPSET
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import EnvironmentMissingError, ModelError, ShapeRequiredError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "TARGET_OPSET", "normalise", "resolve_shapes"]

TARGET_OPSET = 13
"""Older models are lifted to this: from 13 on Softmax works on one axis, and axes of Squeeze, Unsqueeze and ReduceSum are inputs."""

_SEED = 20_240_601
_TOLERANCE = 1e-4  # of the reference's largest magnitude: float32 rounding of a reordered deep graph, far below a wrong rewrite
_TRIAL_SIZES = (64, 48, 32, 224, 16, 8, 1)  # for dynamic dimensions; 224 and multiples of 32 are what image networks take, 48 text lines
_INT_LIMITS = (256, 8, 2, 1)  # exclusive; integer inputs may be indices into small tables

_FLOOR = 1e-2  # smallest magnitude that the tolerance scales with: below it float32 rounding of an exponential is not relative any more
_REJECT_ALL: tuple[str, ...] = ("common::reject_onnxslim",)
_KEEP_LARGE: tuple[str, ...] = ("common::keep_large",)

_log = logging.getLogger(__name__)

Pass = Callable[["onnx.ModelProto"], "onnx.ModelProto"]
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Trial:
    """The original's answers on one set of inputs."""

    inputs: Inputs
    outputs: list[np.ndarray]


# --- shapes --------------------------------------------------------------------------------------------------------------------------------


def resolve_shapes(signature: Signature, shapes: Mapping[str, Sequence[Dim]], static: bool) -> dict[str, tuple[Dim, ...]]:
    """Shape of every input after the user's ``--shape`` flags.

    A symbol that gets a size in one input has it in all. With ``static`` a symbolic first dimension (the batch) that nothing else decides
    is 1.

    Args:
        signature: the source's.
        shapes: input name to sizes; -1, or a dimension's own symbol, leaves it as it is.
        static: every dimension must come out as a number.

    Raises:
        UnknownNameError: a shape for an input that does not exist.
        UsageError: wrong rank, a size below 1, or one that contradicts a fixed dimension or another flag.
        ShapeRequiredError: dimensions that stay unknown although ``static``; names the flag to type.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise UnknownNameError(f"--shape {name}=…", name, specs)
        _match(specs[name], tuple(shape), sizes)
    if static:
        for spec in signature.inputs:
            if spec.shape and isinstance(spec.shape[0], str):
                sizes.setdefault(spec.shape[0], (1, spec.name))
    resolved = {
        spec.name: tuple(sizes[dim][0] if isinstance(dim, str) and dim in sizes else dim for dim in spec.shape) for spec in signature.inputs
    }
    if static:
        _require_static(signature, resolved)
    return resolved


def _match(spec: TensorSpec, shape: tuple[Dim, ...], sizes: dict[str, tuple[int, str]]) -> None:
    flag = f"--shape {spec.name}={','.join(map(str, shape))}"
    if len(shape) != len(spec.shape):
        raise UsageError(flag, f"{len(shape)} dimensions", f"{len(spec.shape)}, as in {spec.describe()}", "give one size per dimension")
    for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
        if size in (-1, dim):
            continue
        if not isinstance(size, int) or size < 1:
            raise UsageError(
                flag,
                f"dimension {axis} is {size}",
                "a whole number of at least 1, or -1 to leave it open",
                f"the model's input is {spec.describe()}",
            )
        if isinstance(dim, int):
            raise UsageError(
                flag, f"dimension {axis} is {size}", f"{dim}, which the model fixes", f"the model's input is {spec.describe()}"
            )
        first, where = sizes.setdefault(dim, (size, spec.name))
        if first != size:
            raise UsageError(
                flag, f"dimension {axis} ({dim}) is {size}", f"{first}, as given for input {where!r}", "give both the same size"
            )


def _require_static(signature: Signature, resolved: Mapping[str, tuple[Dim, ...]]) -> None:
    problems, flags = [], []
    for spec in signature.inputs:
        shape = resolved[spec.name]
        unknown = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
        if unknown:
            problems.append(f"input {spec.name!r} ({spec.describe()}) has dimension(s) {', '.join(map(str, unknown))} without a size")
            flags.append(f"--shape {spec.name}={','.join(_placeholder(axis, dim, shape) for axis, dim in enumerate(shape))}")
    if problems:
        raise ShapeRequiredError(
            "model", "; ".join(problems), "fixed sizes for this target", f"give {' '.join(flags)} with numbers in place of the letters"
        )


def _placeholder(axis: int, dim: Dim, shape: tuple[Dim, ...]) -> str:
    """What to type for one dimension: its size, ``H`` and ``W`` for an image's, else a letter of its own."""
    if isinstance(dim, int):
        return str(dim)
    first = 1 if len(shape) == 4 and shape[3] in (1, 3, 4) else 2  # channels last
    image = {first: "H", first + 1: "W"} if len(shape) == 4 else {}
    return image.get(axis, "ABCDEFGIJK"[axis % 10])


# --- the pipeline --------------------------------------------------------------------------------------------------------------------------


def normalise(source: SourceModel, shapes: Mapping[str, Sequence[Dim]], *, static: bool) -> NormalisedModel:
    """Bring a source model into the form that targets read, and prove that it still answers the same.

    Steps, in this order: those that reading the source needed (`SourceModel.passes`), ``common::inline_functions`` (targets know primitive
    operators only), ``common::fix_shapes`` (before simplifying, so that shape arithmetic folds), ``common::upgrade_opset`` (only below
    opset 13), ``common::onnxslim``, ``common::infer_shapes``. A simplification that fails or changes an output is left out; then
    ``common::reject_onnxslim`` or ``common::reject_upgrade`` stands in its place, and ``common::fold_constants`` for OnnxSlim. A model beyond
    protobuf's 2 GB is not simplified: ``common::keep_large``.

    Args:
        source: the checked source.
        shapes: as for `resolve_shapes`.
        static: fix every input dimension.

    Raises:
        UsageError, ShapeRequiredError: see `resolve_shapes`.
        ModelError: ONNX Runtime cannot run the source.
        EnvironmentMissingError: onnx, onnxruntime or onnxslim is not installed.
    """
    _require_tools()
    resolved = resolve_shapes(source.signature, shapes, static)
    base, ids = _prepare(source, resolved)
    trials = _trials(source, resolved)
    if source.weights is not None:
        # Simplifiers and the version converter copy the whole model through protobuf, which ends at 2 GB.
        model, applied = base, _KEEP_LARGE
    elif not trials:
        # Nothing could be compared, so nothing may be simplified.
        model, applied = base, _REJECT_ALL
    else:
        model, applied = _simplify(source, base, trials)
    model = _infer(model, trials[0].outputs if static else None)
    fixed = {
        dim: size
        for spec in source.signature.inputs
        for dim, size in zip(spec.shape, resolved[spec.name], strict=True)
        if isinstance(dim, str) and isinstance(size, int)
    }
    return NormalisedModel(
        model,
        _signature(source.signature, resolved, fixed, trials[0].outputs if static else None),
        _opset(model),
        fixed,
        (*ids, *applied, "common::infer_shapes"),
        _is_static(model),
        source.native,
        source.weights,
    )


def _require_tools() -> None:
    for package in ("onnx", "onnxruntime", "onnxslim"):
        try:
            __import__(package)
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("normalising a model", package, "convert") from exc


def _prepare(source: SourceModel, resolved: Mapping[str, tuple[Dim, ...]]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The steps that keep the meaning by construction."""
    ids = list(source.passes)
    model = _copy(source.model)
    if model.functions:
        model = _inline(model)
        ids.append("common::inline_functions")
    if any(resolved[spec.name] != spec.shape for spec in source.signature.inputs):
        _fix_shapes(model, resolved)
        ids.append("common::fix_shapes")
    return model, tuple(ids)


def _simplify(source: SourceModel, base: onnx.ModelProto, trials: Sequence[_Trial]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The most simplified form that answers like the original."""
    slim, upgrade = ("common::onnxslim", _slim), ("common::upgrade_opset", _upgrade)
    fold = ("common::fold_constants", fold_constants)
    pipelines: list[tuple[tuple[str, Pass], ...]] = [(slim,), (fold,), ()]
    if _opset(base) < TARGET_OPSET:
        pipelines = [(upgrade, slim), (slim,), (upgrade, fold), (fold,), (upgrade,), ()]
    wanted = [name for name, _ in pipelines[0]]
    for pipeline in pipelines:
        ids = tuple(name for name, _ in pipeline)
        try:
            model = _copy(base)
            for _, step in pipeline:
                model = step(model)
            _restore_interface(model, base)
            difference = _difference(model, trials)
        except Exception as exc:  # noqa: BLE001 - third-party simplifiers raise anything; the next pipeline does without them
            difference = f"{type(exc).__name__}: {exc}"
        if not difference:
            rejected = tuple(
                name.replace("onnxslim", "reject_onnxslim").replace("upgrade_opset", "reject_upgrade") for name in wanted if name not in ids
            )
            return model, (*ids, *rejected)
        _log.warning("%s: %s rejected: %s", source.path.name, " + ".join(ids) or "the unchanged graph", difference)
    raise ModelError(str(source.path), "ONNX Runtime gives different outputs for two runs of the same graph", "a deterministic model")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.inliner

    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    return inlined


def _fix_shapes(model: onnx.ModelProto, resolved: Mapping[str, tuple[Dim, ...]]) -> None:
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, resolved[value.name], strict=True):
            if isinstance(size, int):
                dim.dim_value = size
    del model.graph.value_info[:]  # what the exporter wrote holds for the old shapes
    if all(isinstance(size, int) for shape in resolved.values() for size in shape):
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")


def _upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.version_converter

    upgraded: onnx.ModelProto = onnx.version_converter.convert_version(model, TARGET_OPSET)
    return upgraded


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    slimmed: onnx.ModelProto = onnxslim.slim(model)
    return slimmed


def _restore_interface(model: onnx.ModelProto, base: onnx.ModelProto) -> None:
    """Inputs and outputs as they were, an input that a step found unused included."""
    if [value.name for value in model.graph.output] != [value.name for value in base.graph.output]:
        raise ModelError("graph", "a step renamed an output", "the source's outputs")
    left = {value.name for value in model.graph.input} - {value.name for value in base.graph.input}
    if left - {tensor.name for tensor in model.graph.initializer}:
        raise ModelError("graph", "a step added an input", "the source's inputs")
    del model.graph.input[:]
    model.graph.input.extend(base.graph.input)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)


def _infer(model: onnx.ModelProto, outputs: Sequence[np.ndarray] | None) -> onnx.ModelProto:
    """Shapes of every tensor; the outputs' from what they really were."""
    import onnx

    if outputs is not None:
        for value, array in zip(model.graph.output, outputs, strict=True):
            shape = value.type.tensor_type.shape
            shape.Clear()
            value.type.tensor_type.shape.SetInParent()
            for size in array.shape:
                shape.dim.add().dim_value = size
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return inferred


def _is_static(model: onnx.ModelProto) -> bool:
    known = {
        value.name
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    return all(name in known for node in model.graph.node for name in node.output if name) and all(
        value.name in known for value in model.graph.input
    )


def _signature(
    signature: Signature, resolved: Mapping[str, tuple[Dim, ...]], fixed: Mapping[str, int], outputs: Sequence[np.ndarray] | None
) -> Signature:
    """The source's signature with what is fixed now; static output shapes are those that came out."""
    inputs = tuple(TensorSpec(spec.name, spec.dtype, resolved[spec.name]) for spec in signature.inputs)
    shapes: list[tuple[Dim, ...]] = [
        tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape) for spec in signature.outputs
    ]
    if outputs is not None:
        shapes = [array.shape for array in outputs]
    results = tuple(TensorSpec(spec.name, spec.dtype, shape) for spec, shape in zip(signature.outputs, shapes, strict=True))
    return structs.replace(signature, inputs=inputs, outputs=results)


# --- the check -----------------------------------------------------------------------------------------------------------------------------


def _run(session: Any, inputs: Inputs) -> list[np.ndarray]:
    return cast("list[np.ndarray]", session.run(None, inputs))


def _random_inputs(specs: Sequence[TensorSpec], size: int, int_limit: int) -> Inputs:
    """Seeded inputs: normal floats, integers in [0, int_limit), random booleans; ``size`` stands in for symbols, 1 for a batch."""
    rng = np.random.default_rng(_SEED)
    inputs: Inputs = {}
    for spec in specs:
        shape = tuple(dim if isinstance(dim, int) else (2 if axis == 0 and size > 1 else size) for axis, dim in enumerate(spec.shape))
        if spec.dtype == "string":
            inputs[spec.name] = np.full(shape, "a", dtype=object)
        elif spec.dtype == "bool":
            inputs[spec.name] = np.asarray(rng.integers(0, 2, shape)).astype(bool)
        elif spec.dtype.startswith(("int", "uint")):
            inputs[spec.name] = np.asarray(rng.integers(0, min(int_limit, np.iinfo(spec.dtype).max), shape)).astype(spec.dtype)
        else:
            inputs[spec.name] = np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    return inputs


def _trials(source: SourceModel, resolved: Mapping[str, tuple[Dim, ...]]) -> list[_Trial]:
    """The original on inputs that it takes: one trial when static, else up to two sizes, so that a baked-in size shows.

    Raises:
        ModelError: ONNX Runtime cannot load the source, or cannot run it at the given shapes.
    """
    specs = [TensorSpec(spec.name, spec.dtype, resolved[spec.name]) for spec in source.signature.inputs]
    static = all(spec.is_static for spec in specs)
    try:
        # The file itself, not its copy with fixed shapes, wherever ONNX Runtime can load it.
        session = open_session(source.model, source.weights)
    except EnvironmentMissingError:
        raise
    except Exception as exc:  # ONNX Runtime's errors have no common base
        raise ModelError(str(source.path), f"ONNX Runtime cannot load it: {_reason(exc)}", "", "check the model with onnx.checker") from exc
    found: list[_Trial] = []
    error: Exception | None = None
    for size in (1,) if static else _TRIAL_SIZES:
        for limit in _INT_LIMITS if any("int" in spec.dtype for spec in specs) else (1,):
            inputs = _random_inputs(specs, size, limit)
            try:
                found.append(_Trial(inputs, _run(session, inputs)))
                break
            except Exception as exc:  # noqa: BLE001 - a size or index that the model refuses; the next one is tried
                error = exc
        if len(found) == 2:
            break
    if not found and static:
        shapes = ", ".join(spec.describe() for spec in specs)
        raise ModelError(
            str(source.path), f"ONNX Runtime cannot run it with {shapes}: {_reason(error)}", "", "give other sizes with --shape"
        ) from error
    return found


def _reason(exc: Exception | None) -> str:
    return " ".join(str(exc).split())[:300]


def _difference(model: onnx.ModelProto, trials: Sequence[_Trial]) -> str:
    """What differs from the original first; empty when nothing does."""
    session = open_session(model)
    for trial in trials:
        names = [value.name for value in model.graph.output]
        for name, want, got in zip(names, trial.outputs, _run(session, trial.inputs), strict=True):
            if found := _compare(want, got):
                return f"output {name!r} {found}"
    return ""


def _compare(want: np.ndarray, got: np.ndarray) -> str:
    if want.dtype != got.dtype or want.shape != got.shape:
        return f"is {got.dtype}{list(got.shape)}, was {want.dtype}{list(want.shape)}"
    if want.dtype.kind != "f":
        return "" if np.array_equal(want, got) else "has other values"
    if not np.array_equal(np.isfinite(want), np.isfinite(got)):
        return "is not finite at other places"
    finite = np.isfinite(want)
    error = float(np.max(np.abs(want[finite].astype(np.float64) - got[finite]), initial=0.0))
    scale = float(np.max(np.abs(want[finite]), initial=0.0))
    limit = _TOLERANCE * (100 if want.dtype == np.float16 else 1) * max(scale, _FLOOR)
    return f"differs by {error:.3g} (largest value {scale:.3g})" if error > limit else ""
