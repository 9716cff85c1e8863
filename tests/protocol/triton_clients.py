"""What the tests of Triton's clients share: both packages have the same names for the same things."""

from __future__ import annotations

import logging
import uuid
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm

__all__ = ["DATATYPES", "X", "an_input", "array_of", "kept_log_level", "region"]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
DATATYPES = {
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT8": np.int8,
    "UINT64": np.uint64,
    "BOOL": bool,
    "BYTES": object,
    "FP64": np.float64,
}


def an_input(package, array, name="x", datatype="FP32", **options):
    """An input of `tritonclient.http` or `tritonclient.grpc`."""
    tensor = package.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **options)
    return tensor


def array_of(datatype):
    """Three values of a protocol datatype."""
    return np.array([b"a", b"", b"\xff\0"] if datatype == "BYTES" else [0, 1, 1], dtype=DATATYPES[datatype])


@pytest.fixture
def region():
    """Key and handle of a shared memory object of 4096 bytes."""
    key = f"/edgekit-test-{uuid.uuid4().hex[:12]}"
    handle = shm.create_shared_memory_region("data", key, 4096)
    yield key, handle
    shm.destroy_shared_memory_region(handle)


@contextmanager
def kept_log_level():
    """EdgeKit's logger, whose level is put back."""
    logger = logging.getLogger("edgekit")
    before = logger.level
    try:
        yield logger
    finally:
        logger.setLevel(before)
