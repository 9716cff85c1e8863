"""Read a source model, judge it once, and give every later step plain facts: signature, digest, opset.

`load_source` refuses what cannot be built, each case in one line; `graph_from_onnx` turns a normalised ONNX model into the plain graph that
the front ends of our own read.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.converters._plain_graph import graph_from_onnx
from edgekit.converters.sources._judge import MIN_OPSET, dtype_name, import_onnx
from edgekit.converters.sources._model import NativeModel, SourceModel
from edgekit.converters.sources._onnx_file import read_bytes, read_onnx
from edgekit.errors import ModelError

__all__ = ["MIN_OPSET", "NativeModel", "SourceModel", "dtype_name", "graph_from_onnx", "load_source"]


def load_source(path: str | os.PathLike[str]) -> SourceModel:
    """Read and check an ONNX file.

    Raises:
        ModelError: missing, not ONNX, truncated, invalid, without outputs, too old, with sequence or optional inputs, or with external
            data that is not there.
        UnsupportedOperatorsError: operators that neither ONNX nor ONNX Runtime defines.
        EnvironmentMissingError: the ``onnx`` package is not installed.
        StorageError: the file cannot be read.
    """
    import_onnx()
    path = Path(path)
    if path.is_dir():
        raise ModelError(str(path), "is a directory", "an ONNX file", "give the .onnx file itself")
    return read_onnx(path, read_bytes(path))
