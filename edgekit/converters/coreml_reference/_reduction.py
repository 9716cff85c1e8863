"""Reductions (coremltools ``iOS15/reduction.py``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.converters.coreml_reference._registry import dtype_of, flag, number, numbers, op
from edgekit.converters.coreml_reference._values import Array

_Reducer = Callable[[Array, tuple[int, ...], bool], Array]


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.asarray(x.sum(axis=axes, keepdims=keep))


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    peak = x.max(axis=axes, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0)
    total = np.log(np.exp(x - peak).sum(axis=axes, keepdims=True)) + peak
    return np.asarray(total if keep else total.squeeze(axes))


_REDUCERS: dict[str, _Reducer] = {
    "reduce_sum": _sum,
    "reduce_mean": lambda x, axes, keep: np.asarray(x.mean(axis=axes, keepdims=keep)),
    "reduce_max": lambda x, axes, keep: np.asarray(x.max(axis=axes, keepdims=keep)),
    "reduce_min": lambda x, axes, keep: np.asarray(x.min(axis=axes, keepdims=keep)),
    "reduce_prod": lambda x, axes, keep: np.asarray(x.prod(axis=axes, keepdims=keep)),
    "reduce_l1_norm": lambda x, axes, keep: _sum(np.abs(x), axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: np.asarray(np.sqrt(_sum(np.square(x), axes, keep))),
    "reduce_sum_square": lambda x, axes, keep: _sum(np.square(x), axes, keep),
    "reduce_log_sum": lambda x, axes, keep: np.asarray(np.log(_sum(x, axes, keep))),
    "reduce_log_sum_exp": _log_sum_exp,
}


def _register(name: str, reducer: _Reducer) -> None:
    @op(name)
    def kernel(x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
        return reducer(x, tuple(axis % max(1, x.ndim) for axis in numbers(axes, range(x.ndim))), flag(keep_dims))


for _name, _reducer in _REDUCERS.items():
    _register(_name, _reducer)


def _register_arg(name: str, pick: Callable[..., Array]) -> None:
    @op(name, result="own")
    def kernel(x: Array, axis: Array | int = -1, keep_dims: Array | bool = False, output_dtype: str = "int32") -> Array:
        # Ties go to the first element; the definition leaves that open.
        return np.asarray(pick(x, axis=number(axis), keepdims=flag(keep_dims))).astype(dtype_of(output_dtype))


_register_arg("reduce_argmax", np.argmax)
_register_arg("reduce_argmin", np.argmin)
