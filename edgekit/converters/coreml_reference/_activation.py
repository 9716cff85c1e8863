"""Activations and softmax (coremltools ``iOS15/activation.py``)."""

from __future__ import annotations

import numpy as np

from edgekit.converters.coreml_reference._elementwise import erf
from edgekit.converters.coreml_reference._registry import number, op
from edgekit.converters.coreml_reference._values import Array

__all__ = ["sigmoid", "softmax"]


def sigmoid(x: Array) -> Array:
    """Logistic function without overflow for large negative ``x``."""
    decay = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, decay) / (1 + decay))


@op("softmax")
def softmax(x: Array, axis: Array | int = -1) -> Array:
    """Normalised exponentials along ``axis``."""
    powers = np.exp(x - x.max(axis=number(axis), keepdims=True))
    return np.asarray(powers / powers.sum(axis=number(axis), keepdims=True))


def _channels(alpha: Array, x: Array) -> Array:
    """A vector over the channel dimension (the second), shaped to broadcast against ``x``."""
    if alpha.ndim != 1 or x.ndim < 2 or alpha.shape[0] not in (1, x.shape[1]):
        raise ValueError(f"alpha of shape {alpha.shape} for an input of shape {x.shape}")
    return alpha.reshape(-1, *(1,) * (x.ndim - 2))


@op("relu")
def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


@op("relu6")
def _relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0), 6)


@op("leaky_relu")
def _leaky_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * x)


@op("prelu")
def _prelu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, _channels(alpha, x) * x)


@op("clamped_relu")
def _clamped_relu(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(beta, np.where(x >= 0, x, alpha * x))


@op("elu")
def _elu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@op("gelu")
def _gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(np.float32(2)))))
    if mode == "TANH_APPROXIMATION":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(np.float32(2 / np.pi)) * (x + 0.044715 * x**3))))
    if mode == "SIGMOID_APPROXIMATION":
        return np.asarray(x * sigmoid(1.702 * x))
    raise ValueError(f"mode {mode!r}")


@op("linear_activation")
def _linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(x * alpha + beta)


@op("scaled_tanh")
def _scaled_tanh(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(alpha * np.tanh(beta * x))


@op("sigmoid")
def _sigmoid(x: Array) -> Array:
    return sigmoid(x)


@op("sigmoid_hard")
def _sigmoid_hard(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(alpha * x + beta, 0), 1))


@op("silu")
def _silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


@op("softplus")
def _softplus(x: Array) -> Array:
    return np.logaddexp(np.zeros((), x.dtype), x)


@op("softplus_parametric")
def _softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    return np.asarray(_channels(alpha, x) * np.logaddexp(np.zeros((), x.dtype), _channels(beta, x) * x))


@op("softsign")
def _softsign(x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


@op("thresholded_relu")
def _thresholded_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= alpha, x, np.zeros((), x.dtype))
