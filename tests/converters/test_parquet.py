"""Samples in Parquet: shapes, spreading over files and row groups, and one line for what is wrong."""

import numpy as np
import pytest

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._parquet import read_parquet
from edgekit.converters._samples import MAX_SAMPLES, calibration_inputs, range_inputs
from edgekit.errors import UsageError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

X = TensorSpec("x", "float32", (1, 2, 3))
IDS = TensorSpec("ids", "int64", ("N", 4))


def write(path, columns, group=None):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def rows(count):
    return np.random.default_rng(0).standard_normal((count, 1, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("form", ["flat", "nested", "without the first axis"])
def test_lists_become_the_inputs_arrays(tmp_path, form):
    values = rows(3)
    cells = {"flat": values.reshape(3, 6), "nested": values, "without the first axis": values[:, 0]}[form]
    file = write(tmp_path / "a.parquet", {"x": cells.tolist()})
    found = calibration_inputs(file, Signature((X,), ()))
    assert [each["x"].dtype for each in found] == [np.float32] * 3
    np.testing.assert_array_equal(np.stack([each["x"] for each in found]), values)


def test_several_inputs_have_a_column_each_and_others_are_ignored(tmp_path):
    file = write(tmp_path / "a.parquet", {"label": [1, 2], "ids": [[1, 2, 3, 4], [5, 6, 7, 8]], "x": rows(2).reshape(2, 6).tolist()})
    found = calibration_inputs(file, Signature((X, IDS), ()))
    assert found[1]["ids"].tolist() == [[5, 6, 7, 8]]
    assert found[1]["ids"].dtype == np.int64


def test_rows_are_spread_over_files_and_row_groups(tmp_path):
    spec = TensorSpec("n", "int64", ("N",))
    write(tmp_path / "a.parquet", {"n": list(range(70))}, group=16)
    write(tmp_path / "b.parquet", {"n": list(range(70, 100))}, group=7)
    found = [int(each["n"][0]) for each in read_parquet(sorted(tmp_path.iterdir()), Signature((spec,), ()), 10)]
    assert found == list(range(0, 100, 10))
    assert len(calibration_inputs(tmp_path, Signature((spec,), ()))) == MAX_SAMPLES
    assert len(range_inputs(tmp_path, Signature((spec,), ()), 64)) == 64


BAD = {
    "a column is missing": ({"y": [1.0], "z": [2.0]}, "no column x (it has y, z)"),
    "too many values": ({"x": [[1.0] * 7]}, "column 'x' holds lists of shape [7]"),
    "words": ({"x": [["a", "b"]]}, "expected numbers"),
    "lists of unequal length": ({"x": [[[1.0], [1.0, 2.0]]]}, "column 'x'"),
    "no rows": ({"x": pyarrow.array([], pyarrow.list_(pyarrow.float32()))}, "no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(tmp_path, case):
    columns, message = BAD[case]
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UsageError) as caught:
        calibration_inputs(file, Signature((X,), ()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_parquet_is_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR0" * 10)
    with pytest.raises(UsageError, match="not a Parquet file"):
        calibration_inputs(tmp_path, Signature((X,), ()))
