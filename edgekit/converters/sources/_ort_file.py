"""Read an ORT format file (``.ort``) back into ONNX.

The format is ONNX Runtime's own graph in a flatbuffer: nodes, attributes, initializers and types are all in it, under the names of the ONNX model
it was made from. onnxruntime's package carries the schema's generated reader (``onnxruntime.tools.ort_format_model``), which is what is used here.
What ONNX Runtime's optimisers did before it was written stays done: constants are folded, and at its extended level nodes are fused into operators of
``com.microsoft``, which only ONNX Runtime takes.
"""

from __future__ import annotations

import hashlib
import importlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters._lowering._names import outer_reads
from edgekit.converters.sources._judge import check, graphs, import_onnx, name_dimensions, signature_of
from edgekit.converters.sources._model import SourceModel
from edgekit.converters.sources._runnable import make_runnable
from edgekit.errors import EnvironmentMissingError, ModelError, UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["read_ort"]

# Layouts of one processor's kernels: such a node runs nowhere else (onnxruntime#9200).
_BOUND_DOMAINS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
_FUSED = 1  # fbs.NodeType.Fused: a compiled part of an execution provider, without a body
_TENSOR, _SEQUENCE, _MAP = 1, 2, 3  # fbs.TypeInfoValue
_SIZE, _SYMBOL = 1, 2  # fbs.DimensionValueType


def read_ort(path: Path, data: bytes) -> SourceModel:
    """Check an ORT format file, given its bytes.

    Raises:
        EnvironmentMissingError: onnxruntime is not installed.
        ModelError: damaged, with its weights in another file, or not valid as ONNX.
        UnsupportedOperatorsError: nodes that were fused for one processor.
    """
    onnx = import_onnx()
    schema = _schema()
    try:
        root = schema("InferenceSession").GetRootAsInferenceSession(data, 0)
        content = root.Model()
        model = _Reader(onnx, schema, path).model(content)
    except (struct.error, LookupError, ArithmeticError, AttributeError, TypeError, ValueError, RecursionError, MemoryError) as exc:
        # A flatbuffer has no checksum: offsets that lead nowhere are all that shows.
        raise ModelError(
            str(path), f"damaged or of another ORT format version ({type(exc).__name__}: {exc})", "a whole .ort file", "write it again"
        ) from exc
    opset = check(onnx, path, model)
    passes, notes = make_runnable(path, model, opset)
    name_dimensions(model)
    fused = sum(node.domain not in ("", "ai.onnx") for node in model.graph.node)
    more = (f"{fused} node(s) were fused by ONNX Runtime before the file was written; other engines may refuse them",) if fused else ()
    return SourceModel(
        path,
        model,
        "ort",
        hashlib.sha256(data).hexdigest(),
        opset,
        signature_of(path, model),
        passes=("source::ort_format", *passes),
        notes=(*notes, *more),
    )


def _schema() -> Any:
    """Class of a table by name, out of the generated reader."""
    try:
        importlib.import_module("onnxruntime.tools.ort_format_model")  # makes the next one importable
        importlib.import_module("ort_flatbuffers_py.fbs")
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("reading ORT format models", exc.name or "onnxruntime", "onnxruntime") from exc

    def table(name: str) -> Any:
        return getattr(importlib.import_module(f"ort_flatbuffers_py.fbs.{name}"), name)

    return table


def _each(table: Any, field: str) -> list[Any]:
    """Items of a vector field."""
    item, count = getattr(table, field), getattr(table, f"{field}Length")()
    return [item(index) for index in range(count)]


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


class _Reader:
    """One file on its way to ONNX."""

    def __init__(self, onnx: Any, schema: Any, path: Path) -> None:
        self.onnx, self.schema, self.path = onnx, schema, path
        self.versions: dict[str, int] = {}
        self.refused: list[tuple[str, str, int, str]] = []

    def model(self, content: Any) -> onnx.ModelProto:
        """The whole model.

        Raises:
            UnsupportedOperatorsError: nodes that were fused for one processor, all of them.
        """
        versions = {_text(entry.Domain()): int(entry.Version()) for entry in _each(content, "OpsetImport")}
        self.versions = {"" if domain == "ai.onnx" else domain: version for domain, version in versions.items()}
        graph = self._graph(content.Graph(), "main")
        if self.refused:
            step = "write the file with --optimization_level basic, or give the ONNX model it was made from"
            raise UnsupportedOperatorsError(str(self.path), self.refused, step)
        used = {node.domain for inner in graphs(graph) for node in inner.node}
        imports = [
            self.onnx.helper.make_opsetid(domain, version)
            for domain, version in sorted(self.versions.items())
            if not domain or domain in used
        ]
        made: onnx.ModelProto = self.onnx.helper.make_model(graph, opset_imports=imports, ir_version=int(content.IrVersion()))
        return made

    def _graph(self, table: Any, name: str) -> onnx.GraphProto:
        graph = self.onnx.GraphProto()
        graph.name = name
        graph.initializer.extend(self._tensor(entry) for entry in _each(table, "Initializers"))
        if table.SparseInitializersLength():
            raise ModelError(str(self.path), "it has sparse initializers", "dense ones", "give the ONNX model it was made from")
        infos = {_text(entry.Name()): entry.Type() for entry in _each(table, "NodeArgs")}
        constants = {tensor.name for tensor in graph.initializer}
        ends = {role: [_text(value) for value in _each(table, role)] for role in ("Inputs", "Outputs")}
        graph.input.extend(self._value(value, infos.get(value)) for value in ends["Inputs"])
        graph.output.extend(self._value(value, infos.get(value)) for value in ends["Outputs"])
        nodes = [self._node(entry) for entry in _each(table, "Nodes") if entry is not None and entry.OpType() is not None]
        graph.node.extend(_ordered(nodes))
        inner = {value for node in nodes for value in node.output if value} - set(ends["Outputs"]) - constants
        graph.value_info.extend(self._value(value, infos[value]) for value in sorted(inner) if infos.get(value) is not None)
        return graph

    def _node(self, table: Any) -> onnx.NodeProto:
        node = self.onnx.NodeProto()
        node.op_type, node.name = _text(table.OpType()), _text(table.Name())
        domain = _text(table.Domain())
        node.domain = "" if domain == "ai.onnx" else domain
        node.input.extend(_text(value) for value in _each(table, "Inputs"))
        node.output.extend(_text(value) for value in _each(table, "Outputs"))
        while node.input and not node.input[-1]:
            node.input.pop()
        node.attribute.extend(self._attribute(entry) for entry in _each(table, "Attributes"))
        opset, name = self.versions.get(node.domain, 0), node.name or node.op_type
        if node.domain in _BOUND_DOMAINS or table.Type() == _FUSED:
            self.refused.append((name, f"{node.domain}.{node.op_type}", opset, "made for one processor"))
        elif not node.domain and not self.onnx.defs.has(node.op_type, opset, ""):
            # ONNX Runtime's fusions make operators of a later opset in a model of an earlier one.
            self.refused.append((name, node.op_type, opset, "fused by ONNX Runtime; ai.onnx has none at this opset"))
        return node

    def _attribute(self, table: Any) -> onnx.AttributeProto:
        kinds = self.onnx.AttributeProto
        attribute = kinds()
        attribute.name, attribute.type = _text(table.Name()), table.Type()
        match attribute.type:
            case kinds.FLOAT:
                attribute.f = table.F()
            case kinds.INT:
                attribute.i = table.I()
            case kinds.STRING:
                attribute.s = table.S() or b""
            case kinds.TENSOR:
                attribute.t.CopyFrom(self._tensor(table.T()))
            case kinds.GRAPH:
                attribute.g.CopyFrom(self._graph(table.G(), attribute.name))
            case kinds.FLOATS:
                attribute.floats.extend(_each(table, "Floats"))
            case kinds.INTS:
                attribute.ints.extend(_each(table, "Ints"))
            case kinds.STRINGS:
                attribute.strings.extend(_each(table, "Strings"))
            case kinds.TENSORS:
                attribute.tensors.extend(self._tensor(entry) for entry in _each(table, "Tensors"))
            case kinds.GRAPHS:
                attribute.graphs.extend(self._graph(entry, attribute.name) for entry in _each(table, "Graphs"))
            case other:
                raise ValueError(f"attribute {attribute.name!r} of type {other}")
        return attribute

    def _tensor(self, table: Any) -> onnx.TensorProto:
        tensor = self.onnx.TensorProto()
        tensor.name, tensor.data_type = _text(table.Name()), table.DataType()
        tensor.dims.extend(_each(table, "Dims"))
        if table.ExternalDataOffset() >= 0:
            raise ModelError(
                str(self.path), f"the data of {tensor.name!r} lies in another file", "a .ort file that holds its weights", "write it so"
            )
        if tensor.data_type == self.onnx.TensorProto.STRING:
            tensor.string_data.extend(_each(table, "StringData"))
        else:
            tensor.raw_data = b"" if table.RawDataIsNone() else table.RawDataAsNumpy().tobytes()
        return tensor

    def _value(self, name: str, info: Any) -> onnx.ValueInfoProto:
        value = self.onnx.ValueInfoProto()
        value.name = name
        if info is not None:
            self._type(value.type, info)
        return value

    def _type(self, kind: onnx.TypeProto, info: Any) -> None:
        inner = info.Value()
        if inner is None:
            return
        names = {_TENSOR: "TensorTypeAndShape", _SEQUENCE: "SequenceType", _MAP: "MapType"}
        found = self.schema(names[info.ValueType()])()
        found.Init(inner.Bytes, inner.Pos)
        match info.ValueType():
            case 1:
                kind.tensor_type.elem_type = found.ElemType()
                if found.Shape() is not None:
                    kind.tensor_type.shape.SetInParent()
                    for entry in _each(found.Shape(), "Dim"):
                        self._dimension(kind.tensor_type.shape.dim.add(), entry.Value())
            case 2:
                self._type(kind.sequence_type.elem_type, found.ElemType())
            case _:
                kind.map_type.key_type = found.KeyType()
                self._type(kind.map_type.value_type, found.ValueType())

    def _dimension(self, dim: Any, value: Any) -> None:
        if value is not None and value.DimType() == _SIZE:
            dim.dim_value = value.DimValue()
        elif value is not None and value.DimType() == _SYMBOL:
            dim.dim_param = _text(value.DimParam())


def _ordered(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes so that each comes after those whose values it reads; the format keeps them in the order of ONNX Runtime's indices.

    Raises:
        ValueError: a cycle, as only a damaged file has.
    """
    made = {value: index for index, node in enumerate(nodes) for value in node.output if value}
    needs = [{made[value] for value in outer_reads([node]) if value in made} for node in nodes]
    state = [0] * len(nodes)
    order: list[int] = []
    for start in range(len(nodes)):
        pending = [start]
        while pending:
            index = pending[-1]
            if state[index] == 0:
                state[index] = 1
                waiting = [other for other in sorted(needs[index], reverse=True) if state[other] == 0]
                if any(state[other] == 1 for other in needs[index]):
                    raise ValueError("the nodes form a cycle")
                pending += waiting
            else:
                pending.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
    return [nodes[index] for index in order]
