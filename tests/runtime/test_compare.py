from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgekit.bundle import OutputMetrics, Signature, TensorSpec
from edgekit.errors import UnknownNameError, VerificationError
from edgekit.runtime._compare import check_metrics, compare_outputs, describe_metrics, thresholds_for, worst_output

shapes = npst.array_shapes(min_dims=1, max_dims=4, max_side=6)
floats = npst.arrays(np.float32, shapes, elements=st.floats(-(2.0**60), 2.0**60, width=32))
PRECISIONS = ("fp32", "fp16")


def signature(array: np.ndarray) -> Signature:
    return Signature((), (TensorSpec("y", array.dtype.name, array.shape),))


def compared(want: np.ndarray, got: np.ndarray) -> OutputMetrics:
    return compare_outputs([{"y": want}], [{"y": got}], signature(want))["y"]


@given(floats)
def test_an_output_equals_itself(array: np.ndarray) -> None:
    metrics = compared(array, array.copy())
    assert (metrics.max_abs, metrics.max_rel, metrics.cosine) == (0.0, 0.0, 1.0)
    assert metrics.top1_agreement in (None, 1.0)
    assert all(check_metrics({"y": metrics}, thresholds_for(precision)) == [] for precision in PRECISIONS)


@given(floats, st.integers(-20, 20))
def test_relative_metrics_do_not_depend_on_the_unit(array: np.ndarray, exponent: int) -> None:
    array, factor = array.astype(np.float64), 2.0**exponent  # a power of two scales without rounding
    other = array + np.linspace(-1, 1, array.size).reshape(array.shape)
    plain, scaled = compared(array, other), compared(array * factor, other * factor)
    if array.any():
        assert scaled.max_rel == plain.max_rel
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-12)
    assert scaled.max_abs == plain.max_abs * factor


@given(floats, st.integers(0, 10_000), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_nan_or_an_infinity_on_one_side_never_passes(array: np.ndarray, place: int, bad: float) -> None:
    broken = array.copy()
    broken.flat[place % array.size] = bad
    with pytest.raises(VerificationError, match=r"1 of \d+ values are NaN"):
        compared(array, broken)
    with pytest.raises(VerificationError, match=r"the source model itself|1 of \d+ values are NaN"):
        compared(broken, array)


def test_a_source_of_nothing_but_nan_proves_nothing() -> None:
    nothing = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(VerificationError, match="the source model itself answers with 6 NaN"):
        compared(nothing, nothing)
    some = np.array([np.nan, 1.0], np.float32)
    assert compared(some, some).max_abs == 0


def test_equal_infinities_are_an_answer() -> None:
    scores = np.array([[1.0, -np.inf, 0.5], [2.0, 1.0, -np.inf]], np.float32)
    found = compared(scores, scores + np.float32(0.001))
    assert found.max_abs == pytest.approx(0.001, rel=1e-3)
    assert found.top1_agreement == 1.0
    with pytest.raises(VerificationError, match=r"1 of 6 values are NaN"):
        compared(scores, np.where(scores == 0.5, np.float32(np.inf), scores))
    with pytest.raises(VerificationError, match=r"2 of 6 values are NaN"):
        compared(scores, -scores * np.isinf(scores) + np.where(np.isinf(scores), 0, scores))


@given(floats, st.integers(0, 10_000), st.sampled_from(PRECISIONS))
def test_an_error_beyond_the_limit_is_never_missed(array: np.ndarray, place: int, precision: str) -> None:
    limit = thresholds_for(precision)["max_rel"]
    wide = array.astype(np.float64)
    broken = wide.copy()
    broken.flat[place % array.size] += 1.01 * limit * (np.abs(wide).max() or 1.0)
    assume(not compared(wide, broken).probabilities)
    assert any("max_rel" in miss for miss in check_metrics({"y": compared(wide, broken)}, thresholds_for(precision)))


def test_metrics_agree_with_a_plain_calculation() -> None:
    random = np.random.default_rng(1)
    wants = [random.standard_normal((3, 5)).astype(np.float32) for _ in range(4)]
    gots = [want + random.normal(0, 0.1, want.shape).astype(np.float32) for want in wants]
    sides = ([{"y": array} for array in wants], [{"y": array} for array in gots])
    metrics = compare_outputs(*sides, signature(wants[0]))["y"]
    error = np.concatenate([(want.astype(float) - got).ravel() for want, got in zip(wants, gots, strict=True)])
    cosines = [np.vdot(w, g) / np.linalg.norm(w) / np.linalg.norm(g) for w, g in zip(wants, gots, strict=True)]
    same = [w.argmax(1) == g.argmax(1) for w, g in zip(wants, gots, strict=True)]
    assert metrics.max_abs == pytest.approx(np.abs(error).max())
    assert metrics.max_rel == pytest.approx(np.abs(error).max() / max(np.abs(w).max() for w in wants))
    assert metrics.cosine == pytest.approx(min(cosines), rel=1e-6)
    assert metrics.top1_agreement == pytest.approx(np.mean(same))


CLASS_AXES = {
    "logits of rank 2": (np.array([[0.1, 5.0, -2.0]]), True),
    "softmax rows of rank 3": (np.full((1, 4, 5), 0.2), True),
    "a picture": (np.random.default_rng(0).random((1, 1, 8, 8)), False),
    "a recurrent state": (np.random.default_rng(0).standard_normal((2, 1, 128)), False),
    "one score": (np.array([[0.7]]), False),
    "a vector": (np.array([0.1, 0.9]), False),
    "labels": (np.array([[3, 1]]), False),
}


@pytest.mark.parametrize("case", CLASS_AXES)
def test_which_outputs_have_classes(case: str) -> None:
    array, has_classes = CLASS_AXES[case]
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    assert (compared(array, array).top1_agreement is not None) == has_classes


def test_a_near_tie_does_not_count_as_a_flip_and_a_real_one_does() -> None:
    want = np.array([[1.0, 1.0 - 2**-12, 0.0], [1.0, 0.9, 0.0]], np.float32)
    flipped = want[:, [1, 0, 2]]
    assert compared(want, flipped).top1_agreement == 0.5


def test_a_sample_that_is_all_but_silent_takes_no_part_in_the_cosine() -> None:
    loud, quiet = np.array([1.0, 0.5], np.float32), np.array([1e-5, 0.0], np.float32)
    answers = [{"y": loud}, {"y": quiet[::-1].copy()}]
    assert compare_outputs([{"y": loud}, {"y": quiet}], answers, signature(loud))["y"].cosine == 1.0
    assert compare_outputs([{"y": quiet}], answers[1:], signature(quiet))["y"].cosine == 0.0


def test_probabilities_are_no_finer_than_float32_makes_them() -> None:
    """ONNX Runtime's own Sigmoid against the exact one: a detector that sees nothing answers what is mostly its rounding."""
    logits = np.linspace(-24, -8, 4001).astype(np.float32)
    exact = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    coarse = (np.float32(1) - np.float32(1) / (np.float32(1) + np.exp(logits))).astype(np.float32)  # as coarse as that, by cancellation
    silent = slice(0, 2000)  # below -16
    found = compared(coarse[silent], exact[silent])
    assert 0 < found.max_abs < 2**-22
    assert (found.max_rel, found.cosine) == (0.0, 1.0)
    assert check_metrics({"y": compared(coarse, exact)}, thresholds_for("fp32")) == []


def test_what_is_beyond_that_is_found_in_small_probabilities_and_in_all_other_numbers() -> None:
    small = np.linspace(1e-6, 4e-5, 50, dtype=np.float32)
    assert compared(small, np.zeros_like(small)).cosine == 0.0
    assert compared(small, small * np.float32(1.5)).max_rel == pytest.approx(0.02, rel=1e-3), "half of 4e-5, of 1e-3"
    signed = np.concatenate([[np.float32(-1e-9)], small / 1000])
    assert compared(signed, signed * np.float32(1.02)).max_rel == pytest.approx(0.02, rel=1e-3)


BROKEN = {
    "dtype": ([{"y": np.zeros(2, np.float32)}], [{"y": np.zeros(2, np.float16)}], "float16"),
    "shape": ([{"y": np.zeros(2, np.float32)}], [{"y": np.zeros((1, 2), np.float32)}], r"\[1, 2\]"),
    "missing": ([{"y": np.zeros(2, np.float32)}], [{}], "missing"),
    "count": ([{"y": np.zeros(2, np.float32)}], [], "0 answers to 1 samples"),
    "none": ([], [], "at least one"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_compared_is_an_error(case: str) -> None:
    reference, actual, message = BROKEN[case]
    with pytest.raises(VerificationError, match=message):
        compare_outputs(reference, actual, Signature((), (TensorSpec("y", "float32", (2,)),)))


def test_misses_name_the_output_and_come_worst_first() -> None:
    metrics = {"a": OutputMetrics(0.1, 0.06, 0.9995), "b": OutputMetrics(9.0, 0.9, 0.2, 0.5), "c": OutputMetrics(0.0, 0.0, 1.0, 1.0)}
    misses = check_metrics(metrics, thresholds_for("fp16"))
    assert misses[0].startswith("output 'b': cosine 0.2")
    assert misses[-1].startswith("output 'a': max_rel 0.06")
    assert not any("'c'" in miss for miss in misses)
    assert worst_output(metrics, thresholds_for("fp16")) == "b"
    assert describe_metrics(metrics["c"]) == "max_abs 0, max_rel 0, cosine 1.00000000, top1 1.0000"


def test_half_precision_may_move_a_tie_between_probabilities_but_not_the_answer() -> None:
    rows = np.tile(np.array([0.9, 0.05, 0.05], np.float32), (1, 100, 1))
    rows[0, 7] = (0.34, 0.33, 0.33)
    moved = rows.copy()
    moved[0, 7] = (0.1, 0.8, 0.1)
    metrics = compared(rows, moved)
    assert metrics.probabilities
    assert metrics.max_rel > thresholds_for("fp16")["max_rel"]
    assert check_metrics({"y": metrics}, thresholds_for("fp16")) == []
    assert check_metrics({"y": metrics}, thresholds_for("fp32")) != []
    wrong = np.roll(rows, 1, axis=-1)
    assert any("probability_cosine" in miss for miss in check_metrics({"y": compared(rows, wrong)}, thresholds_for("fp16")))
    assert check_metrics({"y": compared(10 * rows, 10 * moved)}, thresholds_for("fp16")) != []


def test_a_nan_metric_misses() -> None:
    assert len(check_metrics({"y": OutputMetrics(np.nan, np.nan, np.nan, np.nan)}, thresholds_for("fp16"))) == 3


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="fp64"):
        thresholds_for("fp64")
