"""Tensor data in raw and JSON form."""

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol._tensors import Limits, array_from_json, array_from_raw, element_count, json_from_array, raw_from_array
from tests.protocol.strategies import same, tensors

LIMITS = Limits()
QUICK = settings(derandomize=True, deadline=None, max_examples=150)


@QUICK
@given(tensors())
def test_raw_round_trip(case):
    datatype, array = case
    assert same(array_from_raw("input 'x'", datatype, array.shape, bytes(raw_from_array(array)), LIMITS), array)


@QUICK
@given(tensors(finite=True, text=True))
def test_json_round_trip_flat_and_nested(case):
    datatype, array = case
    flat = msgspec.json.encode(json_from_array("input 'x'", array))
    assert same(array_from_json("input 'x'", datatype, array.shape, flat, LIMITS), array)
    if array.size:  # an empty nested list does not say how deep it would have been
        shaped = array if array.dtype != object else np.vectorize(bytes.decode, otypes=[object])(array)
        nested = msgspec.json.encode(shaped.tolist() if array.ndim else [shaped.tolist()])
        assert same(array_from_json("input 'x'", datatype, array.shape, nested, LIMITS), array)


@QUICK
@given(tensors(), st.binary(max_size=40))
def test_raw_of_another_size_is_refused_or_decodes_to_itself(case, raw):
    datatype, array = case
    refusal = ""
    try:
        decoded = array_from_raw("input 'x'", datatype, array.shape, raw, LIMITS)
    except RequestError as exc:  # any other exception fails the test
        refusal = str(exc)
    assert refusal.startswith("input 'x': ") if refusal else bytes(raw_from_array(decoded)) == raw
    assert "\n" not in refusal


def test_raw_decode_shares_memory_when_aligned_and_is_read_only():
    raw = np.arange(6, dtype=np.float32).tobytes()
    view = array_from_raw("input 'x'", "FP32", [2, 3], raw, LIMITS)
    assert np.shares_memory(view, np.frombuffer(raw, np.uint8))
    assert not view.flags.writeable
    shifted = array_from_raw("input 'x'", "FP32", [2, 3], memoryview(b"." + raw)[1:], LIMITS)
    assert shifted.flags.aligned
    assert not shifted.flags.writeable
    np.testing.assert_array_equal(shifted, view)


@pytest.mark.parametrize("count", [0, 6, 100_000])
def test_raw_encode_shares_memory_when_large_and_contiguous(count):
    array = np.arange(count, dtype=np.float32)
    assert np.shares_memory(np.frombuffer(raw_from_array(array), np.uint8), array) == (count == 100_000)
    assert bytes(raw_from_array(array[::2])) == array[::2].tobytes()
    assert bytes(raw_from_array(array.astype(">f4"))) == array.tobytes()


def test_bfloat16_raw_and_json():
    raw = b"\x80\x3f\x00\x40\x80\x7f"  # 1, 2, infinity: the upper halves of float32
    array = array_from_raw("x", "BF16", [3], raw, LIMITS)
    assert array.dtype.name == "bfloat16"
    assert array.astype(np.float32).tolist() == [1, 2, np.inf]
    assert bytes(raw_from_array(array)) == raw
    assert json_from_array("x", array[:2]) == [1, 2]
    with pytest.raises(RequestError, match="NaN or infinity"):
        json_from_array("x", array)
    read = array_from_json("x", "BF16", [2, 1], b"[[1.0], [0.1]]", LIMITS)
    assert (read.dtype.name, read.astype(np.float32).ravel().tolist()) == ("bfloat16", [1, 0.10009765625])
    with pytest.raises(RequestError, match="out of range"):
        array_from_json("x", "BF16", [1], b"[1e39]", LIMITS)


def test_bytes_have_a_four_byte_little_endian_length():
    array = np.array([b"ab", b"", "é"], dtype=object)
    assert bytes(raw_from_array(array)) == b"\x02\0\0\0ab\0\0\0\0\x02\0\0\0\xc3\xa9"


BAD_RAW = [
    ("FP33", [1], b"\0" * 4, "datatype 'FP33'; expected one of BOOL"),
    ("BF16", [1], b"\0" * 3, "3 bytes of data; expected 2 for BF16[1]"),
    ("FP32", [2, 2], b"\0" * 15, "15 bytes of data; expected 16 for FP32[2,2]"),
    ("FP32", [0], b"\0", "1 bytes of data; expected 0 for FP32[0]"),
    ("FP32", [-1], b"", "dimension -1 in shape [-1]"),
    ("FP32", [1] * 17, b"\0" * 4, "17 dimensions; expected at most 16"),
    ("FP32", [1 << 40, 1 << 40], b"", "too many elements"),
    ("FP32", [0, 1 << 62], b"", "too many elements"),
    ("BOOL", [3], b"\0\1\2", "byte 2 at element 2; expected 0 or 1"),
    ("BYTES", [2], struct.pack("<I", 1) + b"a", "5 bytes of data; expected at least 8"),
    ("BYTES", [2], struct.pack("<I", 1) + b"abc\0", "data ends before the length of element 1"),
    ("BYTES", [1], struct.pack("<I", 1 << 31) + b"a", "element 0 claims 2147483648 bytes, 1 are left"),
    ("BYTES", [1], struct.pack("<I", 1) + b"ab", "1 bytes after the last element"),
]


@pytest.mark.parametrize(("datatype", "shape", "raw", "message"), BAD_RAW)
def test_bad_raw(datatype, shape, raw, message):
    with pytest.raises(RequestError) as caught:
        array_from_raw("input 'x'", datatype, shape, raw, LIMITS)
    assert str(caught.value).startswith("input 'x': ")
    assert message in str(caught.value)


BAD_JSON = [
    ("INT8", [2], "[1, 128]", "data does not fit INT8"),
    ("UINT8", [1], "[-1]", "data does not fit UINT8"),
    ("INT32", [1], "[1.5]", "data does not fit INT32"),
    ("INT32", [1], '["1"]', "data does not fit INT32"),
    ("UINT64", [1], "[18446744073709551616]", "UINT64"),
    ("INT64", [1], "[9223372036854775808]", "INT64"),
    ("BOOL", [1], "[1]", "data does not fit BOOL"),
    ("FP16", [1], "[70000]", "a value out of range; expected values of FP16"),
    ("FP32", [1], "[1e39]", "a value out of range; expected values of FP32"),
    ("FP64", [1], "[1e400]", "data does not fit FP64"),
    ("FP32", [2], "[1]", "1 values; expected 2 for shape [2]"),
    ("FP32", [2, 2], "[[1,2],[3]]", "a list of 1 along axis 1; expected 2"),
    ("FP32", [2, 2], "[[1,2],3]", "data does not fit FP32"),
    ("FP32", [2, 2], "[[[1,2],[3,4]]]", "data nested 3 deep"),
    ("FP32", [2], "7", "data nested 0 deep"),
    ("FP32", [], "7", "data nested 0 deep"),
    ("FP32", [1], "[null]", "data does not fit FP32"),
    ("FP32", [1], "[1", "data does not fit FP32"),
    ("BYTES", [1], "[1]", "data does not fit BYTES"),
    ("STRING", [1], "[1]", "datatype 'STRING'"),
]


@pytest.mark.parametrize(("datatype", "shape", "data", "message"), BAD_JSON)
def test_bad_json(datatype, shape, data, message):
    with pytest.raises(RequestError) as caught:
        array_from_json("input 'x'", datatype, shape, data.encode(), LIMITS)
    assert str(caught.value).startswith("input 'x': ")
    assert message in str(caught.value)


def test_json_cannot_carry_nan_or_bytes_that_are_no_text():
    with pytest.raises(RequestError, match=r"output 'y': holds NaN or infinity.*binary_data"):
        json_from_array("output 'y'", np.array([1, np.inf]))
    with pytest.raises(RequestError, match="output 'y': holds bytes that are not UTF-8"):
        json_from_array("output 'y'", np.array([b"\xff"], dtype=object))


def test_element_count():
    assert element_count("x", [], LIMITS) == 1
    assert element_count("x", [3, 0, 5], LIMITS) == 0
    assert element_count("x", [3, 4], LIMITS) == 12
