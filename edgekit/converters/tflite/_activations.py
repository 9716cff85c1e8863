"""Activation functions of recurrent operators, by the names and defaults of the ONNX specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.converters._graph import Graph, Node

__all__ = ["Activation", "activations_of", "known_activations"]

Activation = Callable[[Any], Any]

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
# name -> (default alpha, default beta), None where the function has none
_PARAMETERS: dict[str, tuple[float | None, float | None]] = {
    "relu": (None, None),
    "tanh": (None, None),
    "sigmoid": (None, None),
    "softsign": (None, None),
    "softplus": (None, None),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}


def known_activations(node: Node, graph: Graph) -> str:
    """Activations are those of the specification, in its number."""
    del graph
    found = node.attrs.get("activations") or []
    unknown = [name for name in found if name.lower() not in _PARAMETERS]
    if unknown:
        return f"activation {unknown[0]}"
    wanted = len(_DEFAULTS[node.op]) * _directions(node)
    return f"{len(found)} activations" if found and len(found) != wanted else ""


def _directions(node: Node) -> int:
    return 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1


def activations_of(node: Node, tf: Any) -> list[list[Activation]]:
    """Per direction the functions in the specification's order; each takes a tensor, which ``clip`` bounds first."""
    names = [name.lower() for name in node.attrs.get("activations") or _DEFAULTS[node.op] * _directions(node)]
    alphas, betas = list(node.attrs.get("activation_alpha") or ()), list(node.attrs.get("activation_beta") or ())
    functions = []
    for name in names:
        alpha, beta = _PARAMETERS[name]
        # "The values are consumed in the order of activation functions": by those that have one.
        given = (_next(alphas, alpha), _next(betas, beta))
        functions.append(_function(tf, name, *given))
    count = len(_DEFAULTS[node.op])
    clip = node.attrs.get("clip")
    if clip is not None:
        functions = [_clipped(tf, function, float(clip)) for function in functions]
    return [functions[start : start + count] for start in range(0, len(functions), count)]


def _next(values: list[float], default: float | None) -> float:
    if default is None:
        return 0.0
    return float(values.pop(0)) if values else default


def _clipped(tf: Any, function: Activation, limit: float) -> Activation:
    return lambda x: function(tf.minimum(tf.maximum(x, -limit), limit))


def _function(tf: Any, name: str, alpha: float, beta: float) -> Activation:
    functions: dict[str, Activation] = {
        "relu": tf.nn.relu,
        "tanh": tf.tanh,
        "sigmoid": tf.sigmoid,
        "softsign": lambda x: x / (tf.abs(x) + 1.0),
        "softplus": lambda x: tf.nn.relu(x) + tf.math.log(tf.exp(-tf.abs(x)) + 1.0),
        "affine": lambda x: x * alpha + beta,
        "leakyrelu": lambda x: tf.nn.leaky_relu(x, alpha),
        "thresholdedrelu": lambda x: tf.where(x >= alpha, x, tf.zeros_like(x)),
        "scaledtanh": lambda x: tf.tanh(x * beta) * alpha,
        "hardsigmoid": lambda x: tf.minimum(tf.maximum(x * alpha + beta, 0.0), 1.0),
        "elu": lambda x: tf.nn.relu(x) + (tf.exp(tf.minimum(x, 0.0)) - 1.0) * alpha,
    }
    return functions[name]
