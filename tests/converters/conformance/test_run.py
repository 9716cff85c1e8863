"""Verdicts, and workers that die."""

import dataclasses
import os
import time

import numpy as np
import pytest

from edgekit.converters.conformance import Limits, conformance, judge_case, run_cases
from edgekit.errors import UnknownNameError, UsageError

pytestmark = pytest.mark.slow

DEVICE = "generic-x86"


class Crashes:
    """Ends the worker that unpickles it."""

    name = "crashes"

    def __reduce__(self):
        return os._exit, (3,)


class Aborts:
    """Ends the worker as a crash in native code does."""

    name = "aborts"

    def __reduce__(self):
        return os.abort, ()


class Hangs:
    """Keeps the worker that unpickles it."""

    name = "hangs"

    def __reduce__(self):
        return time.sleep, (3600,)


def test_right_numbers_pass(cases):
    assert judge_case(cases["test_relu"], DEVICE).verdict == "passed"


def test_numbers_that_are_not_the_recorded_ones_fail(cases):
    case = cases["test_relu"]
    wrong = dataclasses.replace(case, outputs={name: value + np.float32(0.01) for name, value in case.outputs.items()})
    verdict = judge_case(wrong, DEVICE)
    assert verdict.verdict == "failed"
    assert "differs by 0.01" in verdict.reason


def test_what_the_converter_says_no_to_is_refused_with_its_reason(cases):
    model = type(cases["test_relu"].model)()
    model.CopyFrom(cases["test_relu"].model)
    model.graph.node[0].op_type = "NoSuchOperator"
    verdict = judge_case(dataclasses.replace(cases["test_relu"], model=model), DEVICE)
    assert verdict.verdict == "refused"
    assert "NoSuchOperator" in verdict.reason
    assert "/tmp" not in verdict.reason  # equal runs give equal words


def test_a_worker_that_dies_costs_its_case_only(cases):
    found = run_cases([cases["test_relu"], Crashes(), cases["test_abs"], Aborts(), cases["test_neg"]], DEVICE, jobs=1)
    assert {name: verdict.verdict for name, verdict in found.items()} == {
        "test_relu": "passed",
        "crashes": "failed",
        "test_abs": "passed",
        "aborts": "failed",
        "test_neg": "passed",
    }
    assert "exit code 3" in found["crashes"].reason
    assert "SIGABRT" in found["aborts"].reason


def test_a_worker_that_hangs_is_ended():
    found = run_cases([Hangs()], DEVICE, jobs=1, limits=Limits(seconds=0.5))
    assert found["hangs"].verdict == "failed"
    assert "0.5 s" in found["hangs"].reason


def test_a_worker_that_grows_is_ended():
    found = run_cases([Hangs()], DEVICE, jobs=1, limits=Limits(bytes=1))
    assert "MB" in found["hangs"].reason


def test_results_keep_the_order_of_the_cases_whatever_the_workers(cases):
    chosen = [cases[name] for name in ("test_tanh", "test_abs", "test_relu", "test_neg")]
    assert list(run_cases(chosen, DEVICE, jobs=2)) == [case.name for case in chosen]


def test_no_such_device_and_no_such_case_are_refused_before_any_run():
    with pytest.raises(UnknownNameError, match="no-such"):
        conformance("no-such-device")
    with pytest.raises(UsageError, match="none of"):
        conformance(DEVICE, only="^no_such_case$")
    with pytest.raises(UsageError, match="regular expression"):
        conformance(DEVICE, only="(")
