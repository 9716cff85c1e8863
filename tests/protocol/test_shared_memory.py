"""Regions of system shared memory: register, read, write, and what a client can get wrong."""

import os
import uuid
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol import Limits, Tensor
from edgekit.protocol._shared_memory import SharedMemoryRegions, is_shared

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def key():
    memory = shared_memory.SharedMemory(f"edgekit-test-{uuid.uuid4().hex[:12]}", create=True, size=4096)
    memory.buf[: X.nbytes] = X.tobytes()
    yield memory.name
    memory.close()
    memory.unlink()


@pytest.fixture
def regions(key):
    made = SharedMemoryRegions()
    made.register("r", f"/{key}", 0, 4096, local=True)
    yield made
    made.close()


def at(offset, size, name="r"):
    return {"shared_memory_region": name, "shared_memory_offset": offset, "shared_memory_byte_size": size}


def test_read_is_a_copy_of_the_tensor(regions):
    array = regions.read("input 'x'", at(0, X.nbytes), "FP32", [2, 3])
    np.testing.assert_array_equal(array, X)
    regions.write("output 'y'", at(0, 100), Tensor("y", X + 1))
    np.testing.assert_array_equal(array, X)


def test_what_is_written_is_read(regions):
    text = np.array([b"ab", b"", b"\xff"], dtype=object)
    told = regions.write("output 'y'", at(64, 100), Tensor("y", text))
    assert told == at(64, 15)
    assert regions.read("input 'y'", told, "BYTES", [3]).tolist() == text.tolist()


def test_offsets_add_up(key):
    regions = SharedMemoryRegions()
    regions.register("half", key, 8, 100, local=True)
    np.testing.assert_array_equal(regions.read("input 'x'", at(4, 12, "half"), "FP32", [3]), X.ravel()[3:6])
    assert regions.write("output 'y'", at(50, 50, "half"), Tensor("y", X))["shared_memory_offset"] == 50
    regions.close()


def test_status_and_unregister(regions, key):
    assert [(row.name, row.key, row.offset, row.byte_size) for row in regions.status()] == [("r", f"/{key}", 0, 4096)]
    assert regions.status("r") == regions.status()
    regions.unregister("nobody")
    regions.unregister("r")
    with pytest.raises(NotFoundError, match="region 'r': not registered"):
        regions.status("r")
    with pytest.raises(NotFoundError):
        regions.read("input 'x'", at(0, 4), "FP32", [1])
    regions.register("r", key, 0, 10, local=True)
    regions.unregister()
    assert regions.status() == []


def test_no_descriptor_is_left_open(key):
    before = len(list(Path("/proc/self/fd").iterdir()))
    regions = SharedMemoryRegions()
    for index in range(50):
        regions.register(f"r{index}", key, 0, 8, local=True)
        with pytest.raises(RequestError):
            regions.register("too long", key, 0, 5000, local=True)
    regions.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


REGISTRATIONS = {
    "another machine": (("a", "KEY", 0, 8), {"local": False}, "asked for from another machine"),
    "name taken": (("r", "KEY", 0, 8), {}, "registered already"),
    "no name": (("", "KEY", 0, 8), {}, "no name"),
    "no such object": (("a", "edgekit-no-such", 0, 8), {}, "cannot be opened (No such file"),
    "a path": (("a", "../../etc/passwd", 0, 8), {}, "expected the name of a POSIX shared memory object"),
    "an absolute path": (("a", "/etc/passwd", 0, 8), {}, "expected the name of"),
    "a dot": (("a", "..", 0, 8), {}, "expected the name of"),
    "the folder": (("a", "/", 0, 8), {}, "expected the name of"),
    "a zero byte": (("a", "a\0b", 0, 8), {}, "expected the name of"),
    "negative offset": (("a", "KEY", -1, 8), {}, "offset -1"),
    "empty": (("a", "KEY", 0, 0), {}, "byte_size 0"),
    "beyond the end": (("a", "KEY", 4090, 8), {}, "a range within the 4096 bytes"),
    "huge": (("a", "KEY", 0, 1 << 62), {}, "a range within"),
}


@pytest.mark.parametrize("name", REGISTRATIONS)
def test_bad_registrations(regions, key, name):
    (region, wanted, offset, size), options, message = REGISTRATIONS[name]
    with pytest.raises(RequestError) as caught:
        regions.register(region, wanted.replace("KEY", key), offset, size, **{"local": True, **options})
    assert message in str(caught.value)
    assert len(regions.status()) == 1


READS = {
    "unknown region": (at(0, 4, "no"), "region 'no': not registered"),
    "no size": ({"shared_memory_region": "r"}, "shared_memory_byte_size 'None'"),
    "negative offset": (at(-4, 4), "shared_memory_offset '-4'"),
    "a flag as offset": (at(True, 4), "shared_memory_offset 'True'"),
    "beyond the region": (at(4096, 4), "bytes 4096 to 4100"),
    "wrong size": (at(0, 8), "8 bytes of data; expected 4"),
    "a number as name": (at(0, 4, 7), "shared_memory_region '7'"),
}


@pytest.mark.parametrize("name", READS)
def test_bad_reads(regions, name):
    parameters, message = READS[name]
    with pytest.raises(RequestError) as caught:
        regions.read("input 'x'", parameters, "FP32", [1])
    assert message in str(caught.value)


def test_an_output_that_does_not_fit(regions):
    with pytest.raises(RequestError, match="at least the 24 bytes"):
        regions.write("output 'y'", at(0, 20), Tensor("y", X))


def test_a_truncated_object_is_an_error_and_not_the_end(regions, key):
    os.truncate(f"/dev/shm/{key}", 8)
    with pytest.raises(RequestError, match="made smaller than registered"):
        regions.read("input 'x'", at(0, 4096), "UINT8", [4096])
    with pytest.raises(RequestError, match="made smaller than registered"):
        regions.write("output 'y'", at(0, 4096), Tensor("y", X))
    assert Path(f"/dev/shm/{key}").stat().st_size == 8
    os.truncate(f"/dev/shm/{key}", 4096)


def test_limits(key):
    regions = SharedMemoryRegions(Limits(body_bytes=100))
    regions.register("r", key, 0, 4096, local=True)
    with pytest.raises(RequestError, match="at most 100"):
        regions.read("input 'x'", at(0, 4096), "UINT8", [4096])
    for index in range(255):
        regions.register(f"r{index}", key, 0, 8, local=True)
    with pytest.raises(RequestError, match="at most 256"):
        regions.register("one more", key, 0, 8, local=True)
    regions.close()


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"0123")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    regions = SharedMemoryRegions(folder=str(tmp_path))
    for name in ("link", "folder", "pipe"):
        with pytest.raises(RequestError):
            regions.register("r", name, 0, 4, local=True)


def test_is_shared():
    assert is_shared(at(0, 4))
    assert not is_shared({})
    assert not is_shared({"binary_data_size": 4})
