"""SHA-256 of small and large content, with OpenSSL and without."""

import hashlib
import sys

import pytest

from edgekit.bundle import _digest
from edgekit.bundle._digest import sha256_of, sha256_of_file

SIZES = [0, 1, 5000, 2 * _digest._LARGE_BYTES]


@pytest.mark.parametrize("start", ["hashlib is there", "a bare start", "an interpreter without its own"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_same_from_wherever_it_comes(monkeypatch, tmp_path, start, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    want = hashlib.sha256(data).hexdigest()
    (tmp_path / "file").write_bytes(data)
    if start != "hashlib is there":
        monkeypatch.delitem(sys.modules, "hashlib")
    if start == "an interpreter without its own":
        monkeypatch.setattr(_digest, "_LEAN", "no_such_module")
    assert sha256_of(data) == want
    monkeypatch.delitem(sys.modules, "hashlib", raising=False)
    assert sha256_of_file(tmp_path / "file") == want
