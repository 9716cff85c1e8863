"""Cut a model down to the nodes that still show a failure, with recorded values in the place of everything before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._divergence_taps import reference_values

if TYPE_CHECKING:
    import onnx

__all__ = ["Cut", "cut", "reduce_model"]

Inputs = Mapping[str, np.ndarray]

_DROP_ONE_BY_ONE = 40
"""Up to so many nodes are left out one at a time; a longer chain is cut at its ends only, each try costs a build."""


@dataclass(frozen=True)
class Cut:
    """A part of a model that stands by itself.

    Attributes:
        model: ONNX; inputs and outputs are static and typed as recorded.
        samples: values of its inputs.
        nodes: indices in the whole model.
    """

    model: onnx.ModelProto
    samples: tuple[Inputs, ...]
    nodes: tuple[int, ...]


def reduce_model(
    model: onnx.ModelProto, samples: Sequence[Inputs], suspect: int, fails: Callable[[Cut], bool], in_time: Callable[[], bool]
) -> Cut | None:
    """The smallest cut found that fails; None when no cut does, not even the whole.

    Args:
        model: fails as a whole.
        samples: its inputs.
        suspect: index of the node to try first, with growing surroundings; -1 for none: then the failure is searched for by halves.
        fails: builds a cut and says whether the failure came again.
        in_time: whether another try may be made; without time the smallest so far is it.
    """
    count = len(model.graph.node)

    def attempt(nodes: Iterable[int]) -> Cut | None:
        found = cut(model, sorted(nodes), samples) if in_time() else None
        return found if found is not None and fails(found) else None

    # Without a suspect one node is tried first: a toolchain that cannot even start needs no search.
    guesses = _around(suspect, count) if suspect >= 0 else [range(1)] if count > 1 else []
    best = next(filter(None, map(attempt, guesses)), None)
    if best is None:
        best = attempt(range(count))
        if best is None:
            return None
        best = _shorter(best, attempt)
    return _thinner(best, attempt)


def _around(suspect: int, count: int) -> Iterator[range]:
    """Windows of nodes that grow around one; the whole is not among them."""
    reach = 0
    while True:
        window = range(max(suspect - reach, 0), min(suspect + reach + 1, count))
        if len(window) == count:
            return
        yield window
        reach = reach * 2 + 1


def _shorter(best: Cut, attempt: Callable[[Iterable[int]], Cut | None]) -> Cut:
    """Cut the end, then the beginning, by bisection. A failure that comes and goes with the length is found, if not at its shortest."""
    for from_the_end in (True, False):
        low, high = 0, len(best.nodes)  # so many nodes do not suffice; so many do
        while high - low > 1:
            middle = (low + high) // 2
            if smaller := attempt(best.nodes[:middle] if from_the_end else best.nodes[-middle:]):
                best, high = smaller, middle
            else:
                low = middle
    return best


def _thinner(best: Cut, attempt: Callable[[Iterable[int]], Cut | None]) -> Cut:
    """Leave out single nodes."""
    if len(best.nodes) > _DROP_ONE_BY_ONE:
        return best
    for node in best.nodes:
        if len(best.nodes) > 1 and (smaller := attempt(index for index in best.nodes if index != node)):
            best = smaller
    return best


# --- cutting -------------------------------------------------------------------------------------------------------------------------------


def cut(model: onnx.ModelProto, nodes: Sequence[int], samples: Sequence[Inputs]) -> Cut | None:
    """Some nodes as a model of their own; None where its borders are no plain tensors, or it would have no inputs or outputs.

    Args:
        model: the whole.
        nodes: indices of those to keep, ascending.
        samples: inputs of the whole; those that give other shapes at the borders than the first are left out.
    """
    import onnx

    kept = set(nodes)
    chosen = [model.graph.node[index] for index in nodes]
    rest = [node for index, node in enumerate(model.graph.node) if index not in kept]
    constants = [node for node in rest if node.op_type == "Constant"]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name for node in chosen for name in node.output}
    free = weights.keys() | {name for node in constants for name in node.output}
    read = {name for node in chosen for name in _reads(node)}
    inputs = sorted(read - made - free)
    wanted = {name for node in rest for name in _reads(node)} | {value.name for value in model.graph.output}
    outputs = [name for node in chosen for name in node.output if name in wanted]
    values = [_recorded(model, [*inputs, *outputs], sample) for sample in samples]
    if not inputs or not outputs or not values or any(len(each) < len(inputs) + len(outputs) for each in values):
        return None
    shapes = [{name: (array.dtype, array.shape) for name, array in each.items()} for each in values]
    like = [each for each, shape in zip(values, shapes, strict=True) if shape == shapes[0]]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.ClearField("graph")
    part.graph.name = model.graph.name
    part.graph.node.extend([node for node in constants if read & set(node.output)] + chosen)
    part.graph.initializer.extend(weights[name] for name in sorted(read & weights.keys()))
    part.graph.input.extend(_value_info(name, like[0][name]) for name in inputs)
    part.graph.output.extend(_value_info(name, like[0][name]) for name in outputs)
    return Cut(part, tuple({name: each[name] for name in inputs} for each in like), tuple(nodes))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {name for body in graph.node for name in body.output}
            inner |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            yield from ({name for body in graph.node for name in _reads(body)} | {value.name for value in graph.output}) - inner


def _recorded(model: onnx.ModelProto, names: Sequence[str], sample: Inputs) -> dict[str, np.ndarray]:
    inner = [name for name in dict.fromkeys(names) if name not in sample]
    found = reference_values(model, inner, sample) | {name: np.asarray(sample[name]) for name in names if name in sample}
    return {name: array for name, array in found.items() if array.dtype.kind in "fiub"}


def _value_info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
