"""What a handler works with: the tensors made so far, each with the order it lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph
from edgekit.converters._registry import Registry
from edgekit.converters.tflite._layout import Order, collapsed, identity, inverse, is_free, permuted
from edgekit.errors import BuildError

__all__ = ["Context", "ops"]

_TRANSPOSE_AXES = 6  # most that TRANSPOSE takes


class Context:
    """Tensors of one model under construction.

    Constants stay NumPy arrays in logical order until something reads them, so reordering them costs nothing at run time. A tensor is
    reordered at most once per order.

    Args:
        tf: the ``tensorflow`` module.
        graph: the model, each tensor in its carrier (see ``_carry``).
        logical: the model with the source's dtypes; default: ``graph``.
        int8: pairs of quantisation become fake quantisation, from which the converter makes int8 kernels.
    """

    def __init__(self, tf: Any, graph: Graph, logical: Graph | None = None, *, int8: bool = False) -> None:
        self.tf = tf
        self.graph = graph
        self.int8 = int8
        self._logical = (logical or graph).types
        self._tensors: dict[str, tuple[Any, Order]] = {}
        self._reordered: dict[tuple[str, Order], Any] = {}
        self._constants = dict(graph.constants)
        # Rows that lie in another order than the source's, and the places of their elements there (`_flattened`).
        self.flattened: dict[str, tuple[Any, np.ndarray]] = {}
        self._literals: dict[tuple[str, tuple[int, ...], str], Any] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape."""
        return self.graph.types[name].shape

    def rank(self, name: str) -> int:
        """Number of axes."""
        return len(self.shape(name))

    def dtype(self, name: str) -> str:
        """NumPy dtype name of what carries the tensor."""
        return self.graph.types[name].dtype

    def logical(self, name: str) -> str:
        """NumPy dtype name in the source model."""
        return self._logical[name].dtype

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant in logical order; None for a computed or omitted tensor."""
        return self._constants.get(name) if name else None

    def order(self, name: str) -> Order:
        """The order a tensor lies in; a constant lies in logical order."""
        return self._tensors[name][1] if name in self._tensors else identity(self.rank(name))

    def get(self, name: str, order: Order | None = None) -> Any:
        """A tensor in ``order`` (default: logical); transposes when it lies otherwise."""
        order = identity(self.rank(name)) if order is None else order
        constant = self.constant(name)
        if constant is not None:
            return self.literal(constant.transpose(order))
        tensor, lies = self._tensors[name]
        if lies == order:
            return tensor
        key = (name, order)
        if key not in self._reordered:
            self._reordered[key] = self.reorder(tensor, self.shape(name), lies, order)
        return self._reordered[key]

    def reorder(self, tensor: Any, shape: Sequence[int], before: Order, after: Order) -> Any:
        """Move a tensor of logical ``shape`` from one order to another: nothing, a reshape, or a transpose."""
        if before == after:
            return tensor
        if is_free(shape, before, after):
            return self.tf.reshape(tensor, permuted(shape, after))
        position = inverse(before)
        perm = [position[axis] for axis in after]
        if len(perm) <= _TRANSPOSE_AXES:
            return self.tf.transpose(tensor, perm)
        return self.tf.reshape(self._few_axes(tensor, perm), permuted(shape, after))

    def _few_axes(self, tensor: Any, perm: Sequence[int]) -> Any:
        """A transpose of more axes than the kernel takes: on merged ones, or, where too many are left, one axis after the other."""
        fewer, order = collapsed(tuple(tensor.shape), perm)
        tensor = self.tf.reshape(tensor, fewer)
        if len(order) <= _TRANSPOSE_AXES:
            return self.tf.transpose(tensor, order)
        lies = list(range(len(order)))
        for place, axis in enumerate(order):
            found = lies.index(axis)
            if found != place:
                step = [*range(place), found, *(each for each in range(place, len(order)) if each != found)]
                size, moved = collapsed(tuple(tensor.shape), step)
                after = [tensor.shape[each] for each in step]
                tensor = self.tf.reshape(self.tf.transpose(self.tf.reshape(tensor, size), moved), after)
                lies = [lies[each] for each in step]
        return tensor

    def literal(self, array: np.ndarray | np.generic) -> Any:
        """A constant tensor, made once per value."""
        array = np.asarray(array, order="C")
        key = (array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        if key not in self._literals:
            with self.tf.init_scope() if self.tf.executing_eagerly() else self.tf.name_scope(""):
                self._literals[key] = self.tf.constant(array)
        return self._literals[key]

    def put(self, name: str, tensor: Any, order: Order | None = None) -> None:
        """Record a node's output and the order it lies in (default: logical)."""
        if not name:
            return
        order = identity(self.rank(name)) if order is None else order
        wanted = permuted(self.shape(name), order)
        if tuple(tensor.shape) != wanted or tensor.dtype.name != self.dtype(name):
            raise BuildError(
                f"tensor {name!r}",
                f"became {tensor.dtype.name}{list(tensor.shape)}",
                f"{self.dtype(name)}{list(wanted)}",
                "report this model",
            )
        self._tensors[name] = (tensor, order)

    def put_constant(self, name: str, array: np.ndarray) -> None:
        """Record a node's output that is known now."""
        if name:
            self._constants[name] = array

    def common_order(self, names: Sequence[str], rank: int) -> Order:
        """The order in which to combine tensors of ``rank``: the one that moves the fewest elements, channels-last on a tie."""
        operands = [name for name in names if name and self.constant(name) is None and self.rank(name) == rank]
        candidates = {self.order(name) for name in operands} or {identity(rank)}

        def cost(order: Order) -> tuple[int, bool, Order]:
            moved = sum(int(np.prod(self.shape(name))) for name in operands if not is_free(self.shape(name), self.order(name), order))
            return moved, order == identity(rank), order

        return min(candidates, key=cost)

    def broadcastable(self, name: str, order: Order) -> Any:
        """An operand of an element-wise operator: leading axes of size 1 added as NumPy does, then in ``order``."""
        rank = len(order)
        if self.rank(name) == rank:
            return self.get(name, order)
        shape = (1,) * (rank - self.rank(name)) + self.shape(name)
        constant = self.constant(name)
        if constant is not None:
            return self.literal(constant.reshape(shape).transpose(order))
        return self.reorder(self.tf.reshape(self.get(name), shape), shape, identity(rank), order)


ops: Registry[Context] = Registry("tflite")
