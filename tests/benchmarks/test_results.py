"""Figures of several rounds, and records that go to disk and come back."""

import pytest

from benchmarks import _runner
from benchmarks._results import Spread, plain, ratio, spread


def test_a_spread_is_the_median_with_least_and_most():
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_a_ratio_is_taken_within_each_round():
    # A machine that is ten times slower in one round slows both: the quotient stays.
    assert ratio([20.0, 2.0, 20.0], [10.0, 1.0, 10.0]) == Spread(2.0, 2.0, 2.0)


def test_a_ratio_of_unequal_rounds_is_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratio([1.0, 2.0], [1.0])


def test_four_digits_are_kept():
    assert plain({"a": [123456.789, 1], "b": {"c": 0.000123456}}) == {"a": [123500.0, 1], "b": {"c": 0.0001235}}


def test_a_record_comes_back_as_it_was_written(tmp_path, make_record, side_by_side):
    record = make_record("serve", side_by_side)
    path = _runner.write(record, tmp_path / "deep")
    assert _runner.read(tmp_path / "deep") == {"serve": record}
    assert [each.name for each in path.parent.iterdir()] == ["serve.json"]  # nothing half-written is left


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "serve"}', '{"name": 1}'], ids=["no JSON", "a list", "fields missing", "wrong type"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "serve.json").write_text(text)
    with pytest.raises(ValueError, match=r"serve\.json: not a benchmark's record"):
        _runner.read(tmp_path)


def test_no_folder_has_no_records(tmp_path):
    assert _runner.read(tmp_path / "none") == {}
