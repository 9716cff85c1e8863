"""Bundles so small that every byte of them can be turned."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import (
    FORMAT,
    Artifact,
    Bundle,
    GoldenSample,
    Manifest,
    Signature,
    Source,
    TensorBinding,
    TensorSpec,
    Verification,
    check_destination,
    write_bundle,
)
from edgekit.errors import BundleError, EdgeKitError, IntegrityError, StorageError, UsageError

CONTENT = b"artifact bytes"
SPEC, BINDING = TensorSpec("x", "float32", ("N", 2)), TensorBinding("x", "x", "float32")


def manifest(**changes: object) -> Manifest:
    fields = {
        "format": FORMAT,
        "name": "tiny",
        "version": "1",
        "device": "generic-x86",
        "precision": "fp32",
        "signature": Signature((SPEC,), (TensorSpec("y", "float32", ("N", 2)),)),
        "artifact": Artifact("onnxruntime", "model.onnx", "fp32", (BINDING,), (TensorBinding("y", "y", "float32"),)),
        "verification": Verification("deferred", "none", 0, "synthetic", {}, {}),
        "source": Source("tiny.onnx", "onnx", "0" * 64, 17),
        "tools": {"edgekit": "0"},
    }
    return Manifest(**(fields | changes))


def golden() -> list[GoldenSample]:
    random = np.random.default_rng(0)
    return [
        GoldenSample({"x": random.standard_normal((n, 2)).astype(np.float32)}, {"y": random.standard_normal((n, 2)).astype(np.float32)})
        for n in (1, 2)
    ]


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(CONTENT)
    (folder / "inner" / "weights.bin").write_bytes(b"w")
    return folder


def write(target: Path, artifacts: Path) -> Bundle:
    return write_bundle(target, manifest(), artifacts, golden(), {"passes": []})


@pytest.fixture(params=["tiny", "tiny.edgekit"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path, artifacts: Path) -> Bundle:
    return write(tmp_path / request.param, artifacts)


def test_what_was_written_is_read(bundle: Bundle) -> None:
    again = Bundle.open(bundle.path)
    assert again.digest == bundle.digest
    assert again.manifest == bundle.manifest
    assert again.artifact_path(again.manifest.artifact).read_bytes() == CONTENT
    assert again.report() == {"passes": []}
    assert set(again.manifest.files) == {"golden.npz", "inner/weights.bin", "model.onnx", "report.json"}
    for want, got in zip(golden(), again.golden(), strict=True):
        np.testing.assert_array_equal(got.inputs["x"], want.inputs["x"])
        np.testing.assert_array_equal(got.outputs["y"], want.outputs["y"])


def test_what_warms_a_model_is_read_without_the_rest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = np.load

    def noting(path: str, **options: bool) -> object:
        archive = load(path, **options)
        give = archive.zip.open
        archive.zip.open = lambda name, *rest: (read.append(name), give(name, *rest))[1]
        return archive

    monkeypatch.setattr(np, "load", noting)
    inputs = bundle.first_inputs()
    assert set(inputs) == {"x"}
    np.testing.assert_array_equal(inputs["x"], golden()[0].inputs["x"])
    assert read == ["in.0.x.npy"]


def test_a_bundle_without_samples_has_nothing_to_warm_a_model(tmp_path: Path, artifacts: Path) -> None:
    assert write_bundle(tmp_path / "none", manifest(), artifacts, [], {}).first_inputs() == {}


def test_both_forms_are_one_bundle_and_equal_builds_equal_bytes(tmp_path: Path, artifacts: Path) -> None:
    folder, archive, again = (write(tmp_path / name, artifacts) for name in ("a", "a.edgekit", "b.edgekit"))
    assert folder.digest == archive.digest
    assert archive.path.read_bytes() == again.path.read_bytes()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in archive.directory.iterdir() if path.is_file()
    }


def test_a_bundle_written_over_itself_keeps_its_bytes(bundle: Bundle) -> None:
    digest = bundle.digest
    again = write_bundle(bundle.path, bundle.manifest, bundle.directory, bundle.golden(), bundle.report())
    assert set(again.manifest.files) == set(bundle.manifest.files)
    assert again.digest == digest


def test_the_seal_is_what_sha256sum_reads(tmp_path: Path, artifacts: Path) -> None:
    bundle = write(tmp_path / "tiny", artifacts)
    assert (bundle.path / "bundle.sha256").read_text() == f"{bundle.digest}  bundle.json\n"


def refused(path: Path) -> EdgeKitError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def flips(size: int, every_byte: bool) -> Iterator[tuple[int, int]]:
    """(place, bit): all three telling bits of every byte, or a seeded choice. Bit 5 turns a letter's case, which hex digits survive."""
    if every_byte:
        yield from itertools.product(range(size), (0, 5, 7))
    else:
        random = np.random.default_rng(size)
        for place in {0, size - 1, *random.integers(0, size, 30)}:
            yield int(place), int(random.integers(0, 8))


def flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


EXTENT = pytest.mark.parametrize("every_byte", [False, pytest.param(True, marks=pytest.mark.slow)])


@EXTENT
def test_any_flipped_bit_of_any_file_of_a_directory_is_found(tmp_path: Path, artifacts: Path, every_byte: bool) -> None:
    bundle = write(tmp_path / "tiny", artifacts)
    for path in sorted(file for file in bundle.path.rglob("*") if file.is_file()):
        for place, bit in flips(path.stat().st_size, every_byte):
            flip(path, place, bit)
            assert isinstance(refused(bundle.path), IntegrityError), (path, place, bit)
            flip(path, place, bit)
    assert Bundle.open(bundle.path).digest == bundle.digest


@EXTENT
def test_any_flipped_bit_of_an_archive_is_found(tmp_path: Path, artifacts: Path, every_byte: bool) -> None:
    path = write(tmp_path / "tiny.edgekit", artifacts).path
    for place, bit in flips(path.stat().st_size, every_byte):
        flip(path, place, bit)
        assert isinstance(refused(path), IntegrityError) or place < 2, place  # the first two bytes say that it is an archive
        flip(path, place, bit)
    assert Bundle.open(path).manifest.name == "tiny"


@pytest.mark.parametrize("kept", [0, 1, 30, 500, -64, -1])
def test_a_truncated_archive_is_refused(tmp_path: Path, artifacts: Path, kept: int) -> None:
    path = write(tmp_path / "tiny.edgekit", artifacts).path
    path.write_bytes(path.read_bytes()[:kept])
    refused(path)


def test_a_zip_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.edgekit"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside", "x")
    refused(path)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "report.json", "bundle.json", "bundle.sha256", "inner/weights.bin"])
def test_a_missing_file_is_named(tmp_path: Path, artifacts: Path, name: str) -> None:
    bundle = write(tmp_path / "tiny", artifacts)
    (bundle.path / name).unlink()
    assert name in str(refused(bundle.path))


def reseal(folder: Path, raw: bytes) -> None:
    (folder / "bundle.json").write_bytes(raw)
    (folder / "bundle.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  bundle.json\n")


MANIFESTS = {
    "another format": (lambda raw: raw.replace(b"edgekit.bundle/1", b"edgekit.bundle/9"), "upgrade edgekit"),
    "not JSON": (lambda _: b"{", "cannot be read"),
    "an unknown key": (lambda raw: raw.replace(b'"device"', b'"devise"'), "devise"),
    "a path that leaves": (lambda raw: raw.replace(b'"inner/weights.bin"', b'"../weights.bin"'), "leaves the bundle"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_right_is_refused(tmp_path: Path, artifacts: Path, case: str) -> None:
    bundle = write(tmp_path / "tiny", artifacts)
    change, expected = MANIFESTS[case]
    reseal(bundle.path, change((bundle.path / "bundle.json").read_bytes()))
    assert expected in str(refused(bundle.path))


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file" in str(refused(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    assert "no bundle.json" in str(refused(tmp_path / "empty"))


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path, artifacts: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dir.edgekit").mkdir()
    for name in ("photos", "file", "dir.edgekit"):
        for attempt in (lambda path: write(path, artifacts), check_destination):
            with pytest.raises(UsageError, match=name):
                attempt(tmp_path / name)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path, artifacts: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for attempt in (lambda path: write(path, artifacts), check_destination):
        with pytest.raises(StorageError, match="not a directory"):
            attempt(tmp_path / "file" / "inner" / "b.edgekit")


def test_a_folder_that_is_not_there_yet_is_made_by_writing_only(tmp_path: Path, artifacts: Path) -> None:
    check_destination(tmp_path / "new" / "deep" / "b.edgekit")
    assert not (tmp_path / "new").exists()
    assert write(tmp_path / "new" / "deep" / "b.edgekit", artifacts).manifest.name == "tiny"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses every write")
def test_an_unwritable_place_is_one_line() -> None:
    with pytest.raises(StorageError) as caught:
        check_destination("/proc/self/bundle.edgekit")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
@pytest.mark.parametrize("name", ["tiny", "tiny.edgekit"])
def test_a_disk_that_takes_no_more_leaves_the_old_bundle(tmp_path: Path, artifacts: Path, name: str) -> None:
    old = write(tmp_path / name, artifacts)
    digest = old.digest
    (artifacts / "model.onnx").write_bytes(bytes(4096))
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from edgekit.bundle import Bundle, write_bundle
        from edgekit.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        old = Bundle.open({str(old.path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            write_bundle(old.path, old.manifest, Path({str(artifacts)!r}), old.golden(), {{}})
        except StorageError as exc:
            print(exc)
            sys.exit(7)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 7, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert Bundle.open(old.path).digest == digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_unpacked_archive_that_rots_in_the_cache_is_found(tmp_path: Path, artifacts: Path) -> None:
    bundle = write(tmp_path / "rot.edgekit", artifacts)
    (bundle.directory / "model.onnx").write_bytes(b"ARTIFACT BYTES")
    assert isinstance(refused(bundle.path), IntegrityError)
    shutil.rmtree(bundle.directory)
    assert Bundle.open(bundle.path).digest == bundle.digest


@pytest.mark.parametrize(
    ("name", "read"), [("golden.npz", Bundle.golden), ("golden.npz", Bundle.first_inputs), ("report.json", Bundle.report)]
)
def test_what_a_run_does_not_read_is_checked_once_it_is_read(tmp_path: Path, artifacts: Path, name: str, read: object) -> None:
    assert callable(read)
    path = write(tmp_path / "tiny", artifacts).path
    assert read(Bundle.open(path, to_run=True))
    flip(path / name, 4, 0)
    assert isinstance(refused(path), IntegrityError)
    opened = Bundle.open(path, to_run=True)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=name):
            read(opened)


def test_the_artifact_is_checked_before_it_may_run(tmp_path: Path, artifacts: Path) -> None:
    path = write(tmp_path / "tiny", artifacts).path
    flip(path / "model.onnx", 3, 0)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        Bundle.open(path, to_run=True)


def test_a_copy_is_the_bundle_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.directory / "stray.txt").write_text("not listed")
    target = tmp_path / "copy"
    target.mkdir()
    Bundle.open(bundle.path, to_copy=True).copy(target)
    again = Bundle.open(target)
    assert (again.digest, again.manifest) == (bundle.digest, bundle.manifest)
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} == {
        *bundle.manifest.files,
        "bundle.json",
        "bundle.sha256",
    }


@pytest.mark.parametrize("name", ["model.onnx", "inner/weights.bin", "golden.npz", "report.json"])
def test_what_was_changed_is_not_copied(tmp_path: Path, artifacts: Path, name: str) -> None:
    path = write(tmp_path / "tiny", artifacts).path
    flip(path / name, 0, 0)
    opened = Bundle.open(path, to_copy=True)
    (tmp_path / "copy").mkdir()
    with pytest.raises(IntegrityError, match=f"{path} .{name}"):
        opened.copy(tmp_path / "copy")
    with pytest.raises(IntegrityError, match=name):
        opened.check()
    (path / name).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        opened.copy(tmp_path / "copy")


def test_a_manifest_that_changes_while_it_is_copied_is_refused(tmp_path: Path, artifacts: Path) -> None:
    path = write(tmp_path / "tiny", artifacts).path
    opened = Bundle.open(path, to_copy=True)
    (path / "bundle.json").write_bytes((path / "bundle.json").read_bytes() + b" ")
    (tmp_path / "copy").mkdir()
    with pytest.raises(IntegrityError, match=r"bundle\.json"):
        opened.copy(tmp_path / "copy")
