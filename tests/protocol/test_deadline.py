"""Deadlines from parameters and headers."""

import pytest

from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, absolute_deadline
from edgekit.protocol._deadline import call_deadline, timeout_from_header, with_timeout

CASES = {
    "none": ({}, (), None),
    "zero is none": ({"timeout": 0}, (), None),
    "microseconds": ({"timeout": 250_000}, (), 100.25),
    "transport": ({}, (None, 0.5), 100.5),
    "the earlier of both": ({"timeout": 250_000}, (0.5, 0.125), 100.125),
}


@pytest.mark.parametrize("name", CASES)
def test_absolute_deadline(name):
    parameters, timeouts, expected = CASES[name]
    assert absolute_deadline(parameters, 100.0, *timeouts) == expected


@pytest.mark.parametrize("timeout", [-1, True, 1.5, "10", 1 << 63])
def test_bad_timeout(timeout):
    with pytest.raises(RequestError, match="parameter 'timeout'"):
        absolute_deadline({"timeout": timeout}, 0.0)


@pytest.mark.parametrize("text", ["", "abc", "0", "-5", "nan", "inf"])
def test_bad_header(text):
    with pytest.raises(RequestError, match="header x-edgekit-deadline-ms"):
        timeout_from_header(text)


def test_header_is_milliseconds():
    assert timeout_from_header(None) is None
    assert timeout_from_header("2.5") == 0.0025


def test_what_a_client_spends():
    assert call_deadline(InferRequest("m", []), 2.0, 100.0) == 102.0
    assert call_deadline(InferRequest("m", [], deadline_s=100.5), 2.0, 100.0) == 100.5
    told = with_timeout(InferRequest("m", [], parameters={"a": 1}), 0.25).parameters
    assert told.keys() == {"a", "timeout"}
    assert told["a"] == 1
    assert with_timeout(InferRequest("m", []), 1e-9).parameters == {"timeout": 1}


def test_what_is_left_is_told_in_few_different_words_and_never_as_more():
    told = {}
    for remaining_us in (*range(1, 3000), *range(999_000, 1_001_000, 7), 2**40 + 1):
        timeout = with_timeout(InferRequest("m", []), remaining_us / 1e6).parameters["timeout"]
        assert remaining_us * 511 / 512 - 1 <= timeout <= remaining_us
        told.setdefault(timeout, []).append(remaining_us)
    assert len([timeout for timeout in told if 999_000 <= timeout <= 1_001_000]) <= 4  # of 286
