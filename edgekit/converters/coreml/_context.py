"""What handlers work with: the values made so far, names that Core ML takes, and the rules that every node must keep.

A tensor of rank 0 is carried as shape ``(1,)``: Core ML's arrays have at least one axis, and broadcasting means the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._registry import Constraint, Registry
from edgekit.converters.coreml._high_rank import MAX_RANK, unflattened_reason
from edgekit.converters.coreml._toolchain import Toolchain
from edgekit.errors import BuildError

__all__ = [
    "INT32",
    "MAX_RANK",
    "NARROW",
    "Call",
    "MilContext",
    "Names",
    "constant_at",
    "floats",
    "integers",
    "mil_dtype",
    "not_boolean",
    "numbers",
    "op",
    "ops",
]

INT32 = np.iinfo(np.int32)

_DTYPES = {
    "float64": "fp32",
    "float32": "fp32",
    "float16": "fp32",
    "bool": "bool",
    "int64": "int32",
    "int32": "int32",
    "int16": "int32",
    "int8": "int32",
    "uint64": "int32",
    "uint32": "int32",
    "uint16": "int32",
    "uint8": "int32",
}

NARROW = {"int8": (8, True), "uint8": (8, False), "int16": (16, True), "uint16": (16, False)}
"""Integer dtypes that wrap around before int32 does: bits, and whether signed. What is carried for one is always within its range."""
_NUMPY = {"fp32": np.float32, "int32": np.int32, "bool": np.bool_}

# Words that MIL's text form uses (coremltools: sanitize_input_output_names).
_RESERVED_WORDS = """any bool program func tensor list dict tuple true false string bf16 fp16 fp32 fp64 int8 int16 int32 int64
    uint8 uint16 uint32 uint64 state"""

Handler = Callable[[Node, "MilContext"], None]


def mil_dtype(dtype: str) -> str:
    """MIL's name of the type that carries a NumPy dtype (``int64`` is carried as ``int32``); ``""`` when nothing does.

    All floats are computed in float32, a float16 model's too; an fp16 build turns that into float16, whatever the source was.
    """
    return _DTYPES.get(dtype, "")


# --- names ---------------------------------------------------------------------------------------------------------------------------------


def identifier(tensor: str) -> str:
    """The name that Core ML takes for a tensor; two tensors may get the same (`Names` tells them apart)."""
    base = re.sub(r"[^A-Za-z0-9_]", "_", tensor)
    # A leading underscore or digit would be renamed by coremltools.
    return base if re.match(r"[A-Za-z]", base) else f"t{base}"


class Names:
    """Unique identifiers ``[A-Za-z_][A-Za-z0-9_]*`` for tensor names, the same for the same order of calls."""

    def __init__(self) -> None:
        self._taken: set[str] = set(_RESERVED_WORDS.split())
        self._of: dict[str, str] = {}

    def of(self, tensor: str) -> str:
        """The identifier of a tensor; made up on the first call."""
        if tensor not in self._of:
            self._of[tensor] = self.fresh(tensor)
        return self._of[tensor]

    def fresh(self, stem: str) -> str:
        """An identifier like ``stem`` that nothing else has."""
        base = identifier(stem)
        found, count = base, 1
        while found in self._taken:
            count += 1
            found = f"{base}_{count}"
        self._taken.add(found)
        return found


# --- the context ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One operator as it was emitted.

    Attributes:
        op_type: of MIL.
        inputs: variables, NumPy values, Python values, or lists of them.
        result: the variable, or a tuple of them.
    """

    op_type: str
    inputs: dict[str, Any]
    result: Any

    @property
    def results(self) -> tuple[Any, ...]:
        """The variables."""
        return tuple(self.result) if isinstance(self.result, tuple | list) else (self.result,)


@dataclass
class MilContext:
    """State of one conversion.

    Attributes:
        graph: what is converted.
        tools: coremltools.
        names: identifiers of tensors.
        values: MIL variable of each tensor made so far, constants excluded.
        origin: node that an emitted MIL operator came from, by the operator's name; the precision step reads it.
        int8: pairs of quantisation become MIL's operators for it.
        calls: all operators, in order; a program with an open batch is made from two such lists.
    """

    graph: Graph
    tools: Toolchain
    names: Names = field(default_factory=Names)
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Node] = field(default_factory=dict)
    int8: bool = False
    calls: list[Call] = field(default_factory=list)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape that MIL sees: rank 0 is ``(1,)``."""
        return self.graph.types[tensor].shape or (1,)

    def rank(self, tensor: str) -> int:
        """Number of axes that MIL sees."""
        return len(self.shape(tensor))

    def dtype(self, tensor: str) -> str:
        """The source's NumPy dtype name."""
        return self.graph.types[tensor].dtype

    def constant(self, tensor: str) -> np.ndarray | None:
        """Value of a constant as the source has it, or None."""
        return self.graph.constants.get(tensor)

    def integers(self, tensor: str) -> list[int] | None:
        """A constant as a flat list of Python integers; None for an omitted input."""
        return None if not tensor else [int(value) for value in np.asarray(self.graph.constants[tensor]).reshape(-1)]

    def read(self, tensor: str) -> Any:
        """Operand for MIL: a variable, or a constant as NumPy value in the type that carries it (a scalar for rank 0)."""
        value = self.graph.constants.get(tensor)
        if value is None:
            return self.values[tensor]
        carried: Any = _within_float32(np.asarray(value)).astype(_NUMPY[mil_dtype(value.dtype.name)])
        return carried if carried.ndim else carried[()]

    def tensor(self, tensor: str) -> Any:
        """As `read`, but a constant has at least one axis."""
        value = self.read(tensor)
        return np.reshape(value, self.shape(tensor)) if tensor in self.graph.constants else value

    def mid(self, node: Node, op_type: str, /, **inputs: Any) -> Any:
        """Emit an intermediate operator of a node and return its variable(s)."""
        return self._emit(node, op_type, self.names.fresh(f"{self.names.of(_first_output(node))}_{op_type}"), inputs)

    def put(self, node: Node, op_type: str, /, output: int = 0, **inputs: Any) -> None:
        """Emit the operator whose result is an output of a node."""
        tensor = node.outputs[output]
        self.values[tensor] = self._emit(node, op_type, self.names.of(tensor), inputs)

    def pass_on(self, node: Node, value: Any, output: int = 0) -> None:
        """The node's output is ``value`` itself.

        What the node's own operators made gets the output's name, so that it is found again; what came from elsewhere keeps its own, and only an
        output of the graph costs an operator then.
        """
        tensor = node.outputs[output]
        if isinstance(value, np.ndarray | np.generic):
            self.put(node, "identity", output=output, x=value)
        elif self._made_by(node, value):
            self._rename(value, self.names.of(tensor))
            self.values[tensor] = value
        elif any(tensor == spec.name for spec in self.graph.outputs):
            self.put(node, "identity", output=output, x=value)
        else:
            self.values[tensor] = value

    def _made_by(self, node: Node, value: Any) -> bool:
        """Whether an operator of this node computed ``value``, and no other tensor is it."""
        made = value.op is not None and self.origin.get(value.op.name) is node
        return made and not any(value is other for name in node.outputs if (other := self.values.get(name)) is not None)

    def _rename(self, value: Any, name: str) -> None:
        if len(value.op.outputs) == 1:
            self.origin[name] = self.origin.pop(value.op.name)
            value.op.name = name
        value.name = name

    def put_wrapped(self, node: Node, op_type: str, /, **inputs: Any) -> None:
        """As `put`; a result of a narrow integer dtype wraps around at its own limits (ONNX operator Add and its like: as NumPy does)."""
        dtype = self.dtype(node.outputs[0])
        if dtype in NARROW:
            self.pass_on(node, self.wrapped(node, self.mid(node, op_type, **inputs), dtype))
        else:
            self.put(node, op_type, **inputs)

    def wrapped(self, node: Node, value: Any, dtype: str) -> Any:
        """An int32 value brought into the range of a narrow dtype by whole turns; MIL's `mod` has the divisor's sign."""
        if dtype not in NARROW:
            return value
        bits, signed = NARROW[dtype]
        if not signed:
            return self.mid(node, "mod", x=value, y=np.int32(1 << bits))
        half = np.int32(1 << (bits - 1))
        turned = self.mid(node, "mod", x=self.mid(node, "add", x=value, y=half), y=np.int32(1 << bits))
        return self.mid(node, "sub", x=turned, y=half)

    def scalar(self, node: Node, value: Any) -> Any:
        """A number in the type of the node's first input; int32 beside booleans."""
        kind = mil_dtype(self.dtype(node.inputs[0]))
        return _NUMPY["int32" if kind == "bool" else kind](value)

    def cast(self, node: Node, value: Any, dtype: str) -> Any:
        """A value as another MIL type; constants are converted here."""
        if isinstance(value, np.ndarray | np.generic):
            return value.astype(_NUMPY[dtype])
        return self.mid(node, "cast", x=value, dtype=dtype)

    def call(self, op_type: str, name: str, inputs: dict[str, Any]) -> Any:
        """Emit an operator that belongs to no node; all go through here."""
        result = getattr(self.tools.mb, op_type)(**inputs, name=name)
        self.calls.append(Call(op_type, inputs, result))
        return result

    def _emit(self, node: Node, op_type: str, name: str, inputs: dict[str, Any]) -> Any:
        self.origin[name] = node
        try:
            return self.call(op_type, name, inputs)
        except Exception as exc:
            raise BuildError(
                f"Core ML, {node.op} at {node.name!r}",
                f"MIL refuses {op_type}: {exc}",
                "",
                "report it with the model; meanwhile build for another engine",
            ) from exc


def _within_float32(value: np.ndarray) -> np.ndarray:
    """float64 constants beyond float32 become its largest numbers, not infinities, which would turn masks into NaN."""
    if value.dtype != np.float64:
        return value
    largest = np.finfo(np.float32).max
    return np.where(np.isfinite(value), np.clip(value, -largest, largest), value)


def _first_output(node: Node) -> str:
    return next(name for name in node.outputs if name)


# --- registry and rules --------------------------------------------------------------------------------------------------------------------

ops: Registry[MilContext] = Registry("coreml")
"""Handlers by operator. `op` registers; the modules of this package fill it."""


def op(
    *names: str, since: int = 1, parameters: tuple[int, ...] = (), constraints: tuple[Constraint, ...] = ()
) -> Callable[[Handler], Handler]:
    """Register a handler with the rules of all nodes.

    Args:
        names: ONNX operators.
        since: opset from which it holds.
        parameters: inputs that are no data (shapes, axes, pads): they must be constants and are not passed to Core ML.
        constraints: further rules, see `edgekit.converters._registry`.
    """
    rules: tuple[Constraint, ...] = (_carried(parameters), _rank, _not_empty)
    if parameters:
        rules = (constant_at(*parameters), *rules)
    return ops.handler(*names, since=since, constraints=(*rules, *constraints))


def constant_at(*indices: int) -> Constraint:
    """Rule: these inputs are constants or omitted."""

    def rule(node: Node, graph: Graph) -> str:
        named = [node.input(index) for index in indices if node.input(index)]
        varying = [name for name in named if name not in graph.constants]
        return f"input {varying[0]!r} is computed at run time; it must be a constant" if varying else ""

    rule.__doc__ = f"input {', '.join(map(str, indices))} is a constant"
    return rule


def floats(node: Node, graph: Graph) -> str:
    """The first input is a float"""
    dtype = graph.types[node.inputs[0]].dtype
    return "" if dtype in ("float32", "float16", "float64") else f"{dtype} input; only floats are taken"


def integers(node: Node, graph: Graph) -> str:
    """The first input is an integer"""
    dtype = graph.types[node.inputs[0]].dtype
    return "" if mil_dtype(dtype) == "int32" else f"{dtype} input; only integers are taken"


def numbers(node: Node, graph: Graph) -> str:
    """The first input is a float or an integer, and no result of an unsigned 32- or 64-bit dtype can pass 2^31 unseen"""
    dtype = graph.types[node.inputs[0]].dtype
    if dtype == "bool":
        return "bool input; only numbers are taken"
    if dtype in _WIDE_UNSIGNED and node.op in _GROWING and graph.consumers(node.outputs[0]):
        return f"{dtype} arithmetic inside the graph; Core ML carries it as int32, which wraps around at another value"
    return ""


def not_boolean(node: Node, graph: Graph) -> str:
    """The first input is not boolean"""
    return "bool input" if graph.types[node.inputs[0]].dtype == "bool" else ""


_WIDE_UNSIGNED = ("uint32", "uint64")
# Their results may leave the range of uint32's half that int32 shares with it. As an output of the graph the bits are still right.
_GROWING = frozenset(
    ("Add", "Sub", "Mul", "Sum", "Neg", "Pow", "ReduceSum", "ReduceProd", "ReduceSumSquare", "ReduceL1", "CumSum", "MatMul")
)


def _data(node: Node, parameters: tuple[int, ...]) -> list[str]:
    read = [name for index, name in enumerate(node.inputs) if name and index not in parameters]
    return read + [name for name in node.outputs if name]


def _carried(parameters: tuple[int, ...]) -> Constraint:
    def rule(node: Node, graph: Graph) -> str:
        for name in _data(node, parameters):
            if not mil_dtype(graph.types[name].dtype):
                return f"tensor {name!r} is {graph.types[name].dtype}; Core ML carries floats, integers and bool"
            value = graph.constants.get(name)
            if value is not None and value.dtype.kind in "iu" and value.size and not _fits(value):
                return f"constant {name!r} has values outside int32, Core ML's only wide integer"
        return ""

    rule.__doc__ = "floats (computed in float32), bool, and integers whose values fit int32"
    return rule


def _fits(value: np.ndarray) -> bool:
    return int(value.min()) >= INT32.min and int(value.max()) <= INT32.max


def _rank(node: Node, graph: Graph) -> str:
    """Tensors have rank 5 or less, but for element-wise operators, reshapes, transpositions, and operators on neighbouring axes"""
    return unflattened_reason(node, graph)


def _not_empty(node: Node, graph: Graph) -> str:
    """A tensor without elements is neither an output of the graph nor read by anything but Concat"""
    outputs = {spec.name for spec in graph.outputs}
    empty = [name for name in node.outputs if name and 0 in graph.types[name].shape and name in outputs]
    if node.op != "Concat" and not all(0 in graph.types[name].shape for name in node.outputs if name):
        empty += [name for name in node.inputs[:1] if name and 0 in graph.types[name].shape]
    return f"tensor {empty[0]!r} has no elements" if empty else ""
