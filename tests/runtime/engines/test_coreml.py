"""The Core ML engine: what can be said off macOS, and its mapping of dtypes and ranks, which the proof at build time uses too."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Artifact, Signature, TensorBinding, TensorSpec
from edgekit.errors import EngineError, EnvironmentMissingError, UnknownNameError
from edgekit.runtime.engines import EngineOptions, engine_class
from edgekit.runtime.engines._coreml import CoreMLEngine, logical_outputs, native_inputs

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (1, 2)), TensorSpec("sr", "int64", ()), TensorSpec("flag", "bool", (2,))),
    (TensorSpec("y/0", "float32", (1, 2)), TensorSpec("label", "int64", ()), TensorSpec("ok", "bool", (2,))),
)
ARTIFACT = Artifact(
    "coreml",
    "model.mlpackage",
    "fp16",
    (TensorBinding("x", "x", "float32"), TensorBinding("sr", "sr", "int32"), TensorBinding("flag", "flag", "int32")),
    (TensorBinding("y/0", "y_0", "float32"), TensorBinding("label", "label", "int32"), TensorBinding("ok", "ok_as_int32", "int32")),
)


def test_registered():
    assert engine_class("coreml") is CoreMLEngine
    assert CoreMLEngine.version().count(".") >= 1


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")
def test_other_systems_are_told_where_it_runs(tmp_path):
    with pytest.raises(EnvironmentMissingError, match="Core ML runs on Apple systems only, this is Linux; expected macOS"):
        CoreMLEngine(tmp_path, ARTIFACT, SIGNATURE)


def test_unknown_compute_units(tmp_path):
    with pytest.raises(UnknownNameError, match="accelerator of engine coreml: unknown name 'cpu_and_nee'; expected one of cpu_and_ne"):
        CoreMLEngine(tmp_path, ARTIFACT, SIGNATURE, EngineOptions(accelerator="cpu_and_nee"))


def test_native_inputs():
    native = native_inputs(ARTIFACT, {"x": np.ones((1, 2), np.float32), "sr": np.array(16000), "flag": np.array([True, False])})
    assert {name: (array.dtype.name, array.shape) for name, array in native.items()} == {
        "x": ("float32", (1, 2)),
        "sr": ("int32", (1,)),
        "flag": ("int32", (2,)),
    }
    assert native["flag"].tolist() == [1, 0]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_that_would_wrap_are_refused(value):
    inputs = {"x": np.ones((1, 2), np.float32), "sr": np.array(value), "flag": np.array([True, False])}
    with pytest.raises(EngineError, match="input 'sr': holds integers beyond 32 bits"):
        native_inputs(ARTIFACT, inputs)


def test_logical_outputs():
    native = {"y_0": np.ones((1, 2), np.float32), "label": np.array([3], np.int32), "ok_as_int32": np.array([1, 0], np.int32)}
    logical = logical_outputs(ARTIFACT, SIGNATURE, native)
    assert {name: (array.dtype.name, array.shape) for name, array in logical.items()} == {
        "y/0": ("float32", (1, 2)),
        "label": ("int64", ()),
        "ok": ("bool", (2,)),
    }


@pytest.mark.macos
@pytest.mark.skipif(platform.system() != "Darwin", reason="Core ML runs on Apple systems only")
def test_damaged_package_on_macos(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot load"):
        CoreMLEngine(tmp_path, ARTIFACT, SIGNATURE)
