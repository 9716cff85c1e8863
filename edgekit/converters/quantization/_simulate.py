"""The quantised model with a switch for every layer: one ONNX Runtime session answers for any set of layers kept in float, and for any scales.

Values are quantised and restored in float32 (``DequantizeLinear(QuantizeLinear(x))``), so the numbers are those of the scheme itself, not of a kernel. What an
engine's integer kernels round differently is judged by the proof that every build ends with.

Switches are ``If`` nodes, so that what is off costs a copy and no arithmetic; weights, scales and zero points are inputs of the graph. The PP-OCR recogniser in
the form for TensorFlow Lite takes 43 to 57 ms a run this way, with the choice made by ``Where`` after the arithmetic it was 99 to 117.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Signature
from edgekit.converters._side_by_side import in_order
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
        switched, self._switches = _switched(model, plan)
        try:
            self._session: Any = onnxruntime.InferenceSession(switched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise BuildError("int8", f"the simulation cannot be loaded: {one_line(exc)}", "", "build with --precision fp32") from exc

    def run(
        self, samples: Sequence[Mapping[str, np.ndarray]], on: Collection[int], quantisers: Mapping[str, Quantiser] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Outputs per sample with the layers ``on`` quantised.

        Args:
            samples: inputs by name.
            on: indices of layers.
            quantisers: by tensor, in place of the plan's.
        """
        switches = self._switches
        flags = np.zeros(max(self.layers, 1), bool)
        flags[list(on)] = True
        given: dict[str, np.ndarray] = {_FLAGS: flags}
        given |= {name: quantised if flags[layer] else value for name, (layer, value, quantised) in switches.weights.items()}
        for tensor, quantiser in (switches.plan.quantisers | dict(quantisers or {})).items():
            if tensor in switches.scaled:
                given |= {_scale(tensor): quantiser.scale, _zero(tensor): quantiser.zero_point}
        wanted = [switches.renamed.get(name, name) for name in self._names]
        return list(in_order(lambda sample: dict(zip(self._names, self._session.run(wanted, {**sample, **given}), strict=True)), samples))


def _switched(model: onnx.ModelProto, plan: Plan) -> tuple[onnx.ModelProto, _Switches]:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    switches = _Switches(copy, plan)
    switches.write()
    copy.graph.input.append(onnx.helper.make_tensor_value_info(_FLAGS, onnx.TensorProto.BOOL, [max(len(plan.layers), 1)]))
    del copy.graph.value_info[:]
    return copy, switches


def _scale(tensor: str) -> str:
    return f"{tensor}_edgekit_scale"


def _zero(tensor: str) -> str:
    return f"{tensor}_edgekit_zero_point"


class _Switches:
    """Rewrites a graph, and keeps what a run has to be given.

    Attributes:
        renamed: graph outputs that go by another name.
        weights: per fed constant, its layer, its float and its quantised values.
        scaled: tensors whose scale is fed.
    """

    def __init__(self, model: onnx.ModelProto, plan: Plan) -> None:
        self.model, self.plan, self.index = model, plan, ModelIndex(model)
        self.nodes: list[onnx.NodeProto] = []
        self.flags: dict[tuple[int, ...], str] = {}
        self.reads: dict[tuple[str, str], str] = {}
        self.renamed: dict[str, str] = {}
        self.weights: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
        self.scaled: set[str] = set()

    def write(self) -> None:
        import onnx

        originals = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.model.graph.node]
        for layer in range(len(self.plan.layers)):
            which = self.index.add_constant(f"{_FLAGS}_{layer}", np.asarray(layer, np.int64))
            self.flags[layer,] = f"{_FLAGS}_at_{layer}"
            self._node("Gather", [_FLAGS, which], self.flags[layer,])
        for name in [value.name for value in self.model.graph.input]:
            self._choices(name, None)
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
        self.renamed = {name: chosen for (reader, name), chosen in self.reads.items() if not reader}
        for chosen in self.renamed.values():
            self.model.graph.output.append(onnx.ValueInfoProto(name=chosen))

    def _choices(self, tensor: str, producer: str | None) -> None:
        """A switched form of a tensor for each reader that may see it quantised; the graph's output is the reader ``""``."""
        readers = [node.name for node in self.index.readers(tensor)] + ([""] if tensor in self.index.outputs else [])
        wanted = {reader: layers for reader in readers if (layers := self.plan.reads_quantised(tensor, producer, reader or None))}
        if not wanted:
            return
        self._input(_scale(tensor), self.plan.quantisers[tensor].scale)
        self._input(_zero(tensor), self.plan.quantisers[tensor].zero_point)
        self.scaled.add(tensor)
        made: dict[tuple[int, ...], str] = {}
        for reader, layers in wanted.items():
            if layers not in made:
                made[layers] = f"{tensor}_for_{'_'.join(map(str, layers))}"
                self._switch(self._flag(layers), tensor, made[layers])
            self.reads[reader, tensor] = made[layers]

    def _flag(self, layers: tuple[int, ...]) -> str:
        if layers not in self.flags:
            self.flags[layers] = f"{_FLAGS}_any_{'_'.join(map(str, layers))}"
            self._node("Or", [self.flags[layers[0],], self._flag(layers[1:])], self.flags[layers])
        return self.flags[layers]

    def _switch(self, flag: str, tensor: str, result: str) -> None:
        """``result``: the tensor as its 8-bit form says where the flag is set, else as it is."""
        from onnx import ValueInfoProto, helper

        levels, restored, same = f"{result}_quantised", f"{result}_restored", f"{result}_same"
        scale, zero = _scale(tensor), _zero(tensor)
        pair = [
            helper.make_node("QuantizeLinear", [tensor, scale, zero], [levels]),
            helper.make_node("DequantizeLinear", [levels, scale, zero], [restored]),
        ]
        there = helper.make_graph(pair, f"{result}_on", [], [ValueInfoProto(name=restored)])
        away = helper.make_graph([helper.make_node("Identity", [tensor], [same])], f"{result}_off", [], [ValueInfoProto(name=same)])
        self.nodes.append(helper.make_node("If", [flag], [result], name=f"{result}/If", then_branch=there, else_branch=away))

    def _constants(self, node: onnx.NodeProto) -> None:
        layer = self.plan.layer_of.get(node.name)
        if layer is None:
            return
        for use in self.plan.weights.get(layer, []):
            if use.node != node.name:
                continue
            value = self.index.constants[node.input[use.position]]
            name = f"{node.name}/{use.position}/edgekit_given"
            self._input(name, value)
            self.weights[name] = layer, value, use.quantiser.restore(use.quantiser.apply(value))
            node.input[use.position] = name

    def _input(self, name: str, like: np.ndarray) -> None:
        from onnx import helper

        self.model.graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(like.dtype), list(like.shape)))

    def _node(self, op: str, inputs: list[str], output: str) -> None:
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"{output}/{op}"))
