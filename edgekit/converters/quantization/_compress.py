"""Pruned and palettised weights: fewer distinct values, stored in less space where the engine has a form for it. Nothing here makes anything faster by itself.

``--compress`` takes one of

- ``prune=SHARE``: the smallest weights of each layer become zero (magnitude), 0 < SHARE < 1;
- ``2:4`` (any ``N:M``): of each M neighbours along the input channels the N largest stay;
- ``palette=BITS``: the weights of each layer take 2^BITS values (k-means in one dimension), BITS one of 1, 2, 4, 6, 8.

Layers that cost too much agreement stay as they are, by the same ladder that int8 climbs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization._ladder import climb
from edgekit.converters.quantization._plan import Plan, make_plan
from edgekit.converters.quantization._quantise import Calibrated, Quantization
from edgekit.converters.quantization._scheme import Scheme
from edgekit.errors import ModelError, UsageError, VerificationError

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._emitter import NormalisedModel

__all__ = ["COMPRESSING_ENGINES", "Compression", "compress", "parse_compression"]

COMPRESSING_ENGINES = {"coreml": ("prune", "pattern", "palette"), "tflite": ("prune", "pattern")}
"""What each engine stores smaller; the others store every weight."""

_PALETTES = (1, 2, 4, 6, 8)
_SMALLEST_LAYER = 512
"""Weights that a layer needs: a table or a mask for fewer takes as much as it saves."""
_ROUNDS = 50


@dataclass(frozen=True)
class Compression:
    """What is asked.

    Attributes:
        kind: ``prune``, ``pattern`` or ``palette``.
        share: of weights that become zero (``prune``).
        kept, group: N and M of ``pattern``.
        bits: of ``palette``.
    """

    kind: str
    share: float = 0.0
    kept: int = 0
    group: int = 0
    bits: int = 0

    def describe(self) -> str:
        """As it was written."""
        return {"prune": f"prune={self.share:g}", "pattern": f"{self.kept}:{self.group}", "palette": f"palette={self.bits}"}[self.kind]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Compressed weights; the first axis or the last, as the operator has it, is left to `_layer_axis`."""
        if self.kind == "prune":
            return _pruned(values, self.share)
        return _patterned(values, self.kept, self.group) if self.kind == "pattern" else _palettised(values, self.bits)

    def restore(self, levels: np.ndarray) -> np.ndarray:
        """What stored values stand for: themselves."""
        return levels


def parse_compression(text: str) -> Compression:
    """Read ``--compress``.

    Raises:
        UsageError: says what could be.
    """
    expected = "prune=SHARE, N:M or palette=BITS"
    name, equals, value = text.partition("=")
    try:
        if name == "prune" and equals and 0 < float(value) < 1:
            return Compression("prune", share=float(value))
        if name == "palette" and equals and int(value) in _PALETTES:
            return Compression("palette", bits=int(value))
        kept, _, group = text.partition(":")
        if not equals and 0 < int(kept) < int(group) <= 32:
            return Compression("pattern", kept=int(kept), group=int(group))
    except ValueError:
        pass
    step = f"a share between 0 and 1, or bits of {', '.join(map(str, _PALETTES))}: for example --compress palette=6"
    raise UsageError("--compress", repr(text), expected, step)


def compress(normalised: NormalisedModel, calibrated: Calibrated, wanted: Compression, min_agreement: float) -> Quantization:
    """The model with compressed weights, in float; layers that the agreement target needs stay as they are.

    Raises:
        ModelError: no layer is large enough. VerificationError: the target holds only with every layer as it is.
    """
    scheme = Scheme("compression", activations=False)
    plan = _plan(calibrated, scheme, wanted)
    if not plan.layers:
        raise ModelError(
            f"--compress {wanted.describe()}", f"no product with {_SMALLEST_LAYER} constant weights or more", "", "leave the flag out"
        )
    ladder = climb(
        calibrated.model,
        normalised.signature,
        calibrated.calibration,
        scheme,
        calibrated.samples,
        min_agreement,
        plans={"weights": plan},
        few=calibrated.few,
    )
    if not ladder.quantised:
        raise VerificationError(
            f"--compress {wanted.describe()}",
            f"agreement {min_agreement:g} holds only with no layer compressed",
            "",
            "compress less, or lower --min-agreement",
        )
    model, zeros, weights = _written(calibrated.model, plan, set(ladder.kept), wanted)
    report = {"compression": wanted.describe(), "weights": weights, "zeros": zeros, "target": min_agreement, **ladder.report()}
    note = (
        f"{wanted.describe()}: {ladder.quantised} of {len(plan.layers)} layers, agreement {ladder.agreement:.4f} on {ladder.samples} samples "
        f"(target {min_agreement:g}); the file is smaller, the arithmetic is the same"
    )
    integer = frozenset(layer.name for layer in plan.layers if layer.name not in ladder.kept)
    written = replace(normalised, model=model, native=None)
    return Quantization(written, scheme, ladder.kept, integer, ladder.share, report, (note,), wanted)


def _plan(calibrated: Calibrated, scheme: Scheme, wanted: Compression) -> Plan:
    """Every product with enough constant weights, to be compressed."""
    plan = make_plan(calibrated.model, replace(calibrated.calibration, means={}), scheme, "minmax")
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in calibrated.model.graph.initializer}
    nodes = {node.name: node for node in calibrated.model.graph.node}
    large = [layer for layer in plan.layers if max(sizes.get(name, 0) for name in nodes[layer.name].input) >= _SMALLEST_LAYER]
    found = Plan(scheme, large, {layer.name: index for index, layer in enumerate(large)})
    for index, layer in enumerate(large):
        uses = plan.weights[plan.layer_of[layer.name]]
        found.weights[index] = [replace(use, quantiser=_turned(wanted, nodes[layer.name])) for use in uses]
    return found


@dataclass(frozen=True)
class _Turned:
    """A compression whose groups run along the input channels, wherever the operator has them."""

    inner: Compression
    axis: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(values, self.axis, -1)
        return np.moveaxis(self.inner.apply(np.ascontiguousarray(moved)), -1, self.axis)

    def restore(self, levels: np.ndarray) -> np.ndarray:
        return levels


def _turned(wanted: Compression, node: onnx.NodeProto) -> _Turned:
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return _Turned(
        wanted, 1 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 0 if node.op_type != "MatMul" else -2
    )


def _written(model: onnx.ModelProto, plan: Plan, kept: set[str], wanted: Compression) -> tuple[onnx.ModelProto, int, int]:
    """The model with compressed constants in place, and how many zeros of how many weights."""
    import onnx
    from onnx import numpy_helper

    del wanted
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = {node.name: node for node in copy.graph.node}
    zeros = total = 0
    for index, layer in enumerate(plan.layers):
        for use in plan.weights[index] if layer.name not in kept else ():
            node = nodes[use.node]
            array = use.quantiser.apply(numpy_helper.to_array(values[node.input[use.position]]))
            name = f"{use.node}/{node.input[use.position]}_compressed"
            copy.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            node.input[use.position] = name
            zeros, total = zeros + int(np.count_nonzero(array == 0)), total + array.size
    used = {name for node in copy.graph.node for name in node.input} | {value.name for value in copy.graph.output}
    left = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(left)
    return copy, zeros, total


# --- weights -------------------------------------------------------------------------------------------------------------------------------


def _pruned(values: np.ndarray, share: float) -> np.ndarray:
    count = int(values.size * share)
    smallest = np.argsort(np.abs(values), axis=None, kind="stable")[:count]
    result = values.copy().reshape(-1)
    result[smallest] = 0
    return result.reshape(values.shape)


def _patterned(values: np.ndarray, kept: int, group: int) -> np.ndarray:
    """Groups run along the last axis; a rest that fills none stays."""
    whole = values.shape[-1] // group * group
    result = values.copy()
    parts = result[..., :whole].reshape(*values.shape[:-1], -1, group)
    order = np.argsort(np.abs(parts), axis=-1, kind="stable")
    np.put_along_axis(parts, order[..., : group - kept], 0, axis=-1)
    result[..., :whole] = parts.reshape(*values.shape[:-1], whole)
    return result


def _palettised(values: np.ndarray, bits: int) -> np.ndarray:
    """Lloyd's algorithm on sorted values; empty clusters keep their centre. It starts half way between quantiles and an even grid, so that the tails have centres."""
    flat = np.sort(values.reshape(-1).astype(np.float64))
    position = (np.arange(flat.size) + 0.5) / flat.size + (flat - flat[0]) / ((flat[-1] - flat[0]) or 1.0)
    centres = np.unique(np.interp((np.arange(2**bits) + 0.5) / 2**bits, position / 2, flat))
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(flat, (centres[1:] + centres[:-1]) / 2), [flat.size]])
        counts = np.diff(edges)
        moved = np.where(counts > 0, (sums[edges[1:]] - sums[edges[:-1]]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    # As float16 has them: two centres that it cannot tell apart would be one entry of a table anyway.
    table = np.unique(centres.astype(np.float16)).astype(np.float32)
    nearest = np.searchsorted((table[1:] + table[:-1]) / 2, values.reshape(-1))
    return table[nearest].reshape(values.shape).astype(values.dtype)
