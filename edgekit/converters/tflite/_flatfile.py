"""``.tflite`` files as objects: read, write, constants."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

__all__ = ["Constants", "read_model", "write_model"]


def read_model(data: bytes) -> Any:
    """The file as the schema's ``ModelT``."""
    from tensorflow.lite.python import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(data, 0)


def write_model(model: Any) -> bytes:
    """The file of a ``ModelT``; equal models give equal bytes."""
    flatbuffers: Any = importlib.import_module("flatbuffers")  # comes with TensorFlow, without types
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Constants:
    """The constants of one subgraph, as arrays.

    Args:
        schema: TensorFlow's generated module.
        model: the file.
        graph: one of its subgraphs.
    """

    def __init__(self, schema: Any, model: Any, graph: Any) -> None:
        self.schema, self.model, self.graph = schema, model, graph
        self._dtypes = {
            schema.TensorType.FLOAT32: np.float32,
            schema.TensorType.FLOAT16: np.float16,
            schema.TensorType.INT32: np.int32,
            schema.TensorType.INT64: np.int64,
            schema.TensorType.INT8: np.int8,
            schema.TensorType.UINT8: np.uint8,
            schema.TensorType.BOOL: np.bool_,
        }

    def get(self, index: int) -> np.ndarray | None:
        """Value of a tensor; None where it is computed or of a type that NumPy has not."""
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        kind = self._dtypes.get(tensor.type)
        if data is None or len(data) == 0 or kind is None:
            return None
        shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), kind).reshape(shape)

    def add(self, value: np.ndarray) -> int:
        """A new constant tensor."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        kind = next(code for code, dtype in self._dtypes.items() if dtype == value.dtype)
        return self._append(kind, value.shape, None, len(self.model.buffers) - 1)

    def vector(self, sizes: np.ndarray) -> int:
        """A new computed tensor for as many int32 numbers."""
        return self._append(self.schema.TensorType.INT32, (len(sizes),), None, 0)

    def declare(self, like: Any, shape: np.ndarray, signature: np.ndarray) -> int:
        """A new computed tensor with the type of another."""
        return self._append(like.type, tuple(shape), signature.astype(np.int32), 0)

    def opcode(self, builtin: int, version: int = 1) -> int:
        """Index of an operator code, added in this version of its kernel where the file has none."""
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _append(self, kind: int, shape: tuple[int, ...], signature: np.ndarray | None, buffer: int) -> int:
        tensor = self.schema.TensorT()
        tensor.type, tensor.buffer = kind, buffer
        tensor.shape = np.asarray(shape, np.int32)
        tensor.shapeSignature = signature
        tensor.name = f"edgekit/batch{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1
