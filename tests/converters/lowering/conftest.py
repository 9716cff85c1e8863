"""Lower a model although nothing refuses it, and compare it with the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgekit.converters._lowering import lower_model
from tests.converters.lowering.models import operators, refusing, run


@pytest.fixture(scope="session")
def same():
    """``same(model, live, "Op", …)``: none of the operators is left, and ONNX Runtime gives the same answers."""

    def check(model, live, *refused, atol=1e-5, rtol=1e-4):
        lowered = lower_model(model, refusing(*refused), static=True)
        assert not lowered.refused, lowered.refused
        assert not set(operators(lowered.model)) & set(refused)
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(lowered.model, strict_mode=True, data_prop=True))
        for want, got in zip(run(model, live), run(lowered.model, live), strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            if want.dtype.kind == "f":
                np.testing.assert_allclose(got, want, atol=atol, rtol=rtol)
            else:
                np.testing.assert_array_equal(got, want)
        return lowered.model

    return check
