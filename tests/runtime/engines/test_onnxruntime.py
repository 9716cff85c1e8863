"""ONNX Runtime's own matters: when memory is planned, and which outputs are bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgekit.bundle import Bundle, TensorSpec
from edgekit.runtime import EngineOptions, Session
from edgekit.runtime.engines._onnxruntime import BINDING_BYTES, plans_memory

Built = Callable[..., Bundle]

PLANS = {
    "a small picture": ((TensorSpec("x", "float32", (1, 3, 48, 192)),), True),
    "a large one": ((TensorSpec("x", "float32", (1, 3, 480, 640)),), False),
    "small each, large together": ((TensorSpec("x", "float32", (1, 200_000)), TensorSpec("y", "int64", (50_000,))), False),
    "an open batch": ((TensorSpec("x", "float32", ("N", 8)),), False),
    "text": ((TensorSpec("x", "string", (1,)),), False),
    "a scalar": ((TensorSpec("x", "int64", ()),), True),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans_memory(case: str) -> None:
    inputs, expected = PLANS[case]
    assert plans_memory(inputs) is expected


def test_outputs_that_are_not_the_caller_s_are_made_beside_bound_ones(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.runtime.engines import _onnxruntime

    assert BINDING_BYTES > 5 * 4  # so that only this test binds the tiny output
    monkeypatch.setattr(_onnxruntime, "BINDING_BYTES", 1)
    image = np.random.default_rng(4).standard_normal((1, 16, 16, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    with Session(built("onnxruntime"), EngineOptions(threads=1)) as session:
        want = session.run({"image": image})
        scores = np.zeros((1, 5), np.float32)
        answer = session.run({"image": image}, {"scores": scores})
    assert answer["scores"] is scores
    assert list(answer) == list(want)
    for name, values in want.items():
        np.testing.assert_array_equal(answer[name], values)
