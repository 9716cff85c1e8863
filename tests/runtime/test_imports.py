"""What a device pays before its first answer: loading a bundle imports no server, telemetry, probe or archive code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from edgekit.bundle import Bundle

NOT_NEEDED = [
    "asyncio",
    "concurrent",
    "difflib",
    "email",
    "hashlib",
    "http",
    "importlib.metadata",
    "logging",
    "pathlib",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "urllib",
]
NOT_NEEDED += ["tomllib", "zipfile", "edgekit.device_profiles", "edgekit.protocol", "edgekit.telemetry", "edgekit.runtime._scheduler"]

SCRIPT = """
import sys
import numpy
before = set(sys.modules)
{}
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def imported_by(statement: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(statement)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import edgekit.runtime", "from edgekit.runtime import load", "from edgekit import load"])
def test_starting_a_bundle_imports_what_it_uses(statement: str) -> None:
    found = imported_by(statement)
    assert "edgekit" in found
    assert sorted(found & set(NOT_NEEDED)) == []


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tflite", "coreml", "tensorrt", "null"])
def test_an_engine_s_module_imports_no_engine(engine: str) -> None:
    found = imported_by(f"from edgekit.runtime.engines import engine_class; engine_class({engine!r})")
    assert (
        sorted(found & {"onnxruntime", "openvino", "ai_edge_litert", "coremltools", "tensorrt", "tensorrt_rtx_bindings", "asyncio"}) == []
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "tflite"])
def test_a_start_to_the_first_answer_imports_what_it_uses(built: Callable[..., Bundle], engine: str) -> None:
    script = f"""
from edgekit.runtime import load
with load({str(built(engine).path)!r}, threads=1) as session:
    session.run({{spec.name: numpy.zeros(spec.shape, spec.dtype) for spec in session.signature.inputs}})"""
    found = imported_by(script)
    assert {"edgekit", "onnxruntime" if engine == "onnxruntime" else "ai_edge_litert"} <= found
    assert sorted(found & set(NOT_NEEDED)) == []


def test_every_public_name_is_there() -> None:
    import edgekit.runtime

    assert set(edgekit.runtime.__all__) == set(edgekit.runtime._MODULE_OF)
    assert all(getattr(edgekit.runtime, name) is not None for name in dir(edgekit.runtime))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgekit.runtime.nothing  # noqa: B018
