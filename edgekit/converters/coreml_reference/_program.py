"""An ML Program as a list of steps: constants evaluated, names resolved, operators known, lifetimes marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

# Imported for their registrations.
from edgekit.converters.coreml_reference import _constexpr, _elementwise, _index, _nn, _pool, _recurrent, _reduction, _resize, _tensor  # noqa: F401
from edgekit.converters.coreml_reference._blob import BlobFile
from edgekit.converters.coreml_reference._package import Package
from edgekit.converters.coreml_reference._proto import model_proto
from edgekit.converters.coreml_reference._registry import OpSpec, find_op
from edgekit.converters.coreml_reference._values import DeclaredType, Value, declared_type, describe, load_value
from edgekit.errors import BundleError, EngineError

__all__ = ["Program", "Step", "execute", "load_program"]

_DAMAGED = "the package is damaged or its writer is wrong; build it again"


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        thing: how messages name it.
        spec: the kernel.
        arguments: per input, names of tensors or values given in place.
        outputs: names and declared types.
        last_uses: names that nothing needs after this step.
    """

    thing: str
    spec: OpSpec
    arguments: Mapping[str, Sequence[str | tuple[Value]]]
    outputs: Sequence[tuple[str, DeclaredType]]
    last_uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """The main function.

    Attributes:
        opset: 7 is ``CoreML7``, iOS 17.
        inputs: name to declared type, in order.
        outputs: names.
        constants: values that every run shares.
        steps: what a run does, in order.
    """

    opset: int
    inputs: dict[str, DeclaredType]
    outputs: tuple[str, ...]
    constants: dict[str, Value]
    steps: tuple[Step, ...]


@dataclass
class _Loader:
    package: Package
    type_names: Callable[[int], str]
    files: dict[str, BlobFile] = field(default_factory=dict)

    def thing(self, what: str) -> str:
        return f"{self.package.path.name}: {what}"

    def weights(self, file_name: str) -> BlobFile:
        """The weights file of a value; ``@model_path`` is the model's folder."""
        if file_name not in self.files:
            relative = PurePosixPath(file_name.removeprefix("@model_path/"))
            if relative.is_absolute() or ".." in relative.parts or "\0" in file_name:
                raise BundleError(self.thing(f"weights {file_name!r}"), "a path outside the package", "a path under @model_path", _DAMAGED)
            self.files[file_name] = BlobFile(self.package.model_directory / relative)
        return self.files[file_name]

    def value(self, what: str, message: Any) -> Value:
        return load_value(self.thing(what), message, self.type_names, self.weights)

    def type(self, what: str, message: Any) -> DeclaredType:
        return declared_type(self.thing(what), message, self.type_names)

    def step(self, message: Any) -> Step:
        """An operation other than ``const``, its inputs checked against the kernel's parameters."""
        outputs = [(output.name, self.type(f"{message.type} {output.name!r}", output.type)) for output in message.outputs]
        thing = self.thing(f"{message.type} {', '.join(repr(name) for name, _ in outputs)}")
        spec = find_op(message.type)
        if spec is None:  # reported for all operations before
            raise EngineError(thing, "unknown op")
        arguments = {name: self._bound(message.type, name, argument) for name, argument in message.inputs.items()}
        # The constexpr ops of iOS 16 keep their parameters as attributes.
        for name, value in message.attributes.items():
            if name != "name":
                arguments[name] = [(self.value(f"{message.type} {name}", value),)]
        given = set(arguments)
        if given - spec.parameters or spec.required - given:
            odd = sorted(given - spec.parameters)
            found = f"unknown input {', '.join(odd)}" if odd else f"no input {', '.join(sorted(spec.required - given))}"
            step = "the reference interpreter does not know this form of the op"
            raise EngineError(thing, found, f"{', '.join(sorted(spec.parameters))}", step)
        for name, bound in arguments.items():
            if not bound or (len(bound) != 1 and name not in spec.variadic):
                raise EngineError(thing, f"{len(bound)} values for input {name}", "one", _DAMAGED)
        return Step(thing, spec, arguments, outputs)

    def _bound(self, what: str, name: str, argument: Any) -> list[str | tuple[Value]]:
        """What an input is bound to: names of tensors, or values given in place."""
        return [
            item.name if item.WhichOneof("binding") == "name" else (self.value(f"{what} {name}", item.value),)
            for item in argument.arguments
        ]


def load_program(package: Package) -> Program:
    """The package's main function, ready to run.

    Raises:
        BundleError: weights are missing or damaged.
        EngineError: operators that are not known (all at once), or a program that contradicts itself.
    """
    program = package.spec.mlProgram
    name = package.spec.description.defaultFunctionName or "main"
    if name not in program.functions:
        raise EngineError(f"{package.path.name}: function {name!r}", "not in the program", f"one of {sorted(program.functions)}", _DAMAGED)
    function = program.functions[name]
    block = function.block_specializations.get(function.opset)
    opset = function.opset.removeprefix("CoreML")
    if block is None or not opset.isascii() or not opset.isdigit():
        raise EngineError(f"{package.path.name}: function {name!r}", f"no block for opset {function.opset!r}", "one", _DAMAGED)
    loader = _Loader(package, _enum_names())
    _check_known(loader, block.operations)
    inputs = {entry.name: loader.type(f"input {entry.name!r}", entry.type) for entry in function.inputs}
    constants: dict[str, Value] = {}
    defined = set(inputs)
    steps: list[Step] = []
    for message in block.operations:
        if message.type == "const":
            _load_constant(loader, message, constants)
        else:
            step = loader.step(message)
            _check_order(step, constants.keys() if message.type.startswith("constexpr_") else defined)
            if message.type.startswith("constexpr_"):
                constants.update(execute(step, constants, int(opset)))
            else:
                steps.append(step)
        for output in message.outputs:
            if output.name in defined:
                raise EngineError(loader.thing(f"{message.type} {output.name!r}"), "a second tensor of this name", "unique names", _DAMAGED)
            defined.add(output.name)
    missing = [output for output in block.outputs if output not in defined]
    if missing:
        raise EngineError(loader.thing(f"output {missing[0]!r}"), "nothing computes it", "a tensor of the program", _DAMAGED)
    return Program(int(opset), inputs, tuple(block.outputs), constants, _with_lifetimes(steps, set(block.outputs)))


def _enum_names() -> Callable[[int], str]:
    """Function from a number of MIL's ``DataType`` to its name."""
    descriptor = model_proto().Model.DESCRIPTOR.fields_by_name["mlProgram"].message_type.file.enum_types_by_name["DataType"]
    names: dict[int, str] = {value.number: value.name for value in descriptor.values}

    def name_of(number: int) -> str:
        if number not in names:
            raise ValueError(number)
        return names[number]

    return name_of


def _check_known(loader: _Loader, operations: Sequence[Any]) -> None:
    unknown: dict[str, str] = {}
    for message in operations:
        if message.type != "const" and find_op(message.type) is None:
            unknown.setdefault(message.type, message.outputs[0].name if message.outputs else "")
    if unknown:
        listed = ", ".join(f"{name} (first at {where!r})" for name, where in unknown.items())
        raise EngineError(
            loader.package.path.name, f"unknown op {listed}", "", "the reference interpreter has no kernel for it; verify on a device"
        )


def _load_constant(loader: _Loader, message: Any, constants: dict[str, Value]) -> None:
    name = message.outputs[0].name if message.outputs else ""
    if len(message.outputs) != 1 or "val" not in message.attributes:
        raise EngineError(
            loader.thing(f"const {name!r}"),
            f"{len(message.outputs)} outputs, attributes {sorted(message.attributes)}",
            "one, val",
            _DAMAGED,
        )
    value = loader.value(f"const {name!r}", message.attributes["val"])
    declared = loader.type(f"const {name!r}", message.outputs[0].type)
    if not declared.admits(value):
        raise EngineError(loader.thing(f"const {name!r}"), describe(value), f"{declared} as the program declares", _DAMAGED)
    constants[name] = value


def _check_order(step: Step, defined: AbstractSet[str]) -> None:
    for name, bound in step.arguments.items():
        for item in bound:
            if isinstance(item, str) and item not in defined:
                raise EngineError(
                    step.thing, f"input {name} is {item!r}, which nothing computed before", "a tensor computed before", _DAMAGED
                )


def _with_lifetimes(steps: Sequence[Step], outputs: set[str]) -> tuple[Step, ...]:
    """Mark after which step each intermediate tensor can go."""
    seen = set(outputs)
    marked = []
    for step in reversed(steps):
        touched = {item for bound in step.arguments.values() for item in bound if isinstance(item, str)} | {
            name for name, _ in step.outputs
        }
        marked.append(replace(step, last_uses=tuple(touched - seen)))
        seen |= touched
    return tuple(reversed(marked))


def execute(step: Step, tensors: Mapping[str, Value], opset: int) -> dict[str, Value]:
    """Run one step and check what it computed against the declared types.

    Float16 inputs are widened to float32 for computing kernels, and results are rounded to float16 once.

    Raises:
        EngineError: the kernel refused its inputs, or a result is not of the declared type.
    """
    arguments: dict[str, Any] = {}
    for name, bound in step.arguments.items():
        values = [tensors[item] if isinstance(item, str) else item[0] for item in bound]
        arguments[name] = values if name in step.spec.variadic else values[0]
    target = _result_dtype(step, arguments)
    if step.spec.widen:
        arguments = {name: _widen(value) for name, value in arguments.items()}
    if step.spec.wants_opset:
        arguments["opset"] = opset
    try:
        with np.errstate(all="ignore"):
            result = step.spec.kernel(**arguments)
            results = [np.asarray(item) for item in (result if isinstance(result, tuple) else (result,))]
            if target is not None:
                results = [item.astype(target, copy=False) for item in results]
    except (ValueError, IndexError, TypeError, ArithmeticError, AttributeError) as exc:
        raise EngineError(step.thing, str(exc) or type(exc).__name__, "", _DAMAGED) from exc
    except MemoryError as exc:
        raise EngineError(step.thing, "no memory for its result", "", "free some memory or verify with a smaller input") from exc
    if len(results) != len(step.outputs):
        raise EngineError(step.thing, f"{len(results)} results", f"{len(step.outputs)} as the program declares", _DAMAGED)
    for (_, declared), value in zip(step.outputs, results, strict=True):
        if not declared.admits(value):
            raise EngineError(step.thing, f"computed {describe(value)}", f"{declared} as the program declares", _DAMAGED)
    return {name: value for (name, _), value in zip(step.outputs, results, strict=True)}


def _widen(value: Any) -> Any:
    if isinstance(value, list):
        return [_widen(item) for item in value]
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _dtypes(value: Any) -> list[np.dtype[Any]]:
    return [item.dtype for item in (value if isinstance(value, list) else [value]) if isinstance(item, np.ndarray)]


def _result_dtype(step: Step, arguments: Mapping[str, Any]) -> np.dtype[Any] | None:
    """Element type that the results get; None where the kernel decides."""
    agreeing = {dtype for name in step.spec.agree for dtype in _dtypes(arguments.get(name))}
    if len(agreeing) > 1:
        names = ", ".join(sorted(dtype.name for dtype in agreeing))
        raise EngineError(step.thing, f"inputs of types {names}", "one type", _DAMAGED)
    if step.spec.result == "own":
        return None
    if step.spec.result == "either":
        allowed = {*_dtypes(arguments.get("x")), *_dtypes(arguments.get("y"))}
        declared = step.outputs[0][1].dtype if step.outputs else None
        if declared not in allowed:
            raise EngineError(
                step.thing, f"inputs of types {', '.join(sorted(dtype.name for dtype in allowed))}", f"{declared} among them", _DAMAGED
            )
        return declared
    found = _dtypes(arguments.get(step.spec.primary))
    if not found:
        raise EngineError(step.thing, f"input {step.spec.primary} is not a tensor", "a tensor", _DAMAGED)
    return found[0]
