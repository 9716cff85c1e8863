"""Building small packages with coremltools' own builder, so that names, types and storage are not ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def coremltools():
    """The package; importing it costs seconds where TensorFlow is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("coremltools")


class PackageBuilder:
    """Writes ``body(mb, **inputs)`` as a package without any graph pass, and runs it through the interpreter."""

    def __init__(self, coremltools, folder: Path) -> None:
        self.ct = coremltools
        self.folder = folder
        self.count = 0

    def save(self, inputs: dict[str, np.ndarray], body, target: str = "iOS17") -> Path:
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import types
        from coremltools.converters.mil.mil.types.type_mapping import numpy_type_to_builtin_type

        ct, opset = self.ct, getattr(self.ct.target, target)
        specs = [mb.TensorSpec(shape=array.shape, dtype=numpy_type_to_builtin_type(array.dtype)) for array in inputs.values()]
        assert types.fp16  # named here so that the import is one line
        arguments = ", ".join(inputs)
        function = eval(f"lambda {arguments}: body(mb, {arguments})", {"body": body, "mb": mb})  # noqa: S307 - the builder reads input names from the signature
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
    import onnx
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
    assert onnx
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


@pytest.fixture(scope="session")
def onnx_op():
    return run_onnx
