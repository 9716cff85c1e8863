"""A stand-in for NVIDIA's Python package with the names of one generation; its engines are the ONNX file, run by ONNX Runtime in host memory.

It proves what EdgeKit asks of TensorRT and in which order, never what TensorRT answers. Names per generation: NvInfer headers of the release
tags. ``SIMULATED_TENSORRT`` chooses the generation; ``SIMULATED_TENSORRT_TROUBLE`` is JSON: ``largest_workspace``, ``die``, ``refuse``,
``hang``, ``foreign_engine``, ``scale``, ``layers`` (read the nodes).
"""

import ctypes
import enum
import json
import os
import signal
import time

import numpy as np

GENERATION = os.environ.get("SIMULATED_TENSORRT", "10.3")
TROUBLE = json.loads(os.environ.get("SIMULATED_TENSORRT_TROUBLE", "{}"))
__version__ = {"8.2": "8.2.1", "8.5": "8.5.2", "8.6": "8.6.2", "10.3": "10.3.0", "10.13": "10.13.3", "11": "11.4.1"}[GENERATION]
_MAJOR = int(GENERATION.partition(".")[0])
_MINOR = int(GENERATION.partition(".")[2] or 0)
_SINCE_86 = (_MAJOR, _MINOR) >= (8, 6)

_network = {8: {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 0}}
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", _network[_MAJOR])
_precision = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"] if _MAJOR < 11 else []
_newer = (["VERSION_COMPATIBLE"] if _SINCE_86 else []) + (["STRIP_PLAN", "WEIGHT_STREAMING"] if _MAJOR >= 10 else [])
BuilderFlag = enum.IntEnum("BuilderFlag", ["DEBUG", "GPU_FALLBACK", "REFIT", "TF32", *_precision, *_newer], start=0)
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8"] + (["INT64"] if _MAJOR >= 10 else []))
_KINDS = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}
_KINDS["int64"] = "INT64" if _MAJOR >= 10 else "INT32"


class ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self):
        pass


class Logger(ILogger):
    ERROR = ILogger.Severity.ERROR

    def __init__(self, min_severity=None):
        self.min_severity = min_severity


class Layer:
    def __init__(self, name):
        self.name = name
        self.precision = None


class Network:
    def __init__(self, flags):
        self.flags = flags
        self.layers = []
        self.source = b""

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class IBuilderConfig:
    def __init__(self):
        self.flags = {BuilderFlag.TF32}
        self.workspace = None
        self.level = None

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace = size

    def create_timing_cache(self, data):
        return TimingCache(bytes(data))

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.cache = cache

    def get_timing_cache(self):
        return TimingCache(self.cache.data + b"+")

    if _SINCE_86:
        builder_optimization_level = property(lambda self: self.level, lambda self, level: setattr(self, "level", level))


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data


class ParserError:
    def __init__(self, node, operator, text):
        self._parts = (node, operator, text)

    def node(self):
        return 0

    def desc(self):
        return self._parts[2]

    if _MAJOR >= 10:

        def node_name(self):
            return self._parts[0]

        def node_operator(self):
            return self._parts[1]


class OnnxParser:
    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        with open(path, "rb") as handle:
            self.network.source = handle.read()
        self.errors = []
        if not TROUBLE.get("refuse") and not TROUBLE.get("layers"):
            return True  # importing onnx is most of the time that a build takes here
        import onnx

        nodes = onnx.load_from_string(self.network.source).graph.node
        self.network.layers = [Layer(node.name) for node in nodes]
        self.errors = [ParserError(n.name, n.op_type, "no importer") for n in nodes if n.op_type in TROUBLE.get("refuse", ())]
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        if TROUBLE.get("die"):
            os.kill(os.getpid(), getattr(signal, TROUBLE["die"]))
        if TROUBLE.get("hang"):
            time.sleep(60)
        largest = TROUBLE.get("largest_workspace", 0)
        if largest and (config.workspace is None or config.workspace > largest):
            self.logger.log(ILogger.Severity.ERROR, "out of memory")
            return None
        header = {
            "version": __version__,
            "network_flags": network.flags,
            "flags": sorted(flag.name for flag in config.flags),
            "workspace": config.workspace,
            "level": config.level,
            "pinned": [layer.name for layer in network.layers if layer.precision is not None],
        }
        return json.dumps(header).encode() + b"\n" + network.source


class ICudaEngine:
    def __init__(self, data):
        import onnxruntime

        header, _, source = data.partition(b"\n")
        self.header = json.loads(header)
        self.session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        self._io = [(i.name, TensorIOMode.INPUT, i) for i in self.session.get_inputs()]
        self._io += [(o.name, TensorIOMode.OUTPUT, o) for o in self.session.get_outputs()]

    if GENERATION != "8.2":
        num_io_tensors = property(lambda self: len(self._io))

        def get_tensor_mode(self, name):
            return next(mode for known, mode, _ in self._io if known == name)

    def get_tensor_name(self, index):
        return self._io[index][0]

    def numpy_dtype(self, name):
        kind = next(value.type for known, _, value in self._io if known == name)
        return {"tensor(float)": "float32", "tensor(float16)": "float16"}.get(kind, kind[7:-1])

    def get_tensor_dtype(self, name):
        return DataType[_KINDS[self.numpy_dtype(name)]]

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self.engine = engine
        self.shapes = {}
        self.addresses = {}

    if GENERATION != "8.2":

        def set_input_shape(self, name, shape):
            declared = next(v.shape for n, _, v in self.engine._io if n == name)
            self.shapes[name] = tuple(shape)
            return all(not isinstance(d, int) or d == s for d, s in zip(declared, shape, strict=True))

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            for name, array in self._run().items():
                narrow = np.ascontiguousarray(array, self._border(name))
                ctypes.memmove(self.addresses[name], narrow.ctypes.data, narrow.nbytes)
            return True

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        zeros = {i.name: np.zeros(self.shapes[i.name], self.engine.numpy_dtype(i.name)) for i in self.engine.session.get_inputs()}
        return self.engine.session.run([name], zeros)[0].shape

    def _border(self, name):
        kind = self.engine.numpy_dtype(name)
        return "int32" if kind == "int64" and _MAJOR < 10 else kind

    def _run(self):
        inputs = {}
        for value in self.engine.session.get_inputs():
            array = np.empty(self.shapes[value.name], self._border(value.name))
            ctypes.memmove(array.ctypes.data, self.addresses[value.name], array.nbytes)
            inputs[value.name] = array.astype(self.engine.numpy_dtype(value.name))
        names = [o.name for o in self.engine.session.get_outputs()]
        scale = TROUBLE.get("scale", 1)
        return dict(zip(names, [array * scale for array in self.engine.session.run(names, inputs)], strict=True))


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        same = json.loads(data.partition(b"\n")[0]).get("version") == __version__
        return ICudaEngine(data) if same and not TROUBLE.get("foreign_engine") else None
