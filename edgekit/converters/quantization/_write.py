"""Write QuantizeLinear and DequantizeLinear into a float model as a plan says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization._bias import CorrectedBias
from edgekit.converters.quantization._index import ModelIndex
from edgekit.converters.quantization._plan import Plan, Quantiser
from edgekit.errors import BuildError

if TYPE_CHECKING:
    import onnx

__all__ = ["write_quantised"]


def write_quantised(model: onnx.ModelProto, plan: Plan, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The quantised model: same inputs and outputs, same dtypes there.

    Every quantised tensor passes through a pair QuantizeLinear, DequantizeLinear; quantised constants are int8 initializers behind a DequantizeLinear.

    Args:
        model: the prepared float32 model that ``plan`` was made for; not changed.
        plan: from `make_plan`.
        kept: names of layers that stay in float.

    Raises:
        BuildError: the result is not a valid model.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    writer = _Writer(copy, plan, {index for index, layer in enumerate(plan.layers) if layer.name not in set(kept)})
    writer.run()
    del copy.graph.value_info[:]
    try:
        result = onnx.shape_inference.infer_shapes(copy, data_prop=True)
        onnx.checker.check_model(result)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BuildError("int8", f"the quantised graph is not valid: {exc}", "", "build with --precision fp32") from exc
    return result


@dataclass
class _Writer:
    model: onnx.ModelProto
    plan: Plan
    on: set[int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    shared: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> None:
        import onnx

        self.index = ModelIndex(self.model)
        inner = {name for node in self.model.graph.node for name in ModelIndex.reads(node) if name not in node.input}
        self.captured = inner  # names that a subgraph may read must keep meaning what they mean
        originals = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.model.graph.node]
        for value in self.model.graph.input:
            self._activation(value.name, None)
        for node in originals:
            self._constants(node)
            for position, name in enumerate(node.input):
                node.input[position] = self.shared.get((node.name, name), name)
            self.nodes.append(node)
            for position, name in enumerate(list(node.output)):
                if name and self._activation(name, node.name):
                    node.output[position] = self._raw(name)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in ModelIndex.reads(node)} | self.index.outputs
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def _activation(self, tensor: str, producer: str | None) -> bool:
        """Decide who reads a tensor quantised. True when everybody does: then its float form goes by another name, and this one means the quantised."""
        plan = self.plan
        readers = {node.name for node in self.index.readers(tensor)}
        wanted = {reader for reader in readers if self._is_on(plan.reads_quantised(tensor, producer, reader))}
        outside = tensor in self.index.outputs and self._is_on(plan.reads_quantised(tensor, producer, None))
        if not wanted and not outside:
            return False
        quantiser = plan.quantisers[tensor]
        everybody = (
            wanted == readers and (outside or tensor not in self.index.outputs) and producer is not None and tensor not in self.captured
        )
        if everybody:
            self._pair(self._raw(tensor), tensor, quantiser)
            return True
        restored = f"{tensor}_dequantized"
        self._pair(tensor, restored, quantiser)
        for reader in wanted:
            self.shared[reader, tensor] = restored
        return False

    def _is_on(self, layers: tuple[int, ...]) -> bool:
        return any(layer in self.on for layer in layers)

    @staticmethod
    def _raw(tensor: str) -> str:
        return f"{tensor}_float"

    def _pair(self, source: str, result: str, quantiser: Quantiser) -> None:
        scale, zero = self._parameters(source, quantiser)
        self._node("QuantizeLinear", [source, scale, zero], f"{result}_quantized", quantiser.axis)
        self._node("DequantizeLinear", [f"{result}_quantized", scale, zero], result, quantiser.axis)

    def _node(self, op: str, inputs: list[str], output: str, axis: int | None) -> None:
        import onnx

        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))

    def _parameters(self, stem: str, quantiser: Quantiser) -> tuple[str, str]:
        return self.index.add_constant(f"{stem}_scale", quantiser.scale), self.index.add_constant(
            f"{stem}_zero_point", quantiser.zero_point
        )

    def _constants(self, node: onnx.NodeProto) -> None:
        layer = self.plan.layer_of.get(node.name)
        if layer is None or layer not in self.on:
            return
        biases = [entry for entry in self.plan.biases.get(layer, []) if entry[0] == node.name]
        uses = {
            use.position: use.quantiser
            for use in self.plan.weights.get(layer, [])
            if use.node == node.name and isinstance(use.quantiser, Quantiser)
        }
        for use in self.plan.weights.get(layer, []):
            if use.node == node.name and isinstance(use.quantiser, CorrectedBias):
                node.input[use.position] = self.index.add_constant(f"{node.name}/bias_corrected", use.quantiser.values)
        for _, position, data, weights in biases:
            product = uses[weights].scale.reshape(-1).astype(np.float64) * float(self.plan.quantisers[data].scale)
            scale = np.asarray(product, np.float32)
            bias = self.index.constants[node.input[position]]
            if scale.size not in (1, bias.size) or bias.ndim != 1 or np.any(np.abs(bias.astype(np.float64)) > (2.0**31 - 1) * product):
                continue
            axis = 0 if scale.size > 1 else None
            own = Quantiser(scale if axis == 0 else scale.reshape(()), np.zeros(scale.shape if axis == 0 else (), np.int32), axis)
            node.input[position] = self._constant(f"{node.name}/bias_quantized", bias, own)
        for position, quantiser in uses.items():
            name = node.input[position]
            node.input[position] = self._constant(f"{node.name}/{name}_quantized", self.index.constants[name], quantiser)

    def _constant(self, stem: str, value: np.ndarray, quantiser: Quantiser) -> str:
        stored = self.index.add_constant(stem, quantiser.apply(value))
        scale, zero = self._parameters(stored, quantiser)
        self._node("DequantizeLinear", [stored, scale, zero], f"{stored}_restored", quantiser.axis)
        return f"{stored}_restored"
