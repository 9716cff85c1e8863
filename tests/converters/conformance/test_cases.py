"""Which cases count, and what makes one right."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.converters.conformance import operators_of
from edgekit.converters.conformance._cases import in_scope, load_cases, mismatch

pytestmark = pytest.mark.slow


def test_the_scope_is_most_of_the_suite(cases):
    assert 1400 <= len(cases) <= 1600
    assert {case.kind for case in cases.values()} == {"node", "simple", "pytorch-converted", "pytorch-operator"}


def test_one_input_is_live_and_the_others_are_weights(cases):
    case = cases["test_add_bcast"]
    assert [value.name for value in case.model.graph.input] == list(case.inputs) == ["x"]
    assert [tensor.name for tensor in case.model.graph.initializer] == ["y"]


def test_equal_cases_from_a_second_reading(cases):
    again = {case.name: case for case in load_cases()}
    for name in list(cases)[::50]:
        assert again[name].model == cases[name].model
        assert all(
            np.array_equal(again[name].inputs[key], value, equal_nan=value.dtype.kind == "f") for key, value in cases[name].inputs.items()
        )


def test_strings_and_other_domains_are_out_of_scope(cases):
    assert not any(name.startswith(("test_string_", "test_ai_onnx_ml_", "test_regex_")) for name in cases)
    assert {array.dtype.kind for case in cases.values() for array in (*case.inputs.values(), *case.outputs.values())} == set("fiub")
    assert all(node.domain == "" for case in cases.values() for node in case.model.graph.node)


def test_a_model_without_inputs_is_out_of_scope(cases):
    assert not in_scope(dataclasses.replace(cases["test_abs"], inputs={}))


@pytest.mark.parametrize("name", ["test_conv_with_strides_padding", "test_softmax_axis_1", "test_argmax_default_axis_example"])
def test_recorded_outputs_are_accepted_and_changed_ones_are_not(cases, name):
    case = cases[name]
    session = onnxruntime.InferenceSession(case.model.SerializeToString())
    outputs = dict(zip(case.outputs, session.run(None, case.inputs), strict=True))
    assert mismatch(case, outputs) == ""
    key, value = next(iter(outputs.items()))
    wrong = value.copy()
    wrong.flat[-1] += 1
    assert "differs" in mismatch(case, {**outputs, key: wrong})
    assert "expected" in mismatch(case, {**outputs, key: value[None]})
    assert "expected" in mismatch(case, {**outputs, key: value.astype(np.float16 if value.dtype.kind == "f" else np.int16)})


def test_nan_and_infinity_count(cases):
    case = cases["test_abs"]
    key, value = next(iter(case.outputs.items()))
    for bad in (np.nan, np.inf):
        wrong = value.copy()
        wrong.flat[0] = bad
        assert mismatch(case, {key: wrong})


def test_operators_are_named_and_function_bodies_stand_beside_them(cases):
    names = operators_of(list(cases.values()))
    assert names["test_abs"] == "Abs"
    assert names["test_layer_normalization_2d_axis0_expanded"] == "LayerNormalization (function body)"
    assert set(names) == set(cases)


def test_a_frozen_case_is_a_valid_model(cases):
    for name in list(cases)[::100]:
        model = cases[name].model
        if model.ir_version >= 4:  # before, initializers had to be inputs as well
            onnx.checker.check_model(model)
