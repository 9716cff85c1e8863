"""Building small packages with coremltools' own builder, so that names, types and storage are not ours."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def coremltools():
    """The package, imported without TensorFlow and PyTorch (as the emitter does), which would cost many seconds."""
    hidden = [name for name in ("tensorflow", "torch") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip("coremltools")
    finally:
        for name in hidden:
            del sys.modules[name]


class PackageBuilder:
    """Writes ``body(mb, **inputs)`` as a package without any graph pass, and runs it through the interpreter."""

    def __init__(self, coremltools, folder: Path) -> None:
        self.ct = coremltools
        self.folder = folder
        self.count = 0

    def save(self, inputs: dict[str, np.ndarray], body, target: str = "iOS17") -> Path:
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil.types.type_mapping import numpy_type_to_builtin_type

        ct, opset = self.ct, getattr(self.ct.target, target)
        specs = [mb.TensorSpec(shape=array.shape, dtype=numpy_type_to_builtin_type(array.dtype)) for array in inputs.values()]
        arguments = ", ".join(inputs)
        # The builder reads the inputs' names from the function's signature.
        function = eval(f"lambda {arguments}: body(mb, {arguments})", {"body": body, "mb": mb})
        program = mb.program(input_specs=specs, opset_version=opset)(function)
        self.count += 1
        path = self.folder / f"{self.count}.mlpackage"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ct.convert(
                program,
                convert_to="mlprogram",
                pass_pipeline=ct.PassPipeline.EMPTY,
                compute_precision=ct.precision.FLOAT32,
                minimum_deployment_target=opset,
                skip_model_load=True,
            )
            model.save(str(path))
        return path

    def run(self, inputs: dict[str, np.ndarray], body, target: str = "iOS17") -> list[np.ndarray]:
        """Outputs in the order that ``body`` returned them."""
        from edgekit.converters.coreml_reference import run_package

        return list(run_package(self.save(inputs, body, target), inputs).values())


@pytest.fixture
def packages(coremltools, tmp_path) -> PackageBuilder:
    return PackageBuilder(coremltools, tmp_path)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def run_onnx(op: str, inputs: dict[str, np.ndarray], outputs: int = 1, opset: int = 18, **attributes) -> list[np.ndarray]:
    """One ONNX operator through ONNX Runtime: the independent truth."""
    import onnxruntime
    from onnx import helper

    names = [name if array is not None else "" for name, array in inputs.items()]
    given = {name: array for name, array in inputs.items() if array is not None}
    results = [f"out{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


@pytest.fixture(scope="session")
def onnx_op():
    return run_onnx


@pytest.fixture(scope="session")
def storage():
    """Apple's own reader and writer of weight files, without importing the whole of coremltools (seconds, with TensorFlow).

    The extension can be loaded once in a process, so it goes where coremltools itself will look for it.
    """
    name = "coremltools.libmilstoragepython"
    if name not in sys.modules:
        package = importlib.util.find_spec("coremltools")
        spec = importlib.util.spec_from_file_location(name, Path(package.origin).parent / "libmilstoragepython.so")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


# Numbers of MIL.proto's DataType and of FeatureTypes.proto's ArrayDataType.
MIL_TYPES = {np.dtype(np.float16): 10, np.dtype(np.float32): 11, np.dtype(np.int32): 23, np.dtype(np.bool_): 1}
ARRAY_TYPES = {np.dtype(np.float16): 65552, np.dtype(np.float32): 65568, np.dtype(np.int32): 131104}


class SpecWriter:
    """A package written message by message: quick, and able to say what no builder would."""

    def __init__(self, path: Path, opset: str = "CoreML7") -> None:
        from edgekit.converters.coreml_reference._proto import model_proto

        self.path = path
        self.spec = model_proto().Model()
        self.spec.specificationVersion = 8
        self.function = self.spec.mlProgram.functions["main"]
        self.function.opset = opset
        self.block = self.function.block_specializations[opset]

    def _type(self, message, dtype, shape) -> None:
        message.tensorType.dataType = 2 if dtype is str else MIL_TYPES[np.dtype(dtype)]
        message.tensorType.rank = len(shape)
        for size in shape:
            dimension = message.tensorType.dimensions.add()
            if size is None:
                dimension.unknown.variadic = False
            else:
                dimension.constant.size = size

    def input(self, name: str, dtype, shape) -> str:
        entry = self.function.inputs.add(name=name)
        self._type(entry.type, dtype, shape)
        self._feature(self.spec.description.input.add(name=name), dtype, shape)
        return name

    def output(self, name: str, dtype, shape) -> None:
        self.block.outputs.append(name)
        self._feature(self.spec.description.output.add(name=name), dtype, shape)

    def _feature(self, feature, dtype, shape) -> None:
        feature.type.multiArrayType.dataType = ARRAY_TYPES[np.dtype(dtype)]
        feature.type.multiArrayType.shape.extend(shape)

    def _value(self, message, value) -> None:
        array = np.asarray(value)
        self._type(message.type, str if isinstance(value, str) else array.dtype, array.shape)
        tensor = message.immediateValue.tensor
        if isinstance(value, str):
            tensor.strings.values.append(value)
        elif array.dtype == np.float16:
            tensor.bytes.values = array.tobytes()
        else:
            field = {"f": "floats", "i": "ints", "b": "bools"}[array.dtype.kind]
            getattr(tensor, field).values.extend(array.reshape(-1).tolist())

    def const(self, name: str, value) -> str:
        operation = self.block.operations.add(type="const")
        self._value(operation.attributes["val"], value)
        output = operation.outputs.add(name=name)
        output.type.CopyFrom(operation.attributes["val"].type)
        return name

    def blob(self, name: str, dtype, shape, offset: int, file_name: str = "@model_path/weights/weight.bin") -> str:
        operation = self.block.operations.add(type="const")
        value = operation.attributes["val"]
        self._type(value.type, dtype, shape)
        value.blobFileValue.fileName, value.blobFileValue.offset = file_name, offset
        operation.outputs.add(name=name).type.CopyFrom(value.type)
        return name

    def op(self, kind: str, name: str, dtype, shape, **inputs) -> str:
        """``inputs`` are names of tensors, lists of names, or values given in place."""
        operation = self.block.operations.add(type=kind)
        for key, value in inputs.items():
            for item in value if isinstance(value, list) else [value]:
                binding = operation.inputs[key].arguments.add()
                if isinstance(item, str):
                    binding.name = item
                else:
                    self._value(binding.value, item)
        self._type(operation.outputs.add(name=name).type, dtype, shape)
        return name

    def save(self) -> Path:
        folder = self.path / "Data" / "com.apple.CoreML"
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        (folder / "model.mlmodel").write_bytes(self.spec.SerializeToString(deterministic=True))
        entries = {"root": {"name": "model.mlmodel", "path": "com.apple.CoreML/model.mlmodel"}}
        manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": "root"}
        (self.path / "Manifest.json").write_text(json.dumps(manifest))
        return self.path

    @property
    def weights(self) -> Path:
        path = self.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def writer(tmp_path) -> SpecWriter:
    return SpecWriter(tmp_path / "hand.mlpackage")
