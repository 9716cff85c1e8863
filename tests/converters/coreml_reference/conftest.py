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
