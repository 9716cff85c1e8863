"""Hypothesis strategies for tensors of every protocol datatype."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.protocol import OIP_DTYPES

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMERIC = [name for name in OIP_DTYPES if name != "BYTES"]


@st.composite
def tensors(draw, datatypes=tuple(OIP_DTYPES), finite=False, text=False):
    """``(datatype, array)``; ``finite`` leaves NaN and infinities out, ``text`` makes BYTES elements valid UTF-8."""
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(SHAPES)
    if datatype != "BYTES":
        dtype = np.dtype(OIP_DTYPES[datatype])
        values = st.floats(width=dtype.itemsize * 8, allow_nan=False, allow_infinity=False) if finite and dtype.kind == "f" else None
        return datatype, draw(arrays.arrays(dtype, shape, elements=values))
    elements = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(str.encode) if text else st.binary(max_size=6)
    count = int(np.prod(shape, dtype=int))
    array = np.empty(count, dtype=object)
    array[:] = draw(st.lists(elements, min_size=count, max_size=count))
    return datatype, array.reshape(shape)


def same(left, right):
    """Equal dtype, shape and values, NaN equal to NaN and -0.0 unlike 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return left.tolist() == right.tolist()
    return left.tobytes() == right.tobytes()
