"""A program whose batch, height or width stays open, made from programs of several sizes: what differs between them is what depends on those.

All programs come from the same graph through the same handlers, so they hold the same operators in the same order. The first is emitted once
more with inputs of unknown lengths; every size that differs is expressed by lengths that are there when the program runs
(`edgekit.converters._size_rules`). Where MIL has a word for "the rest" or "to the end" that is written instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.converters._size_rules import Seen, Size, express
from edgekit.converters.coreml._context import Call
from edgekit.converters.coreml._program import MilProgram
from edgekit.converters.coreml._toolchain import Toolchain

__all__ = ["BATCHES", "MAX_BATCH", "OpenSizeError", "open_sizes"]

BATCHES = (5, 7, 11)
"""Batches of the programs: no usual number of channels, taps or strides, which could be mistaken for the batch."""

MAX_BATCH = 64
"""Largest batch that the package admits: ML Programs want an upper bound of each flexible length."""

_BROADCASTING_NAMES = """add sub mul real_div floor_div mod pow maximum minimum equal not_equal less less_equal greater greater_equal
    logical_and logical_or logical_xor"""
_BROADCASTING = frozenset(_BROADCASTING_NAMES.split())
_SIZES = {("reshape", "shape"), ("tile", "reps"), ("fill", "shape"), ("slice_by_index", "begin"), ("slice_by_index", "end")}
_GRIDS = {  # of resize_bilinear -> arguments of upsample_bilinear that sample the same points when the factor is a whole number
    "STRICT_ALIGN_CORNERS": {"align_corners": True},
    "UNALIGN_CORNERS": {"align_corners": False},
    "DEFAULT": {"align_corners": False, "half_pixel_centers": False},
}


class OpenSizeError(Exception):
    """What in the graph depends on open sizes in a way that the program cannot express."""


def open_sizes(
    programs: Sequence[MilProgram], bounds: Mapping[tuple[str, int], tuple[int, int]], what: str, tools: Toolchain, target: Any
) -> MilProgram:
    """One program for every size within bounds.

    Args:
        programs: at two or more settings of the open dimensions, all of which differ from each other.
        bounds: shortest and longest length of each open dimension, by native name of the input and axis.
        what: the open dimensions, in words (``the batch``).
        tools: coremltools.
        target: deployment target.

    Raises:
        OpenSizeError: the programs differ in more than sizes, or a constant's values depend on them.
    """
    return _Replay(programs, what, tools).run(bounds, target)


class _Replay:
    """The first program once more, with symbols for what is open."""

    def __init__(self, programs: Sequence[MilProgram], what: str, tools: Toolchain) -> None:
        self.first, self.programs = programs[0], programs
        self.what, self.tools = what, tools
        self.made: dict[int, Any] = {}  # variable of the first program, by identity, -> that of this one
        self.seen: dict[int, list[Seen]] = {}  # variable of the first program -> its lengths that depend on what is open
        self.lengths: dict[tuple[int, int], Any] = {}  # variable and axis -> a vector of one with that length
        self.given: list[Seen] = []

    def run(self, bounds: Mapping[tuple[str, int], tuple[int, int]], target: Any) -> MilProgram:
        calls = [program.context.calls for program in self.programs]
        for each in zip(*calls, strict=False):
            if len({call.op_type for call in each}) > 1:
                raise OpenSizeError(f"its operators depend on {self.what}, from {self._where(each[0])} on")
        if len({len(each) for each in calls}) > 1:
            raise OpenSizeError(f"its operators depend on {self.what}")
        given = self.first.function.inputs
        axes = {name: self._open_axes(name, bounds) for name in given}
        placeholders = {name: self._placeholder(name, variable, axes[name]) for name, variable in given.items()}
        with self.tools.mil.Function(placeholders, opset_version=target) as function:
            for name, variable in given.items():
                self._add(variable, [program.function.inputs[name] for program in self.programs], function.inputs[name])
                self.given += self.seen.get(id(variable), [])
            for each in zip(*calls, strict=True):
                self._emit(each)
            function.set_outputs([self.made[id(variable)] for variable in self.first.function.outputs])
        program = self.tools.mil.Program()
        program.add_function("main", function)
        return MilProgram(
            program, self.first.context, self.first.inputs, self.first.outputs, {name: found for name, found in axes.items() if found}
        )

    def _open_axes(self, name: str, bounds: Mapping[tuple[str, int], tuple[int, int]]) -> dict[int, tuple[int, int]]:
        shapes = [program.function.inputs[name].shape for program in self.programs]
        axes = _open(shapes)
        known = {axis: bounds.get((name, axis)) for axis in axes}
        if None in known.values():
            raise OpenSizeError(f"input {name!r} has more axes than Core ML, so what is open is no axis of its own")
        return {axis: found for axis, found in known.items() if found is not None}

    def _placeholder(self, name: str, variable: Any, axes: Mapping[int, tuple[int, int]]) -> Any:
        shape = [self.tools.mil.get_new_symbol() if place in axes else size for place, size in enumerate(variable.shape)]
        return self.tools.mb.placeholder(shape=shape, dtype=variable.dtype, name=name)

    def _add(self, old: Any, twins: Sequence[Any], new: Any) -> None:
        self.made[id(old)] = new
        shapes = [tuple(twin.shape) for twin in twins]
        if found := [Seen(id(old), axis, tuple(shape[axis] for shape in shapes)) for axis in _open(shapes)]:
            self.seen[id(old)] = found

    def _emit(self, calls: tuple[Call, ...]) -> None:
        call = calls[0]
        op_type, inputs = call.op_type, {key: self._argument(calls, key, [each.inputs[key] for each in calls]) for key in call.inputs}
        if op_type == "slice_by_index" and (ends := self._open_ends(calls)):
            inputs["end_mask"] = ends
        if op_type == "resize_bilinear" and any(self._differs(calls, f"target_size_{side}") for side in ("height", "width")):
            op_type, inputs = "upsample_bilinear", self._upsampling(calls, inputs)
        name = call.results[0].op.name
        try:
            result = getattr(self.tools.mb, op_type)(**inputs, name=name)
        except Exception as exc:
            raise OpenSizeError(f"MIL cannot infer {self._where(call)}: {exc}") from exc
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        for position, new in enumerate(results):
            twins = [each.results[position] for each in calls]
            self._check_shape(call, twins, new)
            new.name = twins[0].name
            self._add(twins[0], twins, new)

    def _where(self, call: Call) -> str:
        """An operator, and the node of the source model that it is for."""
        name = call.results[0].op.name
        node = self.first.context.origin.get(name)
        return f"{call.op_type} {name!r}" + (f" (for {node.op} {node.name!r})" if node is not None else "")

    @staticmethod
    def _differs(calls: tuple[Call, ...], key: str) -> bool:
        return not all(_same(calls[0].inputs[key], call.inputs[key]) for call in calls)

    # --- arguments ---------------------------------------------------------------------------------------------------------------------------

    def _argument(self, calls: tuple[Call, ...], key: str, values: list[Any]) -> Any:
        mine, call = values[0], calls[0]
        if id(mine) in self.made:
            return self.made[id(mine)]
        if isinstance(mine, tuple | list) and any(id(item) in self.made or isinstance(item, np.ndarray) for item in mine):
            return [self._argument(calls, key, list(items)) for items in zip(*values, strict=True)]
        if all(_same(mine, other) for other in values):
            return mine
        if call.op_type == "resize_bilinear" and key.startswith("target_size_"):
            return mine  # see `_upsampling`
        if len({np.shape(value) for value in values}) > 1:
            return self._repeated(call, [np.asarray(value) for value in values])
        if (call.op_type, key) in _SIZES:
            return self._sizes(calls, key, np.asarray(values))
        raise OpenSizeError(f"{key} of {self._where(call)} depends on {self.what}")

    def _sizes(self, calls: tuple[Call, ...], key: str, values: np.ndarray) -> Any:
        """A vector of sizes (settings, places): with one -1 for "the rest", or put together when the model runs."""
        call = calls[0]
        found = [self._expressed(call, tuple(map(int, column))) for column in values.T]
        reading_to_the_end = [False] * len(found)
        if call.op_type == "slice_by_index" and key == "end":
            reading_to_the_end = self._open_ends(calls)
        rest = _rest(found, values) if call.op_type == "reshape" else -1
        sizes = []
        for place, size in enumerate(found):
            if place == rest:
                sizes.append(Size(-1))
            elif reading_to_the_end[place]:
                sizes.append(Size(int(values[0, place])))
            elif size is None:
                raise OpenSizeError(f"{key} {place} of {self._where(call)} is {values[:, place].tolist()}, and no tensor shows why")
            else:
                sizes.append(size)
        return self._vector(sizes)

    def _expressed(self, call: Call, values: tuple[int, ...]) -> Size | None:
        own = [seen for value in call.inputs.values() for part in _parts(value) for seen in self.seen.get(id(part), [])]
        others: Iterator[Seen] = (seen for found in reversed(self.seen.values()) for seen in found)
        return express(values, own, self.given, others)

    def _vector(self, sizes: Sequence[Size]) -> Any:
        """Sizes as constants where all are, else as a vector that is computed when the model runs."""
        if all(size.of is None for size in sizes):
            return [size.base for size in sizes]
        mb, fresh = self.tools.mb, self.first.context.names.fresh
        parts = [np.array([size.base], np.int32) if size.of is None else self._length(size, size.of) for size in sizes]
        return mb.concat(values=parts, axis=0, name=fresh("sizes")) if len(parts) > 1 else parts[0]

    def _length(self, size: Size, of: Seen) -> Any:
        """``base + slope * length`` as a vector of one."""
        mb, fresh = self.tools.mb, self.first.context.names.fresh
        tensor = int(str(of.tensor))
        if (tensor, of.axis) not in self.lengths:
            shape = mb.shape(x=self.made[tensor], name=fresh("shape"))
            self.lengths[tensor, of.axis] = mb.slice_by_index(x=shape, begin=[of.axis], end=[of.axis + 1], name=fresh("length"))
        length = self.lengths[tensor, of.axis]
        length = length if size.slope == 1 else mb.mul(x=length, y=np.array([size.slope], np.int32), name=fresh("multiple"))
        return length if size.base == 0 else mb.add(x=length, y=np.array([size.base], np.int32), name=fresh("size"))

    def _repeated(self, call: Call, values: list[np.ndarray]) -> Any:
        """A constant of equal parts, as many as sizes ask for: one part where it broadcasts, else repeated when the model runs."""
        mine = values[0]
        if len({value.ndim for value in values}) > 1:
            raise OpenSizeError(f"a constant of {self._where(call)} depends on {self.what}")
        axes = _open([value.shape for value in values])
        part = mine[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(mine.ndim))]
        if not all(np.array_equal(np.broadcast_to(part, value.shape), value) for value in values):
            raise OpenSizeError(f"the values of a constant of {self._where(call)} depend on {self.what}")
        if call.op_type in _BROADCASTING and all(self._other_is_open(call, mine, axis) for axis in axes):
            return part
        counts = [
            Size(1) if axis not in axes else self._expressed(call, tuple(value.shape[axis] for value in values))
            for axis in range(mine.ndim)
        ]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            raise OpenSizeError(f"a constant of {self._where(call)} is repeated as no tensor shows")
        mb, names, where = self.tools.mb, self.first.context.names, call.results[0].op.name
        if part.dtype != np.bool_:
            return mb.tile(x=part, reps=self._vector(known), name=names.fresh(f"{where}_repeated"))
        whole = mb.tile(x=part.astype(np.int32), reps=self._vector(known), name=names.fresh(f"{where}_repeated"))
        return mb.cast(x=whole, dtype="bool", name=names.fresh(f"{where}_repeated_bool"))

    def _other_is_open(self, call: Call, mine: np.ndarray, axis: int) -> bool:
        """Whether the other operand has that length at the same place, counted from the right."""
        others = [value.shape for value in call.inputs.values() if id(value) in self.made]
        from_right = mine.ndim - axis
        return any(len(shape) >= from_right and shape[-from_right] == mine.shape[axis] for shape in others)

    def _open_ends(self, calls: tuple[Call, ...]) -> list[bool]:
        """Where a slice goes to the end of an axis that is open; empty when it does nowhere."""
        ends, shapes = [list(call.inputs["end"]) for call in calls], [call.inputs["x"].shape for call in calls]
        mask = [
            len({end[axis] for end in ends}) > 1 and all(e[axis] == s[axis] for e, s in zip(ends, shapes, strict=True))
            for axis in range(len(ends[0]))
        ]
        return mask if any(mask) else []

    def _upsampling(self, calls: tuple[Call, ...], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`resize_bilinear` to sizes that are multiples of what it reads, by the factor."""
        call, factors = calls[0], {}
        for side, axis in (("height", -2), ("width", -1)):
            pairs = [(int(each.inputs[f"target_size_{side}"]), int(each.inputs["x"].shape[axis])) for each in calls]
            found = {target / size for target, size in pairs}
            if len(found) > 1 or not next(iter(found)).is_integer():
                raise OpenSizeError(f"target_size_{side} of {self._where(call)} depends on {self.what}, by no whole factor")
            factors[f"scale_factor_{side}"] = float(found.pop())
        return {"x": inputs["x"], **factors, **_GRIDS[call.inputs["sampling_mode"]]}

    def _check_shape(self, call: Call, twins: Sequence[Any], new: Any) -> None:
        """What depends on open sizes must not have become a number, and what does not must have stayed the number that it was.

        Raises:
            OpenSizeError: MIL infers another shape.
        """
        columns = list(zip(*(twin.shape for twin in twins), strict=True))
        fits = len(columns) == len(new.shape) and all(
            not isinstance(size, int | np.integer) or set(column) == {size} for column, size in zip(columns, new.shape, strict=True)
        )
        if not fits:
            raise OpenSizeError(f"{self._where(call)} gets shape {list(map(str, new.shape))} when {self.what} is open")


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, str):
        return bool(mine == theirs)
    one, two = np.asarray(mine), np.asarray(theirs)
    return one.shape == two.shape and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _open(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Axes whose length is not the same in all shapes.

    Raises:
        OpenSizeError: they differ in rank.
    """
    if len({len(shape) for shape in shapes}) > 1:
        raise OpenSizeError(f"shapes {', '.join(str(list(shape)) for shape in shapes)} differ in rank")
    return [axis for axis, column in enumerate(zip(*shapes, strict=True)) if len(set(column)) > 1]


def _rest(found: Sequence[Size | None], values: np.ndarray) -> int:
    """The place of a reshape that is written as -1: one that nothing shows, else the only open one; -1 when there is no such place."""
    unknown = [place for place, size in enumerate(found) if size is None]
    varying = [place for place in range(values.shape[1]) if len(set(values[:, place])) > 1]
    if len(unknown) == 1:
        return unknown[0]
    return varying[0] if not unknown and len(varying) == 1 else -1
