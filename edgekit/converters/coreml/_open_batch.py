"""A program whose batch stays open, made from the programs of two batch sizes: what differs between them is what depends on the batch.

Both programs come from the same graph through the same handlers, so they hold the same operators in the same order. The first is emitted once
more with an input of unknown length; every size that differs is a linear function of the batch, ``base + slope * batch``, which two programs
determine. Where MIL has a word for "the rest" or "to the end" that is written, else the size is computed from an input's shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters.coreml._context import Call
from edgekit.converters.coreml._program import MilProgram
from edgekit.converters.coreml._toolchain import Toolchain

__all__ = ["BATCHES", "MAX_BATCH", "BatchError", "open_batch"]

BATCHES = (5, 7)
"""The sizes of the two programs: no usual number of channels, taps or strides, which could be mistaken for the batch."""

MAX_BATCH = 64
"""Largest batch that the package admits: ML Programs want an upper bound of each flexible length."""

_BROADCASTING_NAMES = """add sub mul real_div floor_div mod pow maximum minimum equal not_equal less less_equal greater greater_equal
    logical_and logical_or logical_xor"""
_BROADCASTING = frozenset(_BROADCASTING_NAMES.split())
_SIZES = {"reshape": "shape", "tile": "reps", "fill": "shape"}


class BatchError(Exception):
    """What in the graph depends on the batch in a way that the program cannot express."""


def open_batch(programs: tuple[MilProgram, MilProgram], tools: Toolchain, target: Any) -> MilProgram:
    """One program for every batch from 1 to `MAX_BATCH`.

    Args:
        programs: of the two batches `BATCHES`.
        tools: coremltools.
        target: deployment target.

    Raises:
        BatchError: the programs differ in more than sizes, or a constant's values depend on the batch.
    """
    return _Replay(programs, tools).run(target)


def _line(one: Any, two: Any) -> tuple[np.ndarray, np.ndarray]:
    """Base and slope of sizes as functions of the batch.

    Raises:
        BatchError: they are no whole multiples.
    """
    first, second = np.atleast_1d(np.asarray(one, np.int64)), np.atleast_1d(np.asarray(two, np.int64))
    rise, step = second - first, BATCHES[1] - BATCHES[0]
    if np.any(rise % step):
        raise BatchError(f"sizes {first.tolist()} become {second.tolist()}, which is not in proportion to the batch")
    slope = rise // step
    return first - slope * BATCHES[0], slope


class _Replay:
    """The first program once more, with symbols for the batch."""

    def __init__(self, programs: tuple[MilProgram, MilProgram], tools: Toolchain) -> None:
        self.first, self.second = programs
        self.tools = tools
        self.made: dict[int, Any] = {}  # variable of the first program, by identity, -> that of this one
        self.batch: Any = None  # the batch as a vector of one, once something needs it

    def run(self, target: Any) -> MilProgram:
        calls, others = self.first.context.calls, self.second.context.calls
        if [call.op_type for call in calls] != [call.op_type for call in others]:
            raise BatchError("its operators depend on the batch")
        given, twins = self.first.function.inputs, self.second.function.inputs
        self.axes = {name: _open_axis(given[name].shape, twins[name].shape) for name in given}
        for name, axis in self.axes.items():
            if axis is not None and given[name].shape[axis] != BATCHES[0]:
                raise BatchError(f"input {name!r} has more axes than Core ML, so its batch is no axis of its own")
        symbol = self.tools.mil.get_new_symbol()
        placeholders = {name: self._placeholder(name, variable, symbol) for name, variable in given.items()}
        with self.tools.mil.Function(placeholders, opset_version=target) as function:
            self.made.update((id(variable), function.inputs[name]) for name, variable in given.items())
            self.inputs = function.inputs
            for call, other in zip(calls, others, strict=True):
                self._emit(call, other)
            function.set_outputs([self.made[id(variable)] for variable in self.first.function.outputs])
        program = self.tools.mil.Program()
        program.add_function("main", function)
        axes = {name: axis for name, axis in self.axes.items() if axis is not None}
        return MilProgram(program, self.first.context, self.first.inputs, self.first.outputs, axes)

    def _placeholder(self, name: str, variable: Any, symbol: Any) -> Any:
        axis = self.axes[name]
        shape = [symbol if place == axis else size for place, size in enumerate(variable.shape)]
        return self.tools.mb.placeholder(shape=shape, dtype=variable.dtype, name=name)

    def _emit(self, call: Call, other: Call) -> None:
        inputs = {key: self._argument(call, other, key, call.inputs[key], other.inputs[key]) for key in call.inputs}
        if call.op_type == "slice_by_index" and list(call.inputs["end"]) != list(other.inputs["end"]):
            inputs["end_mask"] = _open_ends(call, other)
        name = call.results[0].op.name
        try:
            result = getattr(self.tools.mb, call.op_type)(**inputs, name=name)
        except Exception as exc:
            raise BatchError(f"MIL cannot infer {call.op_type} {name!r}: {exc}") from exc
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        for old, twin, new in zip(call.results, other.results, results, strict=True):
            _check_shape(call, old, twin, new)
            new.name = old.name
            self.made[id(old)] = new

    # --- arguments ---------------------------------------------------------------------------------------------------------------------------

    def _argument(self, call: Call, other: Call, key: str, mine: Any, theirs: Any) -> Any:
        if id(mine) in self.made:
            return self.made[id(mine)]
        if isinstance(mine, tuple | list) and any(id(item) in self.made or isinstance(item, np.ndarray) for item in mine):
            return [self._argument(call, other, key, one, two) for one, two in zip(mine, theirs, strict=True)]
        if _same(mine, theirs):
            return mine
        if call.op_type == "slice_by_index" and key == "end":
            return mine  # see `_open_ends`
        if np.shape(mine) != np.shape(theirs):
            return self._repeated(call, np.asarray(mine), np.asarray(theirs))
        if _SIZES.get(call.op_type) == key:
            base, slope = _line(mine, theirs)
            if call.op_type == "reshape" and np.count_nonzero(slope) == 1:
                return [-1 if rise else int(size) for size, rise in zip(base, slope, strict=True)]
            return self._sizes(base, slope)
        raise BatchError(f"{key} of {call.op_type} {call.results[0].op.name!r} depends on the batch")

    def _sizes(self, base: np.ndarray, slope: np.ndarray) -> Any:
        """A vector of sizes, computed when the model runs."""
        mb, names = self.tools.mb, self.first.context.names
        if self.batch is None:
            name, axis = next((name, axis) for name, axis in self.axes.items() if axis is not None)
            shape = mb.shape(x=self.inputs[name], name=names.fresh("batch_shape"))
            self.batch = mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1], name=names.fresh("batch"))
        scaled = mb.mul(
            x=mb.tile(x=self.batch, reps=[len(base)], name=names.fresh("batch_each")),
            y=slope.astype(np.int32),
            name=names.fresh("batch_part"),
        )
        return mb.add(x=scaled, y=base.astype(np.int32), name=names.fresh("sizes"))

    def _repeated(self, call: Call, mine: np.ndarray, theirs: np.ndarray) -> Any:
        """A constant with as many equal parts as the batch asks for: one part where it broadcasts, else repeated when the model runs."""
        axis = _open_axis(mine.shape, theirs.shape)
        where = call.results[0].op.name
        if axis is None:
            raise BatchError(f"a constant of {call.op_type} {where!r} depends on the batch")
        part = mine.take([0], axis)
        base, slope = _line(mine.shape, theirs.shape)
        if base[axis] or not (
            np.array_equal(np.broadcast_to(part, mine.shape), mine) and np.array_equal(np.broadcast_to(part, theirs.shape), theirs)
        ):
            raise BatchError(f"the values of a constant of {call.op_type} {where!r} depend on the batch")
        if call.op_type in _BROADCASTING and self._other_is_open(call, mine, axis):
            return part
        reps = self._sizes(np.where(slope != 0, 0, 1), slope)
        mb, names = self.tools.mb, self.first.context.names
        if part.dtype != np.bool_:
            return mb.tile(x=part, reps=reps, name=names.fresh(f"{where}_repeated"))
        whole = mb.tile(x=part.astype(np.int32), reps=reps, name=names.fresh(f"{where}_repeated"))
        return mb.cast(x=whole, dtype="bool", name=names.fresh(f"{where}_repeated_bool"))

    def _other_is_open(self, call: Call, mine: np.ndarray, axis: int) -> bool:
        """Whether the other operand has the batch at the same place, counted from the right."""
        others = [value.shape for value in call.inputs.values() if id(value) in self.made]
        from_right = mine.ndim - axis
        return any(len(shape) >= from_right and shape[-from_right] == mine.shape[axis] for shape in others)


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, str):
        return bool(mine == theirs)
    one, two = np.asarray(mine), np.asarray(theirs)
    return one.shape == two.shape and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def _open_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """The one axis whose length differs; None when none does.

    Raises:
        BatchError: several do.
    """
    if len(one) != len(two):
        raise BatchError(f"shapes {list(one)} and {list(two)} differ in rank")
    differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    if len(differing) > 1:
        raise BatchError(f"several axes of {list(one)} depend on the batch")
    return differing[0] if differing else None


def _open_ends(call: Call, other: Call) -> list[bool]:
    """Where a slice goes to the end of an axis that depends on the batch.

    Raises:
        BatchError: it ends before that.
    """
    mask = []
    for axis, (one, two) in enumerate(zip(call.inputs["end"], other.inputs["end"], strict=True)):
        if one != two and (call.inputs["x"].shape[axis], other.inputs["x"].shape[axis]) != (one, two):
            raise BatchError(f"slice_by_index {call.results[0].op.name!r} ends inside the batch")
        mask.append(one != two)
    return mask


def _check_shape(call: Call, one: Any, two: Any, new: Any) -> None:
    """What depends on the batch must not have become a number, and what does not must have stayed the number that it was.

    Raises:
        BatchError: MIL infers another shape.
    """
    fits = len(one.shape) == len(new.shape) and all(
        not isinstance(size, int | np.integer) or (a == b == size) for a, b, size in zip(one.shape, two.shape, new.shape, strict=True)
    )
    if not fits:
        raise BatchError(f"{call.op_type} {call.results[0].op.name!r} has shape {list(map(str, new.shape))} with an open batch")
