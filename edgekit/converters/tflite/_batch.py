"""A file whose batch stays open, made from the files of two batch sizes: what differs between them is what depends on the batch.

Both files come from the same graph through the same handlers, so they hold the same operators in the same order. Every size that differs is a linear
function of the batch, ``base + slope * batch``, which two samples determine. In shape vectors the batch becomes -1 where the kernel has that word, and
is computed from an input's shape where it has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit.converters.tflite._flatfile import Constants, read_model, write_model

__all__ = ["BATCHES", "BatchError", "open_batch"]

BATCHES = (5, 7)
"""The sizes of the two files: no usual number of channels, taps or strides, which could be mistaken for the batch."""


_VERSIONS = {"BROADCAST_TO": 2}
"""First versions of kernels that LiteRT registers (tensorflow/lite/kernels/register.cc), where that is not 1."""


class BatchError(Exception):
    """What in the graph depends on the batch in a way that no file can express."""


def open_batch(files: tuple[bytes, bytes]) -> bytes:
    """One file for every batch.

    Args:
        files: of the two batches `BATCHES`.

    Raises:
        BatchError: the files differ in more than sizes, or a constant's values depend on the batch.
    """
    schema, (model, other) = _schema(), (read_model(data) for data in files)
    if len(model.subgraphs) != len(other.subgraphs):
        raise BatchError("the number of subgraphs depends on the batch")
    for subgraph, twin in zip(model.subgraphs, other.subgraphs, strict=True):
        _Subgraph(schema, model, other, subgraph, twin).generalise()
    return write_model(model)


def _schema() -> Any:
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def _line(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Base and slope of sizes as functions of the batch.

    Raises:
        BatchError: they are no whole multiples.
    """
    one, two = np.asarray(first, np.int64), np.asarray(second, np.int64)
    rise = two - one
    if np.any(rise % (BATCHES[1] - BATCHES[0])):
        raise BatchError(f"sizes {one.tolist()} become {two.tolist()}, which is not in proportion to the batch")
    slope = rise // (BATCHES[1] - BATCHES[0])
    return one - slope * BATCHES[0], slope


def _settings(operator: Any) -> dict[str, object]:
    """An operator's plain options; the copy of a shape that RESHAPE has is no plain one."""
    return {key: value for key, value in vars(operator.builtinOptions or object).items() if isinstance(value, bool | int | float)}


class _Subgraph:
    """One subgraph of the file in the making, beside the same one at the other batch."""

    def __init__(self, schema: Any, model: Any, other: Any, graph: Any, twin: Any) -> None:
        self.schema, self.model, self.graph, self.twin = schema, model, graph, twin
        self.constants = Constants(schema, model, graph)
        self.others = Constants(schema, other, twin)
        self.codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
        self.batch = -1  # tensor that holds the batch, once something needs it
        self.added: list[Any] = []

    def generalise(self) -> None:
        """Rewrite shapes and constants for any batch.

        Raises:
            BatchError: see `open_batch`.
        """
        self._check_same_operators()
        for operator in self.graph.operators:
            self._open_constants(operator)
        for tensor, twin in zip(self.graph.tensors, self.twin.tensors, strict=False):
            self._open_shape(tensor, twin)
        self.graph.operators = [*self.added, *self.graph.operators]

    def _check_same_operators(self) -> None:
        mine, theirs = self.graph.operators or [], self.twin.operators or []
        self.graph.operators = list(mine)
        same = len(mine) == len(theirs) and len(self.graph.tensors) == len(self.twin.tensors)
        if not same or any(
            one.opcodeIndex != two.opcodeIndex
            or list(one.inputs) != list(two.inputs)
            or list(one.outputs) != list(two.outputs)
            or _settings(one) != _settings(two)
            for one, two in zip(mine, theirs, strict=True)
        ):
            raise BatchError("its operators depend on the batch")

    def _open_shape(self, tensor: Any, twin: Any) -> None:
        constant = self.model.buffers[tensor.buffer].data is not None  # one that is repeated, and read by nobody any more
        if constant or tensor.shape is None or twin.shape is None or list(tensor.shape) == list(twin.shape):
            return
        base, slope = _line(tensor.shape, twin.shape)
        tensor.shapeSignature = np.where(slope != 0, -1, base).astype(np.int32)
        tensor.shape = (base + slope).astype(np.int32)

    # --- constants ---------------------------------------------------------------------------------------------------------------------------

    def _open_constants(self, operator: Any) -> None:
        builtin = self.schema.BuiltinOperator
        code = self.codes[operator.opcodeIndex]
        if code == builtin.RESHAPE:
            operator.builtinOptions, operator.builtinOptionsType = None, 0  # its copy of the shape; the input says the same
        for position, index in enumerate(list(operator.inputs)):
            if index < 0:
                continue
            value, other = self.constants.get(index), self.others.get(index)
            if value is None or other is None or (value.shape == other.shape and np.array_equal(value, other)):
                continue
            inputs = list(operator.inputs)
            if value.shape != other.shape:
                inputs[position] = self._repeated(index, value, other)
            elif code == builtin.STRIDED_SLICE and position == 2:
                self._open_ends(operator, value, other)
                continue
            else:
                inputs[position] = self._sizes(operator, code, position, value, other)
            operator.inputs = inputs

    def _sizes(self, operator: Any, code: int, position: int, value: np.ndarray, other: np.ndarray) -> int:
        """A tensor with sizes for any batch: a constant with -1 where that means the rest, else computed.

        Raises:
            BatchError: the constant is no shape.
        """
        if value.dtype not in (np.int32, np.int64) or value.ndim != 1 or not self._takes_sizes(code, position):
            raise BatchError(f"a constant of {self._name(code)} depends on the batch")
        base, slope = _line(value, other)
        rest = (code == self.schema.BuiltinOperator.RESHAPE and np.count_nonzero(slope) == 1) or (
            code == self.schema.BuiltinOperator.SLICE and self._reaches_end(operator, value, other)
        )
        if rest:
            return self.constants.add(np.where(slope != 0, -1, base).astype(value.dtype))
        if value.dtype != np.int32:
            raise BatchError(f"a shape of {self._name(code)} is int64")
        return self._computed(base, slope)

    def _takes_sizes(self, code: int, position: int) -> bool:
        builtin = self.schema.BuiltinOperator
        places = {
            builtin.RESHAPE: 1,
            builtin.SLICE: 2,
            builtin.TRANSPOSE_CONV: 0,
            builtin.CONV_3D_TRANSPOSE: 0,
            builtin.BROADCAST_TO: 1,
            builtin.FILL: 0,
            builtin.TILE: 1,
            builtin.SCATTER_ND: 2,
        }
        return places.get(code) == position

    def _reaches_end(self, operator: Any, value: np.ndarray, other: np.ndarray) -> bool:
        begins = self.constants.get(operator.inputs[1])
        axes = np.flatnonzero(value != other)
        ends = [(tensors[operator.inputs[0]].shape, sizes) for tensors, sizes in ((self.graph.tensors, value), (self.twin.tensors, other))]
        return begins is not None and all(begins[axis] + sizes[axis] == shape[axis] for shape, sizes in ends for axis in axes)

    def _open_ends(self, operator: Any, value: np.ndarray, other: np.ndarray) -> None:
        """Let a strided slice run to the end where it did at both batches."""
        for axis in np.flatnonzero(value != other):
            if operator.builtinOptions.endMask >> int(axis) & 1:
                continue
            whole = all(
                tensors[operator.inputs[0]].shape[axis] == ends[axis]
                for tensors, ends in ((self.graph.tensors, value), (self.twin.tensors, other))
            )
            if not whole:
                raise BatchError("a slice of the batch depends on its size")
            operator.builtinOptions.endMask |= 1 << int(axis)

    def _repeated(self, index: int, value: np.ndarray, other: np.ndarray) -> int:
        """A constant that is the same for every row of the batch, repeated when the file runs.

        Raises:
            BatchError: rows differ.
        """
        base, slope = _line(value.shape, other.shape)
        axes = np.flatnonzero(slope)
        first = value[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(value.ndim))]
        if np.any(base[axes]) or not (
            np.array_equal(np.broadcast_to(first, value.shape), value) and np.array_equal(np.broadcast_to(first, other.shape), other)
        ):
            raise BatchError(f"constant {self.graph.tensors[index].name.decode()!r} has its own values for each row of the batch")
        result = self.constants.declare(self.graph.tensors[index], base + slope, np.where(slope != 0, -1, base))
        self._add("BROADCAST_TO", [self.constants.add(np.ascontiguousarray(first)), self._computed(base, slope)], result)
        return result

    # --- computing sizes ---------------------------------------------------------------------------------------------------------------------

    def _computed(self, base: np.ndarray, slope: np.ndarray) -> int:
        """A vector ``base + slope * batch``, int32."""
        scaled, total = (self.constants.vector(base + slope) for _ in range(2))
        self._add("MUL", [self._batch(), self.constants.add(slope.astype(np.int32))], scaled, self.schema.MulOptionsT())
        self._add("ADD", [scaled, self.constants.add(base.astype(np.int32))], total, self.schema.AddOptionsT())
        return total

    def _batch(self) -> int:
        """A tensor of one element that holds the batch.

        Raises:
            BatchError: no input of the subgraph has it.
        """
        if self.batch < 0:
            index, axis = next(self._batch_axes(), (-1, -1))
            if index < 0:
                raise BatchError("a part of the graph that needs the batch has no input that shows it")
            shape = self.constants.vector(np.ones(len(self.graph.tensors[index].shape), np.int64))
            self.batch = self.constants.vector(np.ones(1, np.int64))
            options = self.schema.ShapeOptionsT()
            options.outType = self.schema.TensorType.INT32
            self._add("SHAPE", [index], shape, options)
            ends = [self.constants.add(np.asarray([at], np.int32)) for at in (axis, 1)]
            self._add("SLICE", [shape, *ends], self.batch, self.schema.SliceOptionsT())
        return self.batch

    def _batch_axes(self) -> Iterator[tuple[int, int]]:
        for index in self.graph.inputs:
            for axis, sizes in enumerate(zip(self._shape(index, self.graph), self._shape(index, self.twin), strict=True)):
                if sizes == BATCHES:
                    yield int(index), axis

    @staticmethod
    def _shape(index: int, graph: Any) -> tuple[int, ...]:
        shape = graph.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def _add(self, name: str, inputs: list[int], output: int, options: Any = None) -> None:
        """Put an operator in front of all others."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.constants.opcode(getattr(self.schema.BuiltinOperator, name), _VERSIONS.get(name, 1))
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.added.append(operator)

    def _name(self, code: int) -> str:
        return str(next(name for name, value in vars(self.schema.BuiltinOperator).items() if value == code))
