"""Flags of the build command that do not shape the bundle: cache, limits, jobs, reproducers."""

import pytest

from edgekit.bundle import Bundle
from edgekit.cli._build import parse_size
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.errors import UsageError

FAULTY = """
import time
from edgekit.converters._openvino import OpenVinoEmitter

class Faulty(OpenVinoEmitter):
    def emit(self, job):
        {fault}

EMITTERS = {{"openvino": Faulty()}}
"""


def test_the_second_build_says_that_it_is_a_copy(edgekit, tiny_mlp, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", "10000000")
    line = ("build", tiny_mlp, "--device", "generic-x86", "-o")
    assert edgekit(*line, tmp_path / "a", "--json").json["cached"] is False
    assert edgekit(*line, tmp_path / "b", "--json").json["cached"] is True
    assert "(from the cache of builds)" in edgekit(*line, tmp_path / "c").out
    assert edgekit(*line, tmp_path / "d", "--no-cache", "--json").json["cached"] is False
    assert len({Bundle.open(tmp_path / name).digest for name in "abcd"}) == 1


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Put an emitter that does ``fault`` in the place of OpenVINO's."""

    def use(fault):
        name = f"faulty_{tmp_path.name}"  # the toolchain's process outlives a test, and so do the modules that it imported
        (tmp_path / f"{name}.py").write_text(FAULTY.format(fault=fault))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(EMITTER_MODULES, "openvino", name)
        monkeypatch.setattr("edgekit.converters._reproducer.REDUCE_S", 0.5)

    return use


def test_a_reproducer_is_left_where_asked_or_not_at_all(edgekit, tiny_mlp, tmp_path, faulty):
    faulty("raise RuntimeError('no licence')")
    line = ("build", tiny_mlp, "--device", "intel-nuc", "-o", tmp_path / "b.edgekit")
    failed = edgekit(*line, "--reproducer", tmp_path / "left", "--memory-limit", "8GB")
    assert failed.status == 1
    assert f"{tmp_path}/left/b-reproducer.onnx --device intel-nuc --memory-limit 8000000000 --precision fp32" in failed.error
    assert [path.name for path in (tmp_path / "left").iterdir()] == ["b-reproducer.onnx"]
    assert "reproduce" not in edgekit(*line, "--no-reproducer").error
    assert not list(tmp_path.glob("b*"))


@pytest.mark.slow
def test_a_time_limit_is_an_error_of_one_line(edgekit, tiny_mlp, tmp_path, faulty):
    faulty("time.sleep(600)")
    failed = edgekit("build", tiny_mlp, "--device", "intel-nuc", "-o", tmp_path / "b.edgekit", "--time-limit", "5")
    assert failed.status == 1
    assert "target openvino: its toolchain's process did not end within 5 s while writing openvino fp32; give it more with" in failed.error


def test_progress_tells_the_time_and_the_device(edgekit, tiny_mlp, tmp_path):
    done = edgekit("build", tiny_mlp, "--device", "x86", "--device", "intel-nuc", "--jobs", "2", "--in-process", "-o", tmp_path / "all")
    assert done.status == 0
    assert any(line.split("s  ", 1)[-1] == "generic-x86: proving it" for line in done.err.splitlines())
    assert float(done.err.split(" s  ")[0]) >= 0


SIZES = {"8GB": 8_000_000_000, "7.5GiB": 8_053_063_680, "512M": 512_000_000, "64kiB": 65536, "1000": 1000, " 2 TB ": 2_000_000_000_000}


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_decimal_or_binary(text):
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize("text", ["8x", "-1", "GB", "", "0", "1e9", "8 G B", "8GBB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"--memory-limit: .* expected a size such as 8GB"):
        parse_size(text)


WRONG = {
    "jobs": (["--jobs", "0"], "--jobs: 0; expected 1 or more"),
    "time": (["--time-limit", "0"], "--time-limit: 0.0; expected a positive number"),
    "memory": (["--memory-limit", "lots"], "--memory-limit: 'lots'; expected a size"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_exit_with_2(edgekit, tiny_mlp, tmp_path, case):
    flags, expected = WRONG[case]
    done = edgekit("build", tiny_mlp, "--device", "x86", "-o", tmp_path / "b", *flags)
    assert done.status == 2
    assert expected in done.error
