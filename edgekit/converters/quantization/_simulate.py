"""The quantised model with a switch for every layer: one ONNX Runtime session answers for any set of layers kept in float.

Values are quantised and restored in float32 (``DequantizeLinear(QuantizeLinear(x))``), so the numbers are those of the scheme itself, not of a kernel. What an
engine's integer kernels round differently is judged by the proof that every build ends with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Signature
from edgekit.converters.quantization._index import ModelIndex
from edgekit.converters.quantization._plan import Plan, Quantiser
from edgekit.errors import BuildError, EnvironmentMissingError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["Simulation"]

_FLAGS = "edgekit_quantised_layers"


class Simulation:
    """Runs a plan with some of its layers on.

    Args:
        model: the prepared float32 model that ``plan`` was made for; not changed.
        plan: from `make_plan`.
        signature: names the outputs.

    Raises:
        EnvironmentMissingError: onnxruntime is not installed.
        BuildError: ONNX Runtime cannot load the model with its switches.
    """

    def __init__(self, model: onnx.ModelProto, plan: Plan, signature: Signature) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("int8", "onnxruntime", "onnxruntime") from exc
        self.layers = len(plan.layers)
        self._names = [spec.name for spec in signature.outputs]
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # the order of sums, and so the choice of layers, does not depend on the machine's cores
        switched, self._renamed = _switched(model, plan)
        try:
            self._session: Any = onnxruntime.InferenceSession(switched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise BuildError("int8", f"the simulation cannot be loaded: {one_line(exc)}", "", "build with --precision fp32") from exc

    def run(self, samples: Sequence[Mapping[str, np.ndarray]], on: Collection[int]) -> list[dict[str, np.ndarray]]:
        """Outputs per sample with the layers ``on`` quantised."""
        flags = np.zeros(max(self.layers, 1), bool)
        flags[list(on)] = True
        wanted = [self._renamed.get(name, name) for name in self._names]
        return [dict(zip(self._names, self._session.run(wanted, {**sample, _FLAGS: flags}), strict=True)) for sample in samples]


def _switched(model: onnx.ModelProto, plan: Plan) -> tuple[onnx.ModelProto, dict[str, str]]:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    builder = _Switches(copy, plan)
    renamed = builder.run()
    copy.graph.input.append(onnx.helper.make_tensor_value_info(_FLAGS, onnx.TensorProto.BOOL, [max(len(plan.layers), 1)]))
    del copy.graph.value_info[:]
    return copy, renamed


class _Switches:
    def __init__(self, model: onnx.ModelProto, plan: Plan) -> None:
        self.model, self.plan, self.index = model, plan, ModelIndex(model)
        self.nodes: list[onnx.NodeProto] = []
        self.flags: dict[tuple[int, ...], str] = {}
        self.reads: dict[tuple[str, str], str] = {}

    def run(self) -> dict[str, str]:
        import onnx

        originals = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.model.graph.node]
        for layer in range(len(self.plan.layers)):
            which = self.index.add_constant(f"{_FLAGS}_{layer}", np.asarray(layer, np.int64))
            self.flags[layer,] = f"{_FLAGS}_at_{layer}"
            self._node("Gather", [_FLAGS, which], self.flags[layer,])
        for value in self.model.graph.input:
            self._choices(value.name, None)
        for node in originals:
            self._constants(node)
            for position, name in enumerate(node.input):
                node.input[position] = self.reads.get((node.name, name), name)
            self.nodes.append(node)
            for name in node.output:
                if name:
                    self._choices(name, node.name)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        renamed = {name: chosen for (reader, name), chosen in self.reads.items() if not reader}
        for chosen in renamed.values():
            self.model.graph.output.append(onnx.ValueInfoProto(name=chosen))
        return renamed

    def _choices(self, tensor: str, producer: str | None) -> None:
        """A switched form of a tensor for each reader that may see it quantised; the graph's output is the reader ``""``."""
        readers = [node.name for node in self.index.readers(tensor)] + ([""] if tensor in self.index.outputs else [])
        wanted = {reader: layers for reader in readers if (layers := self.plan.reads_quantised(tensor, producer, reader or None))}
        if not wanted:
            return
        restored = self._fake_quantised(tensor, self.plan.quantisers[tensor])
        made: dict[tuple[int, ...], str] = {}
        for reader, layers in wanted.items():
            if layers not in made:
                made[layers] = f"{tensor}_for_{'_'.join(map(str, layers))}"
                self._node("Where", [self._flag(layers), restored, tensor], made[layers])
            self.reads[reader, tensor] = made[layers]

    def _flag(self, layers: tuple[int, ...]) -> str:
        if layers not in self.flags:
            self.flags[layers] = f"{_FLAGS}_any_{'_'.join(map(str, layers))}"
            self._node("Or", [self.flags[layers[0],], self._flag(layers[1:])], self.flags[layers])
        return self.flags[layers]

    def _fake_quantised(self, tensor: str, quantiser: Quantiser) -> str:
        scale = self.index.add_constant(f"{tensor}_scale", quantiser.scale)
        zero = self.index.add_constant(f"{tensor}_zero_point", quantiser.zero_point)
        self._node("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantised")
        self._node("DequantizeLinear", [f"{tensor}_quantised", scale, zero], f"{tensor}_restored")
        return f"{tensor}_restored"

    def _constants(self, node: onnx.NodeProto) -> None:
        layer = self.plan.layer_of.get(node.name)
        if layer is None:
            return
        for use in self.plan.weights.get(layer, []):
            if use.node != node.name:
                continue
            name = node.input[use.position]
            value = self.index.constants[name]
            restored = self.index.add_constant(f"{node.name}/{name}_restored", use.quantiser.restore(use.quantiser.apply(value)))
            self._node("Where", [self.flags[layer,], restored, name], f"{restored}_chosen")
            node.input[use.position] = f"{restored}_chosen"

    def _node(self, op: str, inputs: list[str], output: str) -> None:
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"{output}/{op}"))
