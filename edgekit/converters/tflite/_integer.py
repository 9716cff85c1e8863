"""int8 files: how the converter is told, how the interface is bound, and what their kernels are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import structs

from edgekit.bundle import TensorBinding
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters.quantization import Quantization, with_float_constants
from edgekit.converters.tflite._barriers import with_barriers

__all__ = ["Operation", "bind_integers", "configure", "coverage", "emitted_form", "operations"]


def emitted_form(quantization: Quantization) -> NormalisedModel:
    """An int8 model as the front end reads it: weights in float on their int8 grid, activations in pairs, barriers where float meets int8."""
    plain = with_float_constants(quantization.model.model)
    return replace(quantization.model, model=with_barriers(plain, quantization.integer_nodes))


def configure(tf: Any, converter: Any, *, integer_io: bool) -> None:
    """Take ranges from the graph's fake quantisation; what has none stays float.

    Args:
        tf: the module.
        converter: of a function with fake quantisation.
        integer_io: float inputs and outputs become int8, as accelerators without float want them.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if integer_io:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8


def bind_integers(data: bytes, bindings: Sequence[TensorBinding]) -> tuple[TensorBinding, ...]:
    """Bindings with the scale of each tensor that the file stores in int8 although the model has it in float."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    tensors = model.subgraphs[0].tensors
    found: dict[str, Any] = {}
    for signature in model.signatureDefs or ():
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            found[entry.name.decode()] = tensors[entry.tensorIndex]
    bound = []
    for binding in bindings:
        tensor = found.get(binding.native_name)
        if tensor is None or tensor.type != schema.TensorType.INT8 or not binding.native_dtype.startswith("float"):
            bound.append(binding)
            continue
        scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
        bound.append(structs.replace(binding, native_dtype="int8", scale=scale, zero_point=zero))
    return tuple(bound)


@dataclass(frozen=True)
class Operation:
    """One operator of a file.

    Attributes:
        name: builtin name (``CONV_2D``).
        output: name of its first result.
        inputs: ``(dtype, shape, is constant)`` of each input.
        outputs: the same of each result.
        constant_bytes: of its constants that no operator before it has.
    """

    name: str
    output: str
    inputs: tuple[tuple[str, tuple[int, ...], bool], ...]
    outputs: tuple[tuple[str, tuple[int, ...], bool], ...]
    constant_bytes: int

    @property
    def is_integer(self) -> bool:
        """Neither reads nor writes floats."""
        return not any(dtype.startswith("FLOAT") for dtype, _, _ in (*self.inputs, *self.outputs))


def operations(data: bytes) -> Iterator[Operation]:
    """The operators of the first subgraph, in order."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    types = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    counted: set[int] = set()

    def described(index: int) -> tuple[str, tuple[int, ...], bool]:
        tensor = graph.tensors[index]
        shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
        return types[tensor.type], shape, _size(model, tensor) > 0

    for operator in graph.operators or ():
        code = model.operatorCodes[operator.opcodeIndex]
        inputs = [int(index) for index in operator.inputs if index >= 0] if operator.inputs is not None else []
        buffers = {graph.tensors[index].buffer: _size(model, graph.tensors[index]) for index in inputs}
        fresh = sum(size for buffer, size in buffers.items() if buffer not in counted)
        counted |= buffers.keys()
        outputs = [int(index) for index in operator.outputs]
        yield Operation(
            names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "UNKNOWN"),
            graph.tensors[outputs[0]].name.decode(),
            tuple(map(described, inputs)),
            tuple(map(described, outputs)),
            fresh,
        )


def _size(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(np.asarray(data))


def coverage(data: bytes) -> dict[str, object]:
    """JSON-able: how many operators compute in integers, and which do not."""
    floats: dict[str, int] = {}
    total = 0
    for operation in operations(data):
        total += 1
        if not operation.is_integer and operation.name not in ("QUANTIZE", "DEQUANTIZE"):
            floats[operation.name] = floats.get(operation.name, 0) + 1
    return {"operators": total, "float_operators": dict(sorted(floats.items()))}
