"""Samples in Parquet: one row a sample, one column an input.

A column is named for its input (for a model with one input a single column may have any name) and holds a number, a flat list or nested lists. A flat list is
reshaped to the input's sizes; lists nested as deep as the input has axes, or one less for a first axis of 1, are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import EnvironmentMissingError, UsageError
from edgekit.runtime.engines import one_line

__all__ = ["SUFFIX", "read_parquet"]

SUFFIX = ".parquet"


def read_parquet(files: Sequence[Path], signature: Signature, limit: int) -> list[dict[str, np.ndarray]]:
    """At most ``limit`` rows, spread evenly over all files; only the row groups that hold them are read.

    Raises:
        UsageError: not Parquet, a column is missing, or a value does not fit its input.
        EnvironmentMissingError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("calibration samples in Parquet", "pyarrow", "parquet") from exc
    opened = [(file, _open(parquet, file)) for file in files]
    total = sum(table.metadata.num_rows for _, table in opened)
    if not total:
        raise UsageError(f"--calibration {files[0].parent}", "no rows in it", "one row a sample", "write the file again")
    wanted = {index * total // min(limit, total) for index in range(min(limit, total))}
    samples, start = [], 0
    for file, table in opened:
        columns = _columns(file, table.schema_arrow.names, signature)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            chosen = sorted(row - start for row in wanted if start <= row < start + rows)
            start += rows
            if chosen:
                part = table.read_row_group(group, columns=list(columns.values())).take(chosen)
                samples += [
                    {spec.name: _value(file, part[columns[spec.name]][row], spec) for spec in signature.inputs}
                    for row in range(len(chosen))
                ]
    return samples


def _open(parquet: Any, file: Path) -> Any:
    with storage_errors(file):
        try:
            return parquet.ParquetFile(file)
        except OSError:
            raise
        except Exception as exc:
            raise UsageError(str(file), f"not a Parquet file: {one_line(exc)}", "", "write it again") from exc


def _columns(file: Path, names: Sequence[str], signature: Signature) -> dict[str, str]:
    """Column of each input."""
    if len(signature.inputs) == 1 and len(names) == 1:
        return {signature.inputs[0].name: names[0]}
    missing = [spec.name for spec in signature.inputs if spec.name not in names]
    if missing:
        raise UsageError(
            str(file), f"no column {', '.join(missing)} (it has {', '.join(names) or 'none'})", "a column for every input by name"
        )
    return {spec.name: spec.name for spec in signature.inputs}


def _value(file: Path, cell: Any, spec: TensorSpec) -> np.ndarray:
    """One cell as the array that its input takes."""
    try:
        array = np.asarray(cell.as_py())
    except ValueError as exc:  # lists of unequal length
        raise UsageError(str(file), f"column {spec.name!r}: {one_line(exc)}", spec.describe(), "write it again") from exc
    if array.dtype.kind not in "biuf":
        raise UsageError(str(file), f"column {spec.name!r} holds {array.dtype}", f"numbers for {spec.describe()}", "write it again")
    if array.dtype.kind == "f" and np.dtype(spec.dtype).kind == "f":
        array = array.astype(spec.dtype)
    sizes = [dim for dim in spec.shape if isinstance(dim, int)]
    if array.ndim == len(spec.shape):
        return array
    if array.ndim + 1 == len(spec.shape) and array.ndim > 1:
        return array[np.newaxis]
    opened = len(spec.shape) - len(sizes)
    known = int(np.prod(sizes)) or 1
    if opened > 1 or array.size % known or (not opened and array.size != known):
        raise UsageError(str(file), f"column {spec.name!r} holds lists of shape {list(array.shape)}", spec.describe(), "write nested lists")
    return array.reshape([dim if isinstance(dim, int) else array.size // known for dim in spec.shape])
