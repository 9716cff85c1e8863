"""The operator registry: one decorator, kernels as plain numpy functions.

A kernel's parameters are the MIL op's inputs, by name; optional inputs have the default that the op's definition documents. It may raise `ValueError` for what
the documentation leaves undefined; the interpreter adds the op's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from edgekit.converters.coreml_reference._values import Array

__all__ = ["OpSpec", "dtype_of", "find_op", "flag", "number", "numbers", "op", "supported_ops"]

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


@dataclass(frozen=True)
class OpSpec:
    """A registered kernel.

    Attributes:
        kernel: the function.
        parameters: names of the op's inputs.
        required: those without a default.
        wants_opset: the kernel takes ``opset`` (7 is iOS 17).
        variadic: inputs that are always a list.
        result: ``same``: every output has the element type of ``primary``; ``own``: the kernel decides; ``either``: that of ``x`` or ``y``, as declared.
        primary: the input that gives the element type.
        agree: inputs whose element types must be equal.
        widen: float16 inputs reach the kernel as float32, so that sums accumulate in float32; the result is rounded once.
    """

    kernel: Callable[..., Any]
    parameters: frozenset[str]
    required: frozenset[str]
    wants_opset: bool
    variadic: tuple[str, ...]
    result: Literal["same", "own", "either"]
    primary: str
    agree: tuple[str, ...]
    widen: bool


_OPS: dict[str, OpSpec] = {}


def op(
    *names: str,
    result: Literal["same", "own", "either"] = "same",
    primary: str = "x",
    agree: Sequence[str] = (),
    variadic: Sequence[str] = (),
    widen: bool = True,
) -> Callable[[Kernel], Kernel]:
    """Register a kernel for MIL ops; see `OpSpec` for the arguments."""

    def register(kernel: Kernel) -> Kernel:
        inputs = {name: parameter for name, parameter in inspect.signature(kernel).parameters.items() if name != "opset"}
        spec = OpSpec(
            kernel=kernel,
            parameters=frozenset(inputs),
            required=frozenset(name for name, parameter in inputs.items() if parameter.default is inspect.Parameter.empty),
            wants_opset=len(inputs) != len(inspect.signature(kernel).parameters),
            variadic=tuple(variadic),
            result=result,
            primary=primary,
            agree=tuple(agree),
            widen=widen,
        )
        for name in names:
            if name in _OPS:
                raise ValueError(f"two kernels for {name!r}; keep one")
            _OPS[name] = spec
        return kernel

    return register


def find_op(name: str) -> OpSpec | None:
    """The kernel of a MIL op, or None."""
    return _OPS.get(name)


def supported_ops() -> tuple[str, ...]:
    """Names of all MIL ops that the interpreter runs, sorted; ``const`` is one of them."""
    return tuple(sorted((*_OPS, "const")))


# Reading constant inputs ------------------------------------------------------------------------------------------------------------------------


def number(value: Array | int) -> int:
    """A scalar integer input."""
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"{array.size} values where one integer was expected")
    return int(array.reshape(()))


def numbers(value: Array | Sequence[int] | None, default: Sequence[int] = ()) -> list[int]:
    """A vector of integers, ``default`` when the input is absent."""
    return list(default) if value is None else [int(item) for item in np.asarray(value).reshape(-1)]


def flag(value: Array | bool) -> bool:
    """A scalar boolean input."""
    return bool(np.asarray(value).reshape(()))


_CAST_NAMES: dict[str, Any] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "float16": np.float16,
    "fp32": np.float32,
    "float32": np.float32,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
}


def dtype_of(name: str) -> np.dtype[Any]:
    """Element type by the name that ``cast`` and its like use."""
    if name not in _CAST_NAMES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(_CAST_NAMES)}")
    dtype: np.dtype[Any] = np.dtype(_CAST_NAMES[name])
    return dtype
