"""Builds that were made before come from the cache: the same bytes, checked, bounded, and never for another input."""

from __future__ import annotations

import os
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.bundle import Bundle, cache_directory
from edgekit.converters import build, build_result
from edgekit.converters._cache import BuildCache
from edgekit.converters._digest import UnknownContentError, canonical, model_digest
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._onnxruntime import OnnxRuntimeEmitter
from edgekit.converters._targets import resolve_targets
from edgekit.errors import ModelError, UsageError

SMALL = 50_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; returns the folder of its entries."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", str(SMALL))
    return tmp_path / "cache" / "builds"


@pytest.fixture
def model(tiny_mlp: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copy(tiny_mlp, tmp_path / "model.onnx"))


def key(model: Path, device: str = "generic-x86", **options: object) -> str:
    (target,) = resolve_targets(model.stem, [device], options)  # type: ignore[arg-type]
    entry = BuildCache(model, options, SMALL).entry(target)  # type: ignore[arg-type]
    return entry.name if entry is not None else ""


@pytest.mark.parametrize("suffix", ["", ".edgekit"])
def test_the_second_build_is_a_copy(model: Path, tmp_path: Path, cache: Path, suffix: str) -> None:
    said: list[str] = []
    first = build_result(model, device="generic-x86", output=tmp_path / f"first{suffix}")
    second = build_result(model, device="generic-x86", output=tmp_path / f"second{suffix}", progress=said.append)
    assert (first.cached, second.cached) == (False, True)
    assert said == []  # nothing was read, run or built
    assert first.bundle.digest == second.bundle.digest
    assert (first.bytes, first.bundle_bytes) == (second.bytes, second.bundle_bytes)
    if suffix:
        assert first.bundle.path.read_bytes() == second.bundle.path.read_bytes()
    else:
        files = [sorted((path.relative_to(folder), path.read_bytes()) for path in folder.rglob("*") if path.is_file())
                 for folder in (first.bundle.path, second.bundle.path)]  # fmt: skip
        assert files[0] == files[1]
    assert len(list(cache.iterdir())) == 1


def test_the_other_form_of_a_bundle_comes_from_the_same_entry(model: Path, tmp_path: Path) -> None:
    folder = build_result(model, device="generic-x86", output=tmp_path / "folder")
    archive = build_result(model, device="generic-x86", output=tmp_path / "archive.edgekit")
    plain = build(model, device="generic-x86", output=tmp_path / "plain.edgekit", cache=False)
    assert archive.cached
    assert archive.bundle.digest == folder.bundle.digest
    assert archive.bundle.path.read_bytes() == plain.path.read_bytes()


def test_no_cache_neither_takes_nor_keeps(model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(model, device="generic-x86", output=tmp_path / "a", cache=False)
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", "0")
    assert not build_result(model, device="generic-x86", output=tmp_path / "b").cached
    assert not cache.exists()
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="EDGEKIT_BUILD_CACHE_BYTES: 'much'; expected a number of bytes"):
        build(model, device="generic-x86", output=tmp_path / "c")


@pytest.mark.parametrize("where", ["in the middle", "at the end", "everything"])
def test_a_damaged_entry_is_built_again(model: Path, tmp_path: Path, cache: Path, where: str) -> None:
    first = build(model, device="generic-x86", output=tmp_path / "first.edgekit")
    (entry,) = cache.iterdir()
    data = bytearray(entry.read_bytes())
    if where == "everything":
        data = bytearray(b"PK\3\4")
    else:
        data[len(data) // 2 if where == "in the middle" else -1] ^= 1
    entry.write_bytes(data)
    again = build_result(model, device="generic-x86", output=tmp_path / "again.edgekit")
    assert not again.cached
    assert again.bundle.path.read_bytes() == first.path.read_bytes()
    assert build_result(model, device="generic-x86", output=tmp_path / "third.edgekit").cached


def test_the_longest_unused_goes_first(model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        build(model, device="generic-x86", name=name, output=tmp_path / name)
    size = sum(entry.stat().st_size for entry in cache.iterdir())
    for age, entry in enumerate(cache.iterdir()):
        os.utime(entry, (1000 + age, 1000 + age))
    assert build_result(model, device="generic-x86", name="a", output=tmp_path / "used").cached  # so b is the older one now
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", str(size + size // 4))
    build(model, device="generic-x86", name="c", output=tmp_path / "c")
    assert len(list(cache.iterdir())) == 2
    assert build_result(model, device="generic-x86", name="a", output=tmp_path / "a2").cached
    assert not build_result(model, device="generic-x86", name="b", output=tmp_path / "b2").cached


def test_one_that_is_larger_than_the_whole_cache_is_not_kept(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_BUILD_CACHE_BYTES", "100")
    build(model, device="generic-x86", output=tmp_path / "a")
    assert list(cache.iterdir()) == []


def test_everything_that_shapes_the_bytes_is_in_the_key(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "samples.npy", np.zeros((1, 8), np.float32))
    profile = tmp_path / "mine.toml"
    source = Path(__file__).parents[2] / "edgekit/device_profiles"
    profile.write_text(next(source.rglob("generic-x86.toml")).read_text())
    keys = [
        key(model),
        key(model, precision="fp16"),
        key(model, shapes={"x": (1, 8)}),
        key(model, name="other"),
        key(model, model_version="2"),
        key(model, calibration=tmp_path / "samples.npy"),
        key(model, "intel-nuc"),
    ]
    np.save(tmp_path / "samples.npy", np.ones((1, 8), np.float32))
    keys.append(key(model, calibration=tmp_path / "samples.npy"))
    changed = onnx.load(model)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 16), np.float32), changed.graph.initializer[0].name))
    onnx.save(changed, model)
    keys.append(key(model))
    monkeypatch.setattr("edgekit.converters._cache.tools_digest", lambda: "other tools")
    keys.append(key(model))
    monkeypatch.setattr("edgekit.converters._cache.code_digest", lambda: "other code")
    keys.append(key(model))
    assert len(set(keys)) == len(keys)
    assert "" not in keys
    assert key(model) == key(model, output=tmp_path / "x", jobs=3, time_limit_s=9.0, isolate=False, progress=print)


def test_external_data_is_in_the_key(model: Path, tmp_path: Path) -> None:
    whole = onnx.load(model)
    onnx.save(whole, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = model_digest(tmp_path / "split.onnx")
    assert before == model_digest(tmp_path / "split.onnx")
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert model_digest(tmp_path / "split.onnx") != before


def test_a_folder_s_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "variables/a").write_bytes(b"1")
    first = model_digest(folder)
    (folder / "variables/a").rename(folder / "variables/b")
    second = model_digest(folder)
    (folder / "variables/b").write_bytes(b"2")
    assert len({first, second, model_digest(folder)}) == 3


def test_what_has_no_content_to_speak_of_is_not_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownContentError):
        canonical(object())
    assert canonical({"b": (1, 2.5), "a": None}) == {"mapping": [["a", None], ["b", [1, 2.5]]]}
    assert canonical(np.arange(3)) != canonical(np.arange(3.0))
    module = types.ModuleType("emitter_without_a_file")
    module.EMITTERS = {"onnxruntime": OnnxRuntimeEmitter()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(EMITTER_MODULES, "onnxruntime", module.__name__)
    assert key(model) == ""


@pytest.mark.slow
def test_several_processes_worth_of_builds_at_once_leave_one_good_entry(model: Path, tmp_path: Path, cache: Path) -> None:
    def one(index: int) -> str:
        return build(model, device="generic-x86", output=tmp_path / f"{index}.edgekit").digest

    with ThreadPoolExecutor(4) as threads:
        digests = set(threads.map(one, range(6)))
    assert len(digests) == 1
    (entry,) = cache.iterdir()
    assert {Bundle.open(entry).digest} == digests
    assert cache.parent == cache_directory()


def test_a_hit_is_as_the_build_was_for_every_reader(model: Path, tmp_path: Path) -> None:
    first = build(model, device="intel-nuc", output=tmp_path / "a")
    second = build(model, device="intel-nuc", output=tmp_path / "b")
    assert msgspec.json.encode(first.manifest) == msgspec.json.encode(second.manifest)
    assert first.report() == second.report()


def test_a_folder_that_is_no_model_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's home directory, say: its digest would take as long as its bytes."""
    read: list[Path] = []
    monkeypatch.setattr("edgekit.converters._digest.content_digest", lambda path: read.append(path) or "")
    (tmp_path / "home" / "pictures").mkdir(parents=True)
    (tmp_path / "home" / "pictures" / "large").write_bytes(bytes(1000))
    with pytest.raises(ModelError, match=r"home: is a directory without a saved_model\.pb"):
        key(tmp_path / "home")
    assert not read
