"""Reading and writing bundles: a directory, or the same as one stored zip file (``.edgekit``).

Layout: ``bundle.json`` (the manifest), artifact files, ``golden.npz`` (sample inputs with the source model's float32
outputs), ``report.json`` (how the artifact was made), ``bundle.sha256`` (the manifest's digest, as ``sha256sum -c`` reads it). The bundle's
digest is the SHA-256 of ``bundle.json``, which holds the digest of every other file. An archive's zip comment is the SHA-256 of all
bytes before it, so that no byte of it can change unseen either.

What only writing or unpacking needs is imported there, and paths are text until somebody asks for a `Path`: a device that starts a model waits for none of it.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit._directories import cache_directory
from edgekit._storage_errors import storage_errors
from edgekit.bundle._digest import copy_file, sha256_of, sha256_of_file
from edgekit.bundle._manifest import FORMAT, Artifact, FileEntry, Manifest
from edgekit.bundle._processing import LABELS
from edgekit.bundle._signature import Signature
from edgekit.bundle._storage import atomic_directory, write_file
from edgekit.errors import BundleError, IntegrityError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ARCHIVE_SUFFIX", "Bundle", "GoldenSample", "check_destination", "pack_bundle", "write_bundle"]

ARCHIVE_SUFFIX = ".edgekit"
MANIFEST = "bundle.json"
GOLDEN = "golden.npz"
REPORT = "report.json"
SEAL = "bundle.sha256"
# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_MANIFEST_DECODER = msgspec.json.Decoder(Manifest)
_COMMENT_BYTES = 64  # a SHA-256 in hex
# What a run of the model does not read: `Bundle.open` may leave these to whoever asks for them.
_NOT_RUN = (GOLDEN, REPORT)
# A zip entry needs a date; the format's epoch keeps equal bundles equal byte for byte.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


class GoldenSample(msgspec.Struct, frozen=True):
    """One sample: inputs, and the outputs of the source model in float32 through ONNX Runtime."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def _encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


class Bundle:
    """A bundle on disk whose digests were checked, before anything of a file was used.

    Attributes:
        manifest: the parsed ``bundle.json``.
        digest: SHA-256 of ``bundle.json``, hex.
    """

    def __init__(self, path: str | os.PathLike[str], directory: str | os.PathLike[str], manifest: Manifest, digest: str) -> None:
        self._path = os.fspath(path)
        self._directory = os.fspath(directory)
        self.manifest = manifest
        self.digest = digest
        self._unchecked: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, to_run: bool = False, to_copy: bool = False) -> Bundle:
        """Open a bundle directory or archive and check every file against its digest.

        Args:
            path: a directory or an ``.edgekit`` file.
            to_run: leave the samples and the report to the call that reads them; they may be many times the model's size.
            to_copy: leave every file to `copy`, which reads it anyway, or `check`; until then, only its manifest may be used.

        Raises:
            BundleError: there is no bundle at ``path`` or its manifest cannot be read.
            IntegrityError: a file is missing or was changed.
        """
        source = os.fspath(path)
        with storage_errors(source):
            if os.path.isdir(source):
                directory = source
            elif os.path.isfile(source):
                directory = _unpack(source)
            else:
                raise BundleError(source, "no such file or directory", "a bundle made by edgekit build", "check the path")
            raw = _read_manifest(source, directory)
            digest = sha256_of(raw)
            _check_seal(source, directory, digest)
            bundle = cls(source, directory, _decode_manifest(source, raw), digest)
            files = frozenset(bundle.manifest.files)
            bundle._unchecked = files
            bundle.check(files.intersection(_NOT_RUN) if to_run else files if to_copy else frozenset())
        return bundle

    def check(self, late: frozenset[str] = frozenset()) -> None:
        """Compare the files that were not compared yet with their digests; ``late`` are left out.

        Raises:
            IntegrityError: a file is missing or was changed.
        """
        with storage_errors(self._path):
            for name in self.manifest.files:
                if name in self._unchecked and name not in late:
                    self._check_file(name)
        self._unchecked &= late

    def copy(self, destination: Path) -> None:
        """Write it to a new folder. Every byte is compared with its digest on the way.

        Raises:
            IntegrityError: a file is missing or was changed. OSError: one cannot be read or written.
        """
        for name in self.manifest.files:
            path = self._present(name)
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._compare(name, *copy_file(path, target))
        raw = _read_manifest(self._path, self._directory)
        _check_seal(self._path, self._directory, self.digest)
        if sha256_of(raw) != self.digest:
            raise self._changed(MANIFEST, f"SHA-256 {self.digest[:16]}…")
        (destination / MANIFEST).write_bytes(raw)
        (destination / SEAL).write_bytes(_seal(self.digest))

    @cached_property
    def path(self) -> Path:
        """What was opened (directory or ``.edgekit`` file)."""
        from pathlib import Path

        return Path(self._path)

    @cached_property
    def directory(self) -> Path:
        """Where its files can be read; an archive is unpacked once into the cache, by digest."""
        from pathlib import Path

        return Path(self._directory)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, as in the source model."""
        return self.manifest.signature

    def artifact_path(self, artifact: Artifact) -> Path:
        """Absolute path of an artifact's file or directory."""
        from pathlib import Path

        return Path(self.artifact_file(artifact))

    def artifact_file(self, artifact: Artifact) -> str:
        """`artifact_path` as text."""
        return os.path.realpath(os.path.join(self._directory, artifact.path))

    def golden(self) -> list[GoldenSample]:
        """The golden samples, in the order they were written. Raises `IntegrityError` when their check was left to this call and fails."""
        samples: dict[int, GoldenSample] = {}
        for side, index, name, array in self._golden_arrays("in.", "out."):
            sample = samples.setdefault(index, GoldenSample({}, {}))
            (sample.inputs if side == "in" else sample.outputs)[name] = array
        return [samples[index] for index in sorted(samples)]

    def first_inputs(self) -> dict[str, np.ndarray]:
        """The inputs of the first golden sample, empty where there is none: what warms a model, without the rest of the samples. Raises as `golden`."""
        return {name: array for _, _, name, array in self._golden_arrays("in.0.")}

    def _golden_arrays(self, *prefixes: str) -> Iterator[tuple[str, int, str, np.ndarray]]:
        """Side, sample and name of each array whose key begins with one of ``prefixes``; only those are read."""
        self._check_late(GOLDEN)
        with np.load(os.path.join(self._directory, GOLDEN), allow_pickle=False) as archive:
            for key in archive.files:
                if key.startswith(prefixes):
                    side, index, name = key.split(".", 2)
                    yield side, int(index), name, archive[key]

    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their numbers; empty when the bundle has none."""
        if not self.signature.labels:
            return ()
        return tuple((self.directory / LABELS).read_text(encoding="utf-8").splitlines())

    def class_labels(self) -> tuple[str, ...]:
        """The labels, when the values of an output are the classes' scores: none behind processing that answers with class numbers."""
        return () if self.signature.postprocess else self.labels()

    def report(self) -> dict[str, Any]:
        """``report.json``: passes, precision, verification details. Raises `IntegrityError` as `golden` does."""
        self._check_late(REPORT)
        report: dict[str, Any] = msgspec.json.decode((self.directory / REPORT).read_bytes())
        return report

    def _check_late(self, name: str) -> None:
        if name in self._unchecked:
            self.check(self._unchecked - {name})

    def _check_file(self, name: str) -> None:
        path = self._present(name)
        size = os.path.getsize(path)
        self._compare(name, size, sha256_of_file(path) if size == self.manifest.files[name].bytes else "")

    def _present(self, name: str) -> str:
        path = os.path.join(self._directory, _safe(self._path, name))
        if not os.path.isfile(path):
            raise IntegrityError(f"{self._path} ({name})", "the file is missing", "", "build or copy the bundle again")
        return path

    def _compare(self, name: str, size: int, sha256: str) -> None:
        entry = self.manifest.files[name]
        if (size, sha256) != (entry.bytes, entry.sha256):
            raise self._changed(name, f"SHA-256 {entry.sha256[:16]}… of {entry.bytes} bytes")

    def _changed(self, name: str, expected: str) -> IntegrityError:
        found = "its content is not what was built"
        return IntegrityError(f"{self._path} ({name})", found, expected, "build or copy the bundle again")


def _safe(source: str, name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise BundleError(source, f"the file name {name!r} leaves the bundle", "relative names", "do not use it")
    return name


def _read_manifest(source: str, directory: str) -> bytes:
    path = os.path.join(directory, MANIFEST)
    if not os.path.isfile(path):
        raise BundleError(source, f"no {MANIFEST} in it", "a bundle made by edgekit build", "check the path")
    return _read(path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _seal(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()


def _check_seal(source: str, directory: str, digest: str) -> None:
    path = os.path.join(directory, SEAL)
    if not os.path.isfile(path) or _read(path) != _seal(digest):
        raise IntegrityError(
            f"{source} ({MANIFEST})",
            f"its digest is not the one in {SEAL}" if os.path.isfile(path) else f"the file {SEAL} is missing",
            "the files as they were built",
            "build or copy the bundle again",
        )


def _decode_manifest(source: str, raw: bytes) -> Manifest:
    try:
        manifest = _MANIFEST_DECODER.decode(raw)
    except msgspec.DecodeError as exc:
        raise BundleError(f"{source} ({MANIFEST})", f"cannot be read: {exc}", FORMAT, "build the bundle again") from exc
    if manifest.format != FORMAT:
        raise BundleError(f"{source} ({MANIFEST})", f"format {manifest.format!r}", FORMAT, "upgrade edgekit")
    return manifest


def _unpack(source: str) -> str:
    """Unpack an archive once; its own digest names the folder, so a changed archive is another one."""
    target = cache_directory() / "bundles" / sha256_of_file(source)[:32]
    if target.is_dir():
        return str(target)
    import zipfile
    import zlib

    _check_archive(source)
    try:
        with zipfile.ZipFile(source) as archive, atomic_directory(target) as staging:
            for info in archive.infolist():
                destination = staging / _safe(source, info.filename)
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.write_bytes(archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as exc:
        raise _damaged(source, str(exc)) from exc
    return str(target)


def _check_archive(source: str) -> None:
    """Compare an archive with the digest in its zip comment.

    Raises:
        BundleError: no zip file at all. IntegrityError: a byte is not what was built.
    """
    data = _read(source)
    if not data.startswith(b"PK"):
        raise BundleError(source, "not a bundle archive", f"a {ARCHIVE_SUFFIX} file made by edgekit build", "check the path")
    if sha256_of(data[:-_COMMENT_BYTES]).encode() != data[-_COMMENT_BYTES:]:
        raise _damaged(source, "its content is not what its digest says")


def _damaged(source: str, found: str) -> IntegrityError:
    return IntegrityError(source, f"damaged ({found})", f"a {ARCHIVE_SUFFIX} file as it was built", "build or copy the bundle again")


def encode_golden(samples: Sequence[GoldenSample]) -> bytes:
    """``golden.npz`` as bytes: ``in.<index>.<name>`` and ``out.<index>.<name>``; equal samples give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    for index, sample in enumerate(samples):
        arrays |= {f"in.{index}.{name}": array for name, array in sample.inputs.items()}
        arrays |= {f"out.{index}.{name}": array for name, array in sample.outputs.items()}
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH), member.getvalue())
    return buffer.getvalue()


def write_bundle(
    destination: str | os.PathLike[str],
    manifest: Manifest,
    artifacts: Path,
    golden: Sequence[GoldenSample],
    report: Mapping[str, Any],
) -> Bundle:
    """Write a bundle, whole or not at all, and open it again.

    Args:
        destination: a directory, or a file that ends in ``.edgekit``.
        manifest: complete but for ``files``, which is computed here.
        artifacts: a directory whose files go into the bundle under their relative names.
        golden: sample inputs and reference outputs.
        report: JSON-able; must not hold times or host names, so that equal builds are equal bytes.

    Raises:
        UsageError: ``destination`` exists and is not a bundle.
        StorageError: it cannot be written.
    """
    import shutil
    from pathlib import Path

    target = Path(destination)
    _check_destination(target)
    with storage_errors(target):
        files: dict[str, bytes | Path] = {
            name: path
            for path in sorted(artifacts.rglob("*"))
            if path.is_file() and (name := path.relative_to(artifacts).as_posix()) not in (MANIFEST, SEAL)
        }
        files[GOLDEN] = encode_golden(golden)
        files[REPORT] = msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=2) + b"\n"
        entries = {name: _entry(content) for name, content in sorted(files.items())}
        raw = _encode_manifest(msgspec.structs.replace(manifest, files=entries))
        files |= {MANIFEST: raw, SEAL: _seal(sha256_of(raw))}
        if target.suffix == ARCHIVE_SUFFIX:
            _write_archive(target, files)
        else:
            with atomic_directory(target) as staging:
                for name, content in files.items():
                    path = staging / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if isinstance(content, bytes):
                        path.write_bytes(content)
                    else:
                        shutil.copyfile(content, path)  # weights may be larger than memory
    return Bundle.open(target)


def pack_bundle(bundle: Bundle, target: Path) -> None:
    """Write an open bundle as one archive, the same bytes that `write_bundle` gives for it.

    Raises:
        StorageError: a file of the bundle cannot be read, or the archive not be written.
    """
    with storage_errors(target):
        _write_archive(target, {name: bundle.directory / name for name in (*bundle.manifest.files, MANIFEST, SEAL)})


def check_destination(destination: str | os.PathLike[str]) -> None:
    """Refuse, before long work, a place where `write_bundle` could not write.

    Raises:
        UsageError: it exists and is not a bundle.
        StorageError: its folder, or the nearest that exists above it, cannot be written.
    """
    import tempfile
    from pathlib import Path

    target = Path(destination)
    _check_destination(target)
    with storage_errors(target):
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        with tempfile.TemporaryFile(dir=parent):
            pass


def _check_destination(target: Path) -> None:
    if target.suffix == ARCHIVE_SUFFIX:
        if target.is_dir():
            raise UsageError(str(target), "is a directory", f"a file that ends in {ARCHIVE_SUFFIX}", "choose another path")
        return
    if target.is_file():
        raise UsageError(str(target), "is a file", f"a directory, or a name that ends in {ARCHIVE_SUFFIX}", "choose another path")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UsageError(str(target), "is a directory that holds other files", "a new or empty directory", "choose another path")


def _entry(content: bytes | Path) -> FileEntry:
    if isinstance(content, bytes):
        return FileEntry(len(content), sha256_of(content))
    return FileEntry(content.stat().st_size, sha256_of_file(content))


def _write_archive(target: Path, files: Mapping[str, bytes | Path]) -> None:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            content = files[name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), data)
        archive.comment = bytes(_COMMENT_BYTES)  # a place for the digest
    body = buffer.getvalue()[:-_COMMENT_BYTES]
    write_file(target, body + sha256_of(body).encode())
