"""The interpreter's face: what goes in and out, and a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.converters.coreml_reference._package import Package, open_package
from edgekit.converters.coreml_reference._program import execute, load_program
from edgekit.converters.coreml_reference._values import Array, DeclaredType, Value, describe
from edgekit.errors import EngineError, RequestError

__all__ = ["Interpreter", "TensorInfo", "run_package"]

# FeatureTypes.proto, ArrayFeatureType.ArrayDataType
_ARRAY_TYPES: dict[int, Any] = {65552: np.float16, 65568: np.float32, 65600: np.float64, 131080: np.int8, 131104: np.int32}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the model's description has it.

    Attributes:
        name: the feature's name.
        dtype: element type.
        shape: lengths; None where the shape is flexible or not said.
        choices: the shapes that are allowed, when the description enumerates them.
        ranges: lowest and highest length of each dimension (highest None for no limit), when the description gives ranges.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    choices: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()

    def admits(self, array: Array) -> bool:
        """Whether ``array`` has this element type and an allowed shape."""
        if array.dtype != self.dtype:
            return False
        if self.choices and array.shape not in self.choices:
            return False
        if self.ranges and (
            len(self.ranges) != array.ndim
            or not all(low <= dim and (high is None or dim <= high) for dim, (low, high) in zip(array.shape, self.ranges, strict=True))
        ):
            return False
        return DeclaredType("", self.dtype, self.shape).admits(array)

    def __str__(self) -> str:
        return str(DeclaredType("", self.dtype, self.shape))


class Interpreter:
    """A package, parsed and checked once, that runs any number of times. Safe to share between threads: a run changes nothing in it.

    Attributes:
        inputs, outputs: in the order of the model's description.
        opset: MIL opset of the program, such as 7 for ``CoreML7`` (iOS 17).

    Raises:
        BundleError: a part of the package is missing or damaged.
        EngineError: the program uses an op, a type or an input kind that is not known here, or contradicts itself.
        EnvironmentMissingError: coremltools, which brings the specification's classes, is not installed.
    """

    def __init__(self, path: Path) -> None:
        package = open_package(Path(path))
        self._name = package.path.name
        self._program = load_program(package)
        self.opset = self._program.opset
        self.inputs = tuple(_feature(package, feature, "input") for feature in package.spec.description.input)
        self.outputs = tuple(_feature(package, feature, "output") for feature in package.spec.description.output)
        self._check_description()

    def _check_description(self) -> None:
        """The description and the program must name the same tensors with the same types."""
        declared = self._program.inputs
        if {info.name for info in self.inputs} != set(declared):
            raise EngineError(
                f"{self._name}: inputs",
                f"{[info.name for info in self.inputs]}",
                f"{list(declared)} as the program has",
                "the package is damaged",
            )
        for info in self.inputs:
            want = declared[info.name]
            fixed = info.shape is not None and not info.choices and not info.ranges
            if want.dtype != info.dtype or (fixed and want.shape != info.shape):
                raise EngineError(
                    f"{self._name}: input {info.name!r}", f"described as {info}", f"{want} as the program has", "the package is damaged"
                )
        described = [info.name for info in self.outputs]
        if set(described) != set(self._program.outputs):
            found = f"{described}; expected {list(self._program.outputs)} as the program has"
            raise EngineError(f"{self._name}: outputs", found, "", "the package is damaged")

    def run(self, inputs: Mapping[str, Array], observe: Callable[[str, Value], None] | None = None) -> dict[str, Array]:
        """Evaluate the program.

        Args:
            inputs: one array for each input, of exactly the described type and shape; they are not changed.
            observe: told the name and value of everything that an operator computes; it must not change the value.

        Returns:
            One new array for each output.

        Raises:
            RequestError: a name, type or shape that the model does not have.
            EngineError: an op refused its inputs, or computed what the program does not declare.
        """
        tensors: dict[str, Value] = dict(self._program.constants)
        known = {info.name for info in self.inputs}
        if set(inputs) != known:
            raise RequestError(f"{self._name}: inputs", f"{sorted(inputs)}", f"{sorted(known)}", "give one array for each input")
        for info in self.inputs:
            array = np.asarray(inputs[info.name])
            if not info.admits(array) or not self._program.inputs[info.name].admits(array):
                raise RequestError(f"{self._name}: input {info.name!r}", describe(array), str(info), "give an array of this type and shape")
            tensors[info.name] = array
        for step in self._program.steps:
            computed = execute(step, tensors, self.opset)
            if observe is not None:
                for name, value in computed.items():
                    observe(name, value)
            tensors.update(computed)
            for name in step.last_uses:
                tensors.pop(name, None)
        return {info.name: self._result(info, tensors[info.name]) for info in self.outputs}

    def _result(self, info: TensorInfo, value: Value) -> Array:
        if isinstance(value, str) or value.dtype != info.dtype or (info.shape is not None and not info.admits(value)):
            raise EngineError(
                f"{self._name}: output {info.name!r}", f"computed {describe(value)}", f"{info} as described", "the package is damaged"
            )
        return value.copy()


def _feature(package: Package, feature: Any, role: str) -> TensorInfo:
    """A ``FeatureDescription`` as `TensorInfo`; only multi-dimensional arrays are known."""
    thing = f"{package.path.name}: {role} {feature.name!r}"
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise EngineError(thing, f"of kind {kind}", "multiArrayType", "the reference interpreter takes arrays only")
    array = feature.type.multiArrayType
    if array.dataType not in _ARRAY_TYPES:
        raise EngineError(thing, f"array data type {array.dataType}", f"one of {sorted(_ARRAY_TYPES)}", "the package is damaged")
    dtype = np.dtype(_ARRAY_TYPES[array.dataType])
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return TensorInfo(feature.name, dtype, None, choices=tuple(tuple(shape.shape) for shape in array.enumeratedShapes.shapes))
    if flexible == "shapeRange":
        # An upper bound below zero means no bound (FeatureTypes.proto, SizeRange).
        ranges = tuple(
            (int(size.lowerBound), int(size.upperBound) if size.upperBound >= 0 else None) for size in array.shapeRange.sizeRanges
        )
        return TensorInfo(feature.name, dtype, None, ranges=ranges)
    return TensorInfo(feature.name, dtype, tuple(array.shape) or None)


def run_package(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Read ``path``, evaluate it once and return its outputs; see `Interpreter` for errors and for repeated runs."""
    return Interpreter(path).run(inputs)
