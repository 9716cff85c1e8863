"""Read a source model, judge it once, and give every later step plain facts: signature, digest, opset.

`load_source` refuses what cannot be built, each case in one line; `graph_from_onnx` turns a normalised ONNX model into the plain graph that
the front ends of our own read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekit.bundle import Dim, Signature, TensorSpec, storage_errors
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.errors import EnvironmentMissingError, ModelError, UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["MIN_OPSET", "SourceModel", "dtype_name", "graph_from_onnx", "load_source"]

MIN_OPSET = 7
"""Oldest ai.onnx opset that is taken: the first without the implicit `broadcast` and `consumed_inputs` attributes of the early operators."""

_ONNX_DOMAINS = frozenset({"", "ai.onnx"})
# Domains that ONNX Runtime carries in its standard package beside ai.onnx.
_RUNTIME_DOMAINS = _ONNX_DOMAINS | {"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_UNNAMED_DIMS = frozenset({"", "?", "-1", "None", "none", "unk", "unknown"})
_IR_VERSION_TAG = 0x08  # protobuf key of ModelProto.ir_version (field 1, varint), the first byte that every exporter writes


@dataclass(frozen=True)
class SourceModel:
    """A model as the user gave it, checked.

    Attributes:
        path: the file.
        model: its content with external data loaded; initializers are no graph inputs, unnamed dimensions have unique names.
        format: ``onnx``.
        sha256: hex digest of the file's bytes, followed by those of its external data files in the order of their names.
        opset: ai.onnx opset.
        signature: the file's own names, dtypes, order and dimensions.
    """

    path: Path
    model: onnx.ModelProto
    format: str
    sha256: str
    opset: int
    signature: Signature


def load_source(path: str | os.PathLike[str]) -> SourceModel:
    """Read and check an ONNX file.

    Raises:
        ModelError: missing, not ONNX, truncated, invalid, without outputs, too old, with sequence or optional inputs, or with external
            data that is not there.
        UnsupportedOperatorsError: operators that neither ONNX nor ONNX Runtime defines.
        EnvironmentMissingError: the ``onnx`` package is not installed.
        StorageError: the file cannot be read.
    """
    onnx = _import_onnx()
    path = Path(path)
    data = _read(path)
    model = _parse(path, data)
    digest = hashlib.sha256(data)
    externals = _external_files(path, model)
    for file in externals:
        with storage_errors(file), open(file, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    opset = _check(onnx, path, model, bool(externals))
    if externals:
        _load_external(path, model)
    _name_dimensions(model)
    signature = Signature(
        tuple(_spec(path, value, "input") for value in model.graph.input),
        tuple(_spec(path, value, "output") for value in model.graph.output),
    )
    return SourceModel(path, model, "onnx", digest.hexdigest(), opset, signature)


def dtype_name(elem_type: int) -> str:
    """NumPy dtype name of an ONNX element type (``float32``, ``bfloat16``, ``string``)."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def graph_from_onnx(model: onnx.ModelProto, signature: Signature) -> Graph:
    """The plain graph of a normalised model.

    ``Constant`` nodes become constants, attributes Python values, nodes without a name get one; every tensor has its type from ONNX shape
    inference in strict mode.

    Raises:
        ModelError: a tensor whose dtype or static shape cannot be inferred, or that nothing produces.
        UnsupportedOperatorsError: operators of a domain other than ai.onnx.
    """
    import onnx

    _refuse_foreign(model, _ONNX_DOMAINS, "this front end")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as exc:
        raise ModelError("model", f"shape inference failed: {_first_line(exc)}", "", "check the model and the shapes given") from exc
    graph = inferred.graph
    constants = {tensor.name: _array(onnx, tensor) for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = []
    taken: set[str] = set()
    for index, proto in enumerate(graph.node):
        if proto.op_type == "Constant":
            constants[proto.output[0]] = _constant_value(onnx, proto)
            continue
        nodes.append(_node(onnx, proto, _unique(proto.name or f"{proto.op_type}_{index}", taken), opsets.get(proto.domain, 0)))
    types = {value.name: kind for value in (*graph.input, *graph.value_info, *graph.output) if (kind := _static_type(value))}
    types.update({name: TensorType(array.dtype.name, array.shape) for name, array in constants.items()})
    _check_types(nodes, types, [spec.name for spec in signature.outputs])
    used = {name for node in nodes for name in node.inputs} | {spec.name for spec in signature.outputs}
    return Graph(
        tuple(TensorSpec(spec.name, types[spec.name].dtype, types[spec.name].shape) for spec in signature.inputs),
        tuple(TensorSpec(spec.name, types[spec.name].dtype, types[spec.name].shape) for spec in signature.outputs),
        tuple(nodes),
        {name: array for name, array in constants.items() if name in used},
        types,
    )


# --- reading -------------------------------------------------------------------------------------------------------------------------------


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.external_data_helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("reading ONNX models", "onnx", "convert") from exc
    return onnx


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ModelError(str(path), "no such file", "an ONNX file", "check the path")
    if path.is_dir():
        raise ModelError(str(path), "is a directory", "an ONNX file", "give the .onnx file itself")
    with storage_errors(path):
        data = path.read_bytes()
    if not data:
        raise ModelError(str(path), "the file is empty", "an ONNX model", "export or download it again")
    return data


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as exc:
        if data[0] == _IR_VERSION_TAG:
            raise ModelError(
                str(path), f"truncated or damaged after {len(data)} bytes", "a whole ONNX model", "export or download it again"
            ) from exc
        raise ModelError(str(path), f"not an ONNX file (it begins with {data[:8]!r})", "an ONNX model", "export the model to ONNX") from exc
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise ModelError(str(path), "no ONNX graph in it (truncated, or another format)", "an ONNX model", "export or download it again")
    if not model.graph.output:
        raise ModelError(str(path), "the graph has no outputs", "at least one output", "the file may be truncated; export it again")
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """External data files that the model names, each checked to be there and long enough."""
    import onnx

    files: dict[str, Path] = {}
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(
                str(path), f"tensor {tensor.name!r} has its data at {location!r}", "a file beside the model", "export the model again"
            )
        file = path.parent / location
        if not file.is_file():
            raise ModelError(
                str(path),
                f"external data file {location!r} is missing",
                f"it at {file}",
                "copy it beside the model, or export with the weights inside",
            )
        end = int(fields.get("offset", 0)) + int(fields.get("length", 0))
        if file.stat().st_size < end:
            raise ModelError(
                str(path),
                f"external data file {location!r} has {file.stat().st_size} bytes",
                f"at least {end} for tensor {tensor.name!r}",
                "copy it again",
            )
        files[location] = file
    return [files[name] for name in sorted(files)]


def _load_external(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as exc:
        raise ModelError(str(path), f"external data cannot be read: {_first_line(exc)}", "", "export the model again") from exc


# --- judging -------------------------------------------------------------------------------------------------------------------------------


def _check(onnx: Any, path: Path, model: onnx.ModelProto, external: bool) -> int:
    """Opset of a model that passes every check."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS), default=0)
    if opset and opset < MIN_OPSET:
        raise ModelError(str(path), f"opset {opset} is too old", f"opset {MIN_OPSET} or newer", "export it again with a newer opset")
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    _check_interface(path, model, kept, constants)
    _infer_outputs(onnx, model)
    _refuse_foreign(model, _RUNTIME_DOMAINS, str(path))
    try:
        # The path form reads external data itself and has no 2 GB limit.
        onnx.checker.check_model(str(path) if external else model)
    except (onnx.checker.ValidationError, ValueError) as exc:
        raise ModelError(str(path), f"not a valid ONNX model: {_first_line(exc)}", "", "export it again") from exc
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return opset


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


def _refuse_foreign(model: onnx.ModelProto, domains: frozenset[str], target: str) -> None:
    """Refuse operators that nothing here defines, all of them at once."""
    import onnx

    versions = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    refused = []
    for graph in _graphs(model.graph):
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


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Give unnamed dimensions (unset, -1, ``?``) of inputs and outputs names that nothing else has."""
    values = (*model.graph.input, *model.graph.output)
    taken = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}
    for value in values:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (dim.HasField("dim_value") and dim.dim_value < 0) or (not dim.HasField("dim_value") and dim.dim_param in _UNNAMED_DIMS):
                dim.dim_param = _unique(f"{value.name}_dim{axis}", taken)


# --- plain graph ---------------------------------------------------------------------------------------------------------------------------


def _first_line(exc: Exception) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)[:300]


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name_2``, ``name_3``… ; remembers it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def _array(onnx: Any, tensor: onnx.TensorProto) -> np.ndarray:
    return cast("np.ndarray", onnx.numpy_helper.to_array(tensor))


def _constant_value(onnx: Any, node: onnx.NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            return _array(onnx, value)
        case "value_float" | "value_floats":
            return np.asarray(value, np.float32)
        case "value_int" | "value_ints":
            return np.asarray(value, np.int64)
        case _:
            raise ModelError(f"node {node.name!r}", f"a Constant with {attribute.name}", "a dense numeric constant", "export it again")


def _attribute(onnx: Any, attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _array(onnx, value)
    if isinstance(value, Sequence):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value


def _node(onnx: Any, proto: onnx.NodeProto, name: str, opset: int) -> Node:
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)  # control flow: no front end of ours reads it
    attrs = {attribute.name: _attribute(onnx, attribute) for attribute in proto.attribute if attribute.type not in graphs}
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attrs, opset, domain)


def _static_type(value: onnx.ValueInfoProto) -> TensorType | None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor.shape.dim):
        return None
    return TensorType(dtype_name(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim))


def _check_types(nodes: Sequence[Node], types: dict[str, TensorType], outputs: Sequence[str]) -> None:
    for node in nodes:
        for name in node.outputs:
            if name and name not in types:
                raise ModelError(
                    f"tensor {name!r} ({node.op} at {node.name!r})",
                    "its shape depends on data or on a dimension that is not fixed",
                    "a static shape",
                    "fix the input shapes with --shape, or build for an engine that takes dynamic shapes (onnxruntime, openvino)",
                )
    for name in outputs:
        if name not in types:
            raise ModelError(f"output {name!r}", "nothing produces it with a static shape", "", "export the model again")
