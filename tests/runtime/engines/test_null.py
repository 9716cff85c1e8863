"""The null engine: right dtypes and shapes, and delays that come from a script and a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Artifact, Signature, TensorBinding, TensorSpec
from edgekit.device_profiles import ENGINES, list_profiles
from edgekit.errors import EngineError
from edgekit.runtime.engines import Engine, open_engine
from edgekit.runtime.engines._null import NullEngine

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("n", 2)), TensorSpec("ids", "int64", (3,))),
    (TensorSpec("y", "float32", ("n", 3)), TensorSpec("names", "string", ("n",)), TensorSpec("left", "float16", ("m", 2))),
)


def opened(**options: str) -> Engine:
    bindings = [tuple(TensorBinding(spec.name, spec.name, spec.dtype) for spec in side) for side in (SIGNATURE.inputs, SIGNATURE.outputs)]
    return open_engine(Path("nothing"), Artifact("null", "nothing", "fp32", *bindings, options), SIGNATURE)


INPUTS = {"x": np.arange(8, dtype=np.float32).reshape(4, 2), "ids": np.array([7, 8, 9])}


def test_zeros_in_the_shapes_that_the_inputs_give() -> None:
    answer = opened().run(INPUTS)
    assert {name: (array.dtype.name, array.shape) for name, array in answer.items()} == {
        "y": ("float32", (4, 3)),
        "names": ("object", (4,)),
        "left": ("float16", (1, 2)),
    }
    assert not answer["y"].any()
    assert answer["names"].tolist() == [""] * 4


def test_echo() -> None:
    answer = opened(answer="echo").run(INPUTS)
    np.testing.assert_array_equal(answer["y"].ravel(), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3])
    np.testing.assert_array_equal(answer["left"].ravel(), [0, 1])


def test_delays_go_by_the_script_and_the_test_s_clock() -> None:
    engine = opened(delays_ms="2,2,50")
    assert isinstance(engine, NullEngine)
    slept: list[float] = []
    engine.sleep = slept.append
    for _ in range(4):
        engine.run(INPUTS)
    assert slept == [0.002, 0.002, 0.05, 0.002]


@pytest.mark.parametrize(("option", "value"), [("answer", "ones"), ("delays_ms", "2;3")])
def test_bad_options_are_one_line(option: str, value: str) -> None:
    with pytest.raises(EngineError, match=value):
        opened(**{option: value})


def test_no_profile_names_it() -> None:
    assert "null" not in ENGINES
    assert all(claim.name != "null" for profile in list_profiles() for claim in profile.engines)
