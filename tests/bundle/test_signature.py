from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import RequestError

SIGNATURE = Signature(
    (TensorSpec("image", "float32", ("N", 3, "H", "W")), TensorSpec("ids", "int64", ("N", 4)), TensorSpec("flag", "bool", ())),
    (TensorSpec("y", "float32", ("N", 2)),),
)


def request(**changes: np.ndarray) -> dict[str, np.ndarray]:
    good = {"image": np.zeros((2, 3, 5, 7), np.float32), "ids": np.zeros((2, 4), np.int64), "flag": np.array(True)}
    return {**good, **changes}


def test_a_fitting_request_passes() -> None:
    SIGNATURE.check(request())


WRONG = {
    "unknown": (request(other=np.zeros(1)), "'other': no such input"),
    "missing": ({key: value for key, value in request().items() if key != "ids"}, "'ids': missing"),
    "dtype": (request(ids=np.zeros((2, 4), np.int32)), "dtype int32; expected int64[N,4]"),
    "rank": (request(image=np.zeros((3, 5, 7), np.float32)), "shape [3,5,7]"),
    "fixed size": (request(image=np.zeros((2, 1, 5, 7), np.float32)), "shape [2,1,5,7]"),
    "symbol in two inputs": (request(ids=np.zeros((3, 4), np.int64)), "dimension N is 3; expected 2"),
    "scalar": (request(flag=np.array([True])), "shape [1]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line(case: str) -> None:
    inputs, expected = WRONG[case]
    with pytest.raises(RequestError) as caught:
        SIGNATURE.check(inputs)
    assert expected in str(caught.value)


def test_description() -> None:
    assert SIGNATURE.inputs[0].describe() == "float32[N,3,H,W]"
    assert not SIGNATURE.inputs[0].is_static
    assert SIGNATURE.inputs[2].is_static
