"""Several devices at once: the same bytes as one after the other, results in order, and one error that stops the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.converters import build_many
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._isolation import CancelledError, Guard
from edgekit.converters._parallel import run_all
from edgekit.converters._targets import Target, resolve_targets
from edgekit.errors import BuildError, UsageError

DEVICES = ["intel-nuc", "generic-x86", "iphone-15", "raspberry-pi-5"]


def targets(tmp_path: Path) -> list[Target]:
    return resolve_targets("m", DEVICES, {"output": tmp_path})


@pytest.mark.parametrize("devices", [DEVICES[:2], pytest.param(DEVICES, marks=pytest.mark.slow)], ids=["two", "four"])
def test_bundles_are_the_same_bytes_at_once_and_alone(tiny_conv: Path, tmp_path: Path, devices: list[str]) -> None:
    together = build_many(tiny_conv, devices=devices, output=tmp_path / "together", jobs=4)
    assert [result.bundle.manifest.device for result in together] == devices
    alone = build_many(tiny_conv, devices=list(reversed(devices)), output=tmp_path / "alone", jobs=1)
    here = build_many(tiny_conv, devices=devices, output=tmp_path / "here", isolate=False)
    for result, other, third in zip(together, reversed(alone), here, strict=True):
        assert result.bundle.path.read_bytes() == other.bundle.path.read_bytes() == third.bundle.path.read_bytes()


def test_progress_names_the_device(tiny_conv: Path, tmp_path: Path) -> None:
    said: list[str] = []
    build_many(tiny_conv, devices=DEVICES[:2], output=tmp_path, progress=said.append, jobs=2)
    assert said[:3] == ["reading the model", "normalising", "running the source model on samples"]
    assert {line.partition(": ")[0] for line in said[3:]} == set(DEVICES[:2])


def test_the_model_is_read_once(tiny_conv: Path, tmp_path: Path) -> None:
    said: list[str] = []
    build_many(tiny_conv, devices=DEVICES[:2], output=tmp_path, progress=said.append, jobs=2)
    assert said.count("reading the model") == said.count("normalising") == 1


def test_the_first_error_stops_the_others(tmp_path: Path) -> None:
    """Three wait until they are stopped; the fourth fails once they all run."""
    running = threading.Barrier(4)
    stopped: list[str] = []

    def one(target: Target, guard: Guard) -> str:
        running.wait(60)
        if target.profile.id == "iphone-15":
            raise BuildError("iphone-15", "failed")
        assert guard.cancelled.wait(60)
        stopped.append(target.profile.id)
        raise CancelledError

    with pytest.raises(BuildError, match="iphone-15: failed"):
        run_all(one, targets(tmp_path), Guard(), 4)
    assert sorted(stopped) == sorted(set(DEVICES) - {"iphone-15"})


def test_what_waits_is_not_begun_after_an_error(tmp_path: Path) -> None:
    begun: list[str] = []

    def one(target: Target, guard: Guard) -> str:
        begun.append(target.profile.id)
        if len(begun) == 1:
            raise BuildError("first", "failed")
        assert guard.cancelled.wait(60)
        raise CancelledError

    with pytest.raises(BuildError, match="first: failed"):
        run_all(one, targets(tmp_path), Guard(), 2)
    assert len(begun) <= 3


def test_an_interrupt_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, stopped = Guard(), threading.Event()

    def one(target: Target, own: Guard) -> str:
        assert own.cancelled.wait(60)
        stopped.set()
        raise CancelledError

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.converters._parallel.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(one, targets(tmp_path), guard, 2)
    assert stopped.is_set()


FAILING = """
from edgekit.converters._onnxruntime import OnnxRuntimeEmitter

class Failing(OnnxRuntimeEmitter):
    def emit(self, job):
        raise RuntimeError("no licence")

EMITTERS = {"onnxruntime": Failing()}
"""


def test_a_build_that_fails_among_others_is_its_one_error(tiny_conv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_emitter.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EMITTER_MODULES, "onnxruntime", "failing_emitter")
    with pytest.raises(BuildError, match="target onnxruntime: its toolchain failed: no licence"):
        build_many(tiny_conv, devices=DEVICES[:2], output=tmp_path / "out", jobs=2, reproducer=False)
    left = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert {path.name for path in left} <= {"tiny_conv-intel-nuc.edgekit"}  # the other one, if it was quicker; nothing half-written


BAD: dict[str, tuple[Callable[..., object], str]] = {
    "jobs": (lambda path, out: build_many(path, devices=["x86"], output=out, jobs=0), "--jobs: 0; expected 1 or more"),
    "time": (lambda path, out: build_many(path, devices=["x86"], output=out, time_limit_s=-1.0), "--time-limit: -1.0; expected a positive"),
    "memory": (lambda path, out: build_many(path, devices=["x86"], output=out, memory_limit_bytes=0), "--memory-limit: 0; expected a pos"),
    "name": (
        lambda path, out: build_many(path, devices=["x86"], output=out, calibraton="x"),
        "unknown name 'calibraton'; expected one of calib",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_cannot_be_are_refused(tiny_conv: Path, tmp_path: Path, case: str) -> None:
    call, expected = BAD[case]
    with pytest.raises(UsageError) as caught:
        call(tiny_conv, tmp_path / "b")
    assert expected in str(caught.value)
