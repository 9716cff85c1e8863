"""Judge an ONNX graph once: interface, operators, names of open dimensions. Each case that cannot be built is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Dim, Signature, TensorSpec
from edgekit.errors import EnvironmentMissingError, ModelError, UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "MIN_OPSET",
    "ONNX_DOMAINS",
    "check",
    "dtype_name",
    "first_line",
    "graphs",
    "import_onnx",
    "name_dimensions",
    "refuse_foreign",
    "signature_of",
    "unique",
]

MIN_OPSET = 1
"""Oldest ai.onnx opset that is taken: the first there is."""

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
# Domains that ONNX Runtime carries in its standard package beside ai.onnx.
_RUNTIME_DOMAINS = ONNX_DOMAINS | {"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_FREE_INITIALIZERS = 4
_UNNAMED_DIMS = frozenset({"", "?", "-1", "None", "none", "unk", "unknown"})


def dtype_name(elem_type: int) -> str:
    """NumPy dtype name of an ONNX element type (``float32``, ``bfloat16``, ``string``)."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def check(onnx: Any, path: Path, model: onnx.ModelProto, file: Path | None = None) -> int:
    """Opset of a model that passes every check; initializers are taken out of its inputs.

    Args:
        onnx: the package.
        path: names the model in errors.
        model: to be judged; changed in place.
        file: where external data is still outside: the file on disk, which the checker then reads itself.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)
    if opset and opset < MIN_OPSET:
        raise ModelError(str(path), f"opset {opset} is too old", f"opset {MIN_OPSET} or newer", "export it again with a newer opset")
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    _check_interface(path, model, kept, constants)
    _infer_outputs(onnx, model)
    refuse_foreign(model, _RUNTIME_DOMAINS, str(path))
    # Since IR 4 an initializer need not be an input; ONNX Runtime takes that of older files too, the checker does not.
    model.ir_version = max(model.ir_version, _FREE_INITIALIZERS)
    try:
        onnx.checker.check_model(str(file) if file else model)
    except (onnx.checker.ValidationError, ValueError) as exc:
        raise ModelError(str(path), f"not a valid ONNX model: {first_line(exc)}", "", "export it again") from exc
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return opset


def signature_of(path: Path, model: onnx.ModelProto) -> Signature:
    """Names, dtypes, order and dimensions of a checked model, after `name_dimensions`."""
    return Signature(
        tuple(_spec(path, value, "input") for value in model.graph.input),
        tuple(_spec(path, value, "output") for value in model.graph.output),
    )


def _check_interface(path: Path, model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], constants: set[str]) -> None:
    """Inputs and outputs are tensors, inputs have a dtype and a rank, and something produces every output."""
    for role, values in (("input", inputs), ("output", model.graph.output)):
        for value in values:
            kind = str(value.type.WhichOneof("value") or "tensor_type").removesuffix("_type")
            if kind != "tensor":
                raise ModelError(
                    str(path), f"{role} {value.name!r} is of type {kind}", "tensor inputs and outputs", "export it with plain tensors"
                )
    for value in inputs:
        _spec(path, value, "input")
    produced = constants | {value.name for value in inputs} | {name for node in model.graph.node for name in node.output}
    for value in model.graph.output:
        if value.name not in produced:
            raise ModelError(
                str(path), f"nothing produces output {value.name!r}", "a whole graph", "the file may be truncated; export it again"
            )


def refuse_foreign(model: onnx.ModelProto, domains: frozenset[str], target: str) -> None:
    """Refuse operators that nothing here defines, all of them at once."""
    import onnx

    versions = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    refused = []
    for graph in graphs(model.graph):
        for index, node in enumerate(graph.node):
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (node.domain, node.op_type) in functions:
                continue
            name = node.name or f"{node.op_type}_{index}"
            version = versions.get(domain, 0)
            if node.domain not in domains:
                refused.append((name, f"{node.domain}.{node.op_type}", version, f"domain {node.domain} is not supported"))
            elif not domain and not onnx.defs.has(node.op_type, version, domain):
                refused.append((name, node.op_type, version, f"ai.onnx has no such operator at opset {version}"))
    if refused:
        raise UnsupportedOperatorsError(target, refused, "replace these nodes by ai.onnx operators, or export the model without them")


def _spec(path: Path, value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        raise ModelError(
            str(path),
            f"{role} {value.name!r} has no {'shape' if tensor.elem_type else 'dtype'}",
            "a declared dtype and rank",
            "export it with shapes",
        )
    dims: list[Dim] = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    return TensorSpec(value.name, dtype_name(tensor.elem_type), tuple(dims))


def _infer_outputs(onnx: Any, model: onnx.ModelProto) -> None:
    """Complete outputs that an exporter left without a shape; ONNX Runtime takes them, the checker does not."""
    if any(not value.type.tensor_type.HasField("shape") for value in model.graph.output):
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
        for value in model.graph.output:
            value.CopyFrom(inferred[value.name])


def name_dimensions(model: onnx.ModelProto) -> None:
    """Give unnamed dimensions (unset, -1, ``?``) of inputs and outputs names that nothing else has."""
    values = (*model.graph.input, *model.graph.output)
    taken = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}
    for value in values:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (dim.HasField("dim_value") and dim.dim_value < 0) or (not dim.HasField("dim_value") and dim.dim_param in _UNNAMED_DIMS):
                dim.dim_param = unique(f"{value.name}_dim{axis}", taken)


def first_line(exc: BaseException) -> str:
    """The first line of an exception's text that says something."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)[:300]


def unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name_2``, ``name_3``… ; remembers it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def import_onnx() -> Any:
    """The onnx package.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.external_data_helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("reading ONNX models", "onnx", "convert") from exc
    return onnx


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that are inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)
