"""Keep TensorFlow's converter from swapping operands.

TensorFlow 2.21 moves a transpose behind the element-wise operators that follow it (its pass PushTransposeThroughEwise) and, where the other operand
is a constant, puts that second: ``1 - transpose(x)`` comes out as ``transpose(x - 1)``, ``1 / transpose(x)`` as ``transpose(x / 1)``. It does so with
constants only, so such a constant gets a zero added that is known at run time alone.
"""

from __future__ import annotations

from typing import Any

__all__ = ["hold_constants"]

_ORDERED = ("Sub", "RealDiv", "Div")
_ELEMENTWISE = frozenset(
    {
        *(
            "Add",
            "AddV2",
            "Sub",
            "Mul",
            "RealDiv",
            "Div",
            "Maximum",
            "Minimum",
            "Neg",
            "Abs",
            "Exp",
            "Log",
            "Sqrt",
            "Rsqrt",
            "Square",
            "Pow",
        ),
        *("Relu", "Relu6", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Cast", "Identity"),
        *("SquaredDifference", "FloorDiv", "FloorMod", "SelectV2", "Reshape", "Gelu", "Erf", "BiasAdd"),
    }
)


def hold_constants(tf: Any) -> None:
    """Give every constant that the converter would swap its run-time zero; works on the graph under construction."""
    graph = tf.compat.v1.get_default_graph()
    for operation in graph.get_operations():
        place = _swapped(operation)
        if place is None:
            continue
        source = _transposed(operation.inputs[1 - place])
        if source is not None:
            operation._update_input(place, operation.inputs[place] + _zero(tf, source, operation.inputs[place].dtype))


def _swapped(operation: Any) -> int | None:
    """Index of the constant operand whose place matters: the first of a difference or quotient, or one that a negative is added to."""
    inputs = operation.inputs
    if operation.type in _ORDERED and _is_constant(inputs[0]):
        return 0
    if operation.type in ("Add", "AddV2"):
        for place in (0, 1):
            if _is_constant(inputs[place]) and inputs[1 - place].op.type == "Neg":
                return place
    return None


def _is_constant(tensor: Any) -> bool:
    while tensor.op.type in ("Identity", "Cast", "Reshape"):
        tensor = tensor.op.inputs[0]
    return bool(tensor.op.type == "Const")


def _transposed(tensor: Any) -> Any:
    """The tensor whose transpose reaches ``tensor`` through element-wise operators; None when there is none."""
    waiting, seen = [tensor], set()
    while waiting:
        operation = waiting.pop().op
        if operation.name in seen:
            continue
        seen.add(operation.name)
        if operation.type == "Transpose" and not _is_constant(operation.inputs[0]):
            return operation.inputs[0]
        if operation.type in _ELEMENTWISE:
            waiting += list(operation.inputs)
    return None


def _zero(tf: Any, source: Any, dtype: Any) -> Any:
    """Zero, as far as the converter can tell not always: whether a number is less than itself."""
    first = tf.slice(tf.reshape(source, [-1]), [0], [1])
    first = tf.cast(first, "int32") if first.dtype.name in ("bool", "int8", "uint8") else first
    return tf.reshape(tf.cast(tf.less(first, first), dtype), [])
