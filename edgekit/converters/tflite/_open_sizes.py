"""A file whose batch, height or width stays open, made from files of several sizes: what differs between them is what depends on those.

All files come from the same graph through the same handlers, so they hold the same operators in the same order. Every size that differs is expressed by lengths of
tensors that are there when the file runs (`edgekit.converters._size_rules`). In shape vectors it becomes -1 where the kernel has that word for the rest, and is
computed where it has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgekit.converters._size_rules import Seen, Size, express
from edgekit.converters.tflite._flatfile import Constants, read_model, write_model

__all__ = ["BATCHES", "OpenSizeError", "open_sizes"]

BATCHES = (5, 7, 11)
"""Batches of the files: no usual number of channels, taps or strides, which could be mistaken for the batch."""


_VERSIONS = {"BROADCAST_TO": 2}
"""First versions of kernels that LiteRT registers (tensorflow/lite/kernels/register.cc), where that is not 1."""

_SIZES = {
    "RESHAPE": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2),
    "TRANSPOSE_CONV": (0,),
    "CONV_3D_TRANSPOSE": (0,),
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "TILE": (1,),
    "SCATTER_ND": (2,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
}
"""Inputs that are sizes or places, which may be computed."""


class OpenSizeError(Exception):
    """What in the graph depends on open sizes in a way that no file can express."""


def open_sizes(files: Sequence[bytes], what: str) -> bytes:
    """One file for every size.

    Args:
        files: at two or more settings of the open dimensions, all of which differ from each other.
        what: the open dimensions, in words (``the batch``).

    Raises:
        OpenSizeError: the files differ in more than sizes, or a constant's values depend on them.
    """
    schema, models = _schema(), [read_model(data) for data in files]
    if len({len(model.subgraphs) for model in models}) > 1:
        raise OpenSizeError(f"the number of subgraphs depends on {what}")
    for index in range(len(models[0].subgraphs)):
        _Subgraph(schema, models, index, what).generalise()
    return write_model(models[0])


def _schema() -> Any:
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def _settings(operator: Any) -> dict[str, object]:
    """An operator's plain options; the copy of a shape that RESHAPE has is no plain one."""
    return {key: value for key, value in vars(operator.builtinOptions or object).items() if isinstance(value, bool | int | float)}


class _Subgraph:
    """One subgraph of the first file, beside the same one at other sizes."""

    def __init__(self, schema: Any, models: Sequence[Any], index: int, what: str) -> None:
        self.schema, self.model, self.what = schema, models[0], what
        self.graphs = [model.subgraphs[index] for model in models]
        self.graph = self.graphs[0]
        self.all_constants = [Constants(schema, model, graph) for model, graph in zip(models, self.graphs, strict=True)]
        self.constants = self.all_constants[0]
        self.names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self.operators: list[Any] = []
        self.seen: dict[int, list[Seen]] = {}  # tensor -> its lengths that depend on what is open
        self.given: list[Seen] = []
        self.lengths: dict[tuple[int, int], int] = {}  # tensor and axis -> a vector of one with that length

    def generalise(self) -> None:
        """Rewrite shapes and constants for any size.

        Raises:
            OpenSizeError: see `open_sizes`.
        """
        self._check_same_operators()
        for index in self.graph.inputs:
            self.given += self._look(int(index))
        for operator in self.graph.operators or []:
            self._open_constants(operator)
            self._with_plain_padding(operator)
            self.operators.append(operator)
            for index in operator.outputs:
                self._look(int(index))
        for position, tensors in enumerate(zip(*(graph.tensors for graph in self.graphs), strict=False)):
            self._open_shape(position, tensors)
        self.graph.operators = self.operators

    def _check_same_operators(self) -> None:
        lists = [graph.operators or [] for graph in self.graphs]
        for each in zip(*lists, strict=False):
            one = each[0]
            if not all(
                one.opcodeIndex == other.opcodeIndex
                and list(one.inputs) == list(other.inputs)
                and list(one.outputs) == list(other.outputs)
                and _settings(one) == _settings(other)
                for other in each[1:]
            ):
                raise OpenSizeError(f"its operators depend on {self.what}: {self._where(one)}")
        if len({len(operators) for operators in lists}) > 1 or len({len(graph.tensors) for graph in self.graphs}) > 1:
            raise OpenSizeError(f"its operators depend on {self.what}")

    def _shape(self, index: int, graph: Any) -> tuple[int, ...]:
        shape = graph.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def _look(self, index: int) -> list[Seen]:
        """Lengths of a tensor that depend on what is open."""
        if index < 0:
            return []
        columns = list(zip(*(self._shape(index, graph) for graph in self.graphs), strict=True))
        found = [Seen(index, axis, column) for axis, column in enumerate(columns) if len(set(column)) > 1]
        if found:
            self.seen[index] = found
        return found

    def _open_shape(self, index: int, tensors: Sequence[Any]) -> None:
        """Mark open lengths. As it lies in the file, the shape is that of the first setting, with an open batch of one."""
        tensor = tensors[0]
        constant = self.model.buffers[tensor.buffer].data is not None  # one that is repeated, and read by nobody any more
        shapes = [self._shape(index, graph) for graph in self.graphs]
        if constant or tensor.shape is None or len(set(shapes)) == 1:
            return
        first = np.asarray(shapes[0], np.int32)
        varying = np.any(np.asarray(shapes) != first, axis=0)
        tensor.shapeSignature = np.where(varying, -1, first).astype(np.int32)
        if len(shapes) == 2:  # only the batch is open: every length is in proportion to it
            rise = (np.asarray(shapes[1]) - first) // (BATCHES[1] - BATCHES[0])
            tensor.shape = (first - rise * (BATCHES[0] - 1)).astype(np.int32)

    # --- constants ---------------------------------------------------------------------------------------------------------------------------

    def _open_constants(self, operator: Any) -> None:
        name = self._name(operator)
        if name == "RESHAPE":
            operator.builtinOptions, operator.builtinOptionsType = None, 0  # its copy of the shape; the input says the same
        for position, index in enumerate(list(operator.inputs)):
            values = [] if index < 0 else [constants.get(index) for constants in self.all_constants]
            known = [value for value in values if value is not None]
            if not known or len(known) < len(values) or all(_same(known[0], value) for value in known):
                continue
            inputs = list(operator.inputs)
            if len({value.shape for value in known}) > 1:
                inputs[position] = self._repeated(operator, index, known)
            elif position not in _SIZES.get(name, ()):
                raise OpenSizeError(f"a constant of {self._where(operator)} depends on {self.what}")
            else:
                inputs[position] = self._sizes(operator, name, position, np.asarray(known))
            operator.inputs = inputs

    def _with_plain_padding(self, operator: Any) -> None:
        """PADV2 with zeros as PAD, which more kernels are written for."""
        if self._name(operator) != "PADV2":
            return
        value = self.constants.get(operator.inputs[2])
        if value is not None and value.dtype == np.float32 and not value.any():
            operator.opcodeIndex = self.constants.opcode(self.schema.BuiltinOperator.PAD)
            operator.inputs = list(operator.inputs[:2])
            operator.builtinOptions = self.schema.PadOptionsT()
            operator.builtinOptionsType = self.schema.BuiltinOptions.PadOptions

    def _sizes(self, operator: Any, name: str, position: int, values: np.ndarray) -> int:
        """A tensor with sizes (settings, places) for any setting: a constant with -1 where that means the rest, else computed.

        Raises:
            OpenSizeError: nothing shows what the sizes are.
        """
        if values.dtype not in (np.int32, np.int64) or values.ndim != 2:
            raise OpenSizeError(f"a constant of {self._where(operator)} depends on {self.what}")
        sizes = [self._expressed(operator, tuple(map(int, column))) for column in values.T]
        varying = [place for place, column in enumerate(values.T) if len(set(column.tolist())) > 1]
        rest: list[int] = []
        if name == "RESHAPE":
            unknown = [place for place, size in enumerate(sizes) if size is None]
            rest = unknown if len(unknown) == 1 else varying if len(varying) == 1 else []
        elif position == 2 and name in ("SLICE", "STRIDED_SLICE"):
            rest = [place for place in varying if self._reaches_end(operator, name, place, values)]
        if name == "STRIDED_SLICE":
            for place in rest:
                operator.builtinOptions.endMask |= 1 << place
        known = []
        for place, size in enumerate(sizes):
            found = Size(-1) if place in rest else size
            if found is None:
                raise OpenSizeError(f"a size of {self._where(operator)} is {values[:, place].tolist()}, and no tensor shows why")
            known.append(found)
        if all(size.of is None for size in known):
            return self.constants.add(np.asarray([size.base for size in known], values.dtype))
        if values.dtype != np.int32:
            raise OpenSizeError(f"a shape of {self._where(operator)} is int64")
        return self._computed(known)

    def _reaches_end(self, operator: Any, name: str, place: int, values: np.ndarray) -> bool:
        """Whether a slice goes to the end of an axis at every setting, from a begin that does not move."""
        begins = [constants.get(operator.inputs[1]) for constants in self.all_constants]
        lengths = [self._shape(operator.inputs[0], graph)[place] for graph in self.graphs]
        if any(begin is None for begin in begins):
            return False
        starts = {int(begin[place]) for begin in begins if begin is not None}
        start = min(starts) if name == "SLICE" else 0
        return len(starts) == 1 and all(start + size == length for size, length in zip(values[:, place].tolist(), lengths, strict=True))

    def _expressed(self, operator: Any, values: tuple[int, ...]) -> Size | None:
        own = [seen for index in operator.inputs for seen in self.seen.get(int(index), [])]
        others: Iterator[Seen] = (seen for found in reversed(self.seen.values()) for seen in found)
        return express(values, own, self.given, others)

    def _repeated(self, operator: Any, index: int, values: Sequence[np.ndarray]) -> int:
        """A constant of equal parts, repeated when the file runs.

        Raises:
            OpenSizeError: parts differ.
        """
        thing = f"constant {self.graph.tensors[index].name.decode()!r} of {self._where(operator)}"
        if len({value.ndim for value in values}) > 1:
            raise OpenSizeError(f"{thing} depends on {self.what}")
        columns = list(zip(*(value.shape for value in values), strict=True))
        part = values[0][tuple(slice(0, 1) if len(set(column)) > 1 else slice(None) for column in columns)]
        if not all(np.array_equal(np.broadcast_to(part, value.shape), value) for value in values):
            raise OpenSizeError(f"{thing} has values of its own for each {'row of the batch' if len(values) == 2 else 'size'}")
        sizes = [self._expressed(operator, column) for column in columns]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise OpenSizeError(f"{thing} is repeated as no tensor shows")
        signature = np.asarray([-1 if size.of is not None else size.base for size in known])
        result = self.constants.declare(self.graph.tensors[index], np.where(signature < 0, 1, signature), signature)
        self._add("BROADCAST_TO", [self.constants.add(np.ascontiguousarray(part)), self._computed(known)], result)
        return result

    # --- computing sizes ---------------------------------------------------------------------------------------------------------------------

    def _computed(self, sizes: Sequence[Size]) -> int:
        """A vector of sizes, int32: ``base + slope * length`` each."""
        lengths = [self._length(size.of) if size.of is not None else -1 for size in sizes]
        shown = sorted(set(lengths) - {-1})
        count = len(sizes)
        if len(shown) == 1:
            result = shown[0]
        else:
            result = self.constants.vector(np.ones(count, np.int64))
            one = self.constants.add(np.ones(1, np.int32))
            options = self.schema.ConcatenationOptionsT()
            options.axis = 0
            self._add("CONCATENATION", [one if index < 0 else index for index in lengths], result, options)
        slopes = np.asarray([size.slope if size.of is not None else 0 for size in sizes], np.int32)
        bases = np.asarray([size.base for size in sizes], np.int32)
        for name, numbers in (("MUL", slopes), ("ADD", bases)):
            given, result = result, self.constants.vector(np.ones(count, np.int64))
            self._add(name, [given, self.constants.add(numbers)], result, getattr(self.schema, f"{name.capitalize()}OptionsT")())
        return result

    def _length(self, seen: Seen) -> int:
        """A tensor of one element that holds a length."""
        index, axis = int(str(seen.tensor)), seen.axis
        if (index, axis) not in self.lengths:
            shape = self.constants.vector(np.ones(len(self._shape(index, self.graph)), np.int64))
            length = self.constants.vector(np.ones(1, np.int64))
            options = self.schema.ShapeOptionsT()
            options.outType = self.schema.TensorType.INT32
            self._add("SHAPE", [index], shape, options)
            ends = [self.constants.add(np.asarray([at], np.int32)) for at in (axis, 1)]
            self._add("SLICE", [shape, *ends], length, self.schema.SliceOptionsT())
            self.lengths[index, axis] = length
        return self.lengths[index, axis]

    def _add(self, name: str, inputs: list[int], output: int, options: Any = None) -> None:
        """Put an operator in front of the one that is looked at."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.constants.opcode(getattr(self.schema.BuiltinOperator, name), _VERSIONS.get(name, 1))
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(operator)

    def _name(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return str(self.names[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def _where(self, operator: Any) -> str:
        """An operator, and the name of what it makes, which has that of the source's node in it."""
        return f"{self._name(operator)} {self.graph.tensors[operator.outputs[0]].name.decode()!r}"


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
