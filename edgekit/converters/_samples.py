"""Sample inputs for a proof: the user's own, or seeded random ones; and what the source model answers to them.

``--calibration PATH`` is a file or a folder (read without its sub-folders, in the order of names) of one kind:

- ``.npz``: one sample a file, an array for every input by name;
- ``.npy``: one sample a file, for models with one input;
- ``.parquet``: one sample a row, a column for every input (`edgekit.converters._parquet`);
- pictures (``.png``, ``.jpg``, ``.jpeg``, ``.bmp``, ``.webp``): for models with one float input [N,C,H,W] and C of 3 (RGB) or 1 (grey);
  resized to W x H (bilinear) and scaled to [-1,1], ``(x / 255 - 0.5) / 0.5``. Another preprocessing: write ``.npy`` files, or put it into the
  model with ``--image-input``: then pictures go in as they are, at the input's size or, where that is open, at their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs

from edgekit._storage_errors import storage_errors
from edgekit.bundle import GoldenSample, Signature, TensorSpec
from edgekit.converters._open_sizes import sized
from edgekit.converters._parquet import SUFFIX, read_parquet
from edgekit.converters.processing import image_of, is_open, read_picture, sample_notes, sample_shape
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import EdgeKitError, EnvironmentMissingError, ModelError, ShapeRequiredError, UsageError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    from edgekit.converters._source import SourceModel

__all__ = [
    "SampleSet",
    "calibration_inputs",
    "golden_samples",
    "range_inputs",
    "reference_run",
    "require_sizes",
    "synthetic_inputs",
    "trial",
]

Inputs = dict[str, np.ndarray]

SYNTHETIC_SAMPLES = 3
MAX_SAMPLES = 8
MAX_GOLDEN_BYTES = 32 * 2**20
"""Golden samples travel in the bundle; beyond this size no more are taken than `SYNTHETIC_SAMPLES`."""

MAX_RANGE_BYTES = 512 * 2**20
"""Samples for value ranges are in memory while they are run, not in the bundle."""

_SEED = 20_261_121
_CLIP = 3.0  # of N(0,1): one value in 370 lies outside, and no sample is off the scale of normalised data
# Exclusive upper ends for integers, tried in this order: bytes, token ids and table indices are all valid below 256 in most models;
# a smaller table refuses an index, then a lower end is tried.
_INTEGER_ENDS = (256, 8, 2, 1)
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class SampleSet:
    """Samples with reference outputs, and where they came from.

    Attributes:
        samples: at least one.
        source: ``calibration`` or ``synthetic``.
        notes: what the user should know about them.
    """

    samples: tuple[GoldenSample, ...]
    source: str
    notes: tuple[str, ...] = ()


def golden_samples(
    source: SourceModel, signature: Signature, calibration: Path | None, sizes: Sequence[Mapping[str, int]] = ()
) -> SampleSet:
    """Samples that fit ``signature``, answered by the original file through ONNX Runtime on one CPU thread in its own float32.

    Args:
        source: the model as the user gave it.
        signature: as normalised: given sizes are numbers; a symbolic first dimension is sampled at 1, and once at 2 where the model can.
        calibration: file or folder of the user's samples; without it they are synthetic.
        sizes: of symbols beside the first dimension, for synthetic samples in turn.

    Raises:
        UsageError: ``calibration`` has no usable sample.
        ShapeRequiredError: a dimension that neither a ``--shape`` nor a calibration array decides.
        ModelError: ONNX Runtime cannot run the source on them.
    """
    run = reference_run(source, signature)
    if calibration is not None:
        given = calibration_inputs(calibration, signature)
        samples = tuple(GoldenSample(inputs, run(inputs)) for inputs in given)
        notes = (f"only {len(samples)} calibration sample(s)",) if len(samples) < SYNTHETIC_SAMPLES else ()
        return SampleSet(samples, "calibration", (*notes, *sample_notes(signature, samples)))
    settings = sizes or ({},)
    require_sizes(sized(signature, settings[0]))
    found = []
    for index in range(SYNTHETIC_SAMPLES):
        batch = 2 if index == 1 else 1
        found.append(_answered(run, sized(signature, settings[index % len(settings)]), index, batch, source.path))
    notes = ("samples are synthetic: give --calibration for numbers on real data",)
    return SampleSet(tuple(found), "synthetic", (*notes, *sample_notes(signature, found)))


def trial(source: SourceModel, signature: Signature) -> Callable[[Signature], bool]:
    """What tells whether the source runs on inputs of given sizes.

    Args:
        source: the model.
        signature: as normalised.
    """
    run = reference_run(source, signature)

    def takes(sizes: Signature) -> bool:
        try:
            _answered(run, sizes, 0, 1, source.path)
        except ModelError:
            return False
        return True

    return takes


def require_sizes(signature: Signature, opened: Sequence[str] = ()) -> None:
    """Refuse inputs with open sizes beside the first dimension: no synthetic sample can be made for them.

    Args:
        signature: with given sizes as numbers.
        opened: symbols that the user leaves open in so many words: sizes are looked for.

    Raises:
        ShapeRequiredError: names the ``--shape`` to give.
    """
    for spec in signature.inputs:
        if not is_open(image_of(signature, spec.name)) and any(isinstance(dim, str) and dim not in opened for dim in spec.shape[1:]):
            sizes = ",".join(str(dim) if isinstance(dim, int) else ("1" if axis == 0 else "?") for axis, dim in enumerate(spec.shape))
            raise ShapeRequiredError(
                f"input {spec.name!r}",
                f"{spec.describe()} has sizes that only you can know",
                "",
                f"give --shape {spec.name}={sizes} with numbers, or -1 to leave them open, or --calibration with arrays of the right size",
            )


def synthetic_inputs(signature: Signature, index: int, batch: int = 1, integer_end: int = _INTEGER_ENDS[0]) -> Inputs:
    """One seeded sample: floats N(0,1) clipped to [-3,3], integers in [0, ``integer_end``), booleans; equal arguments give equal arrays.

    Args:
        signature: a symbolic first dimension becomes ``batch``; no other may be symbolic, but for a picture's that is brought to one size.
        index: number of the sample.
        batch: size of a symbolic first dimension.
        integer_end: exclusive end of integer values; a narrower dtype cuts it.
    """
    inputs: Inputs = {}
    for position, spec in enumerate(signature.inputs):
        rng = np.random.default_rng([_SEED, index, position])
        shape = sample_shape(signature, spec, index, batch)
        inputs[spec.name] = np.asarray(_random(rng, spec, shape, integer_end))  # NumPy makes a scalar of what has no axes
    return inputs


def calibration_inputs(path: Path, signature: Signature) -> list[Inputs]:
    """The user's samples, at most `MAX_SAMPLES`, spread evenly over what there is.

    Raises:
        UsageError: no usable sample; says what was found and what would be usable.
        EnvironmentMissingError: pictures, and Pillow is not installed; Parquet, and pyarrow is not.
    """
    samples = _read(path, signature, MAX_SAMPLES)
    return samples if _bytes(samples) <= MAX_GOLDEN_BYTES else _spread(samples, SYNTHETIC_SAMPLES)


def range_inputs(path: Path, signature: Signature, limit: int) -> list[Inputs]:
    """As `calibration_inputs`, for value ranges: up to ``limit`` samples, fewer where they would take more than `MAX_RANGE_BYTES`."""
    first = _bytes(_read(path, signature, 1))
    return _read(path, signature, max(SYNTHETIC_SAMPLES, min(limit, MAX_RANGE_BYTES // max(first, 1))))


def _bytes(samples: Sequence[Inputs]) -> int:
    """Of all samples, if each were as large as the largest."""
    return max(sum(array.nbytes for array in sample.values()) for sample in samples) * len(samples)


def _read(path: Path, signature: Signature, limit: int) -> list[Inputs]:
    files = _files(path)
    readers = _readers(signature)
    candidates = [file for file in files if file.suffix.lower() in readers]
    suffixes = sorted({file.suffix.lower() or "(no suffix)" for file in files})
    if not candidates:
        found = f"{len(files)} file(s) ({', '.join(suffixes)}), none usable" if files else "no files"
        raise UsageError(f"--calibration {path}", found, _usable(signature), "give such files, or leave the flag out")
    kinds = {readers[file.suffix.lower()] for file in candidates}
    if len(kinds) > 1:
        raise UsageError(f"--calibration {path}", f"files of several kinds ({', '.join(suffixes)})", "one kind", "use a folder for each")
    reader = kinds.pop()
    batch = next((dim for spec in signature.inputs[:1] for dim in spec.shape[:1] if isinstance(dim, int)), 1)
    if reader is _read_image:
        samples = _images(path, candidates, structs.replace(signature, inputs=signature.inputs[:1]), batch, limit)
    elif reader is _read_rows:
        samples = [_checked(path, row, signature) for row in read_parquet(candidates, signature, limit)]
    else:
        samples = [_checked(file, reader(file, signature), signature) for file in _spread(candidates, limit)]
    return samples


# --- the reference -------------------------------------------------------------------------------------------------------------------------


def reference_run(source: SourceModel, signature: Signature) -> Callable[[Inputs], Inputs]:
    """What answers with the source model's numbers, in float32 through ONNX Runtime on one thread; steps put around it run in NumPy.

    Raises:
        EnvironmentMissingError: ONNX Runtime is not installed. ModelError: it cannot load the model, or, later, not run it.
    """
    if source.processing is not None:
        return source.processing.around(reference_run(source.processing.original, source.processing.original.signature))
    model = str(source.path) if source.is_file else source.model
    try:
        # One thread: the order of sums does not depend on the machine's cores.
        session = open_session(model, source.weights, threads=1)
    except EnvironmentMissingError:
        raise
    except Exception as exc:
        raise ModelError(str(source.path), f"ONNX Runtime cannot load it: {one_line(exc)}", "", "check it with onnx.checker") from exc
    names = [spec.name for spec in signature.outputs]

    def run(inputs: Inputs) -> Inputs:
        try:
            return dict(zip(names, session.run(names, inputs), strict=True))
        except Exception as exc:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
            raise ModelError(
                str(source.path), f"ONNX Runtime cannot run it on {shapes}: {one_line(exc)}", "", "give other sizes with --shape"
            ) from exc

    return run


def _answered(run: Callable[[Inputs], Inputs], signature: Signature, index: int, batch: int, path: Path) -> GoldenSample:
    """One synthetic sample that the model takes: the wanted batch before 1, wide integers before narrow ones."""
    integers = any(np.dtype(spec.dtype).kind in "iu" for spec in signature.inputs if spec.dtype not in ("string", "bfloat16"))
    error: EdgeKitError = ModelError(str(path), "no sample was tried")
    for size in dict.fromkeys((batch, 1)):
        for end in _INTEGER_ENDS if integers else _INTEGER_ENDS[:1]:
            inputs = synthetic_inputs(signature, index, size, end)
            try:
                return GoldenSample(inputs, run(inputs))
            except ModelError as exc:
                error = exc
    raise error


def _random(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], integer_end: int) -> np.ndarray:
    if spec.dtype in ("string", "bfloat16"):
        raise ModelError(f"input {spec.name!r}", f"dtype {spec.dtype}", "a numeric dtype", "this version builds numeric inputs only")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0, min(integer_end, int(np.iinfo(dtype).max) + 1), shape).astype(dtype)
    return np.clip(rng.standard_normal(shape), -_CLIP, _CLIP).astype(dtype)


# --- the user's samples --------------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    with storage_errors(path):
        if path.is_dir():
            return sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        if path.is_file():
            return [path]
    raise UsageError(f"--calibration {path}", "no such file or directory", "a folder of samples", "check the path")


def _readers(signature: Signature) -> dict[str, Callable[[Path, Signature], Inputs]]:
    """What reads a file, by suffix, for a model with these inputs."""
    readers: dict[str, Callable[[Path, Signature], Inputs]] = {".npz": _read_npz, SUFFIX: _read_rows}
    if len(signature.inputs) == 1:
        readers[".npy"] = _read_npy
        if _takes_images(signature):
            readers |= dict.fromkeys(_IMAGES, _read_image)
    return readers


def _takes_images(signature: Signature) -> bool:
    spec = signature.inputs[0]
    floats = spec.dtype.startswith("float") and len(spec.shape) == 4 and spec.shape[1] in (1, 3)
    return floats or image_of(signature, spec.name) is not None


def _usable(signature: Signature) -> str:
    kinds = [f".npz files with {', '.join(f'{spec.name} {spec.describe()}' for spec in signature.inputs)}"]
    if len(signature.inputs) == 1:
        kinds.append(f".npy files with {signature.inputs[0].describe()}")
        if _takes_images(signature):
            kinds.append(f"pictures ({' '.join(_IMAGES)})")
    kinds.append(f"{SUFFIX} with a column for every input")
    return " or ".join(kinds)


def _load_array(file: Path) -> Any:
    try:
        with storage_errors(file):
            return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as exc:  # what a damaged header or archive raises
        raise UsageError(str(file), f"cannot be read: {one_line(exc)}", "an array as numpy.save writes it", "write it again") from exc


def _read_npy(file: Path, signature: Signature) -> Inputs:
    return {signature.inputs[0].name: np.asarray(_load_array(file))}


def _read_rows(file: Path, signature: Signature) -> Inputs:
    """The first row of a Parquet file; `calibration_inputs` reads all of them at once."""
    return read_parquet([file], signature, 1)[0]


def _read_npz(file: Path, signature: Signature) -> Inputs:
    archive = _load_array(file)
    if not hasattr(archive, "files"):
        raise UsageError(str(file), "holds one unnamed array", _usable(signature), "write it with numpy.savez")
    with archive:
        missing = [spec.name for spec in signature.inputs if spec.name not in archive.files]
        if missing:
            raise UsageError(
                str(file), f"no array {', '.join(missing)} (it has {', '.join(archive.files) or 'none'})", "every input by name"
            )
        return {spec.name: archive[spec.name] for spec in signature.inputs}


def _read_image(file: Path, signature: Signature) -> Inputs:
    """One picture as float [1,C,H,W] in [-1,1], H and W those of the signature; as uint8 for an input that the artifact prepares itself."""
    spec = signature.inputs[0]
    if (image := image_of(signature, spec.name)) is not None:
        return {spec.name: read_picture(file, spec, image)}
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("calibration pictures", "pillow", "convert") from exc
    _, channels, height, width = spec.shape
    if not isinstance(height, int) or not isinstance(width, int):
        raise ShapeRequiredError(
            f"input {spec.name!r}",
            f"{spec.describe()} does not say to what size pictures go",
            "",
            f"give --shape {spec.name}=1,{channels},H,W",
        )
    try:
        with Image.open(file) as image:
            resized = image.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError) as exc:
        raise UsageError(str(file), f"not a readable picture: {one_line(exc)}", _usable(signature), "remove or replace it") from exc
    pixels = np.asarray(resized, np.float32).reshape(height, width, -1)
    return {spec.name: ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[np.newaxis].astype(spec.dtype)}


def _images(path: Path, files: Sequence[Path], signature: Signature, batch: int, limit: int) -> list[Inputs]:
    """Pictures, ``batch`` of them to a sample; the first ones are used again where they do not suffice for one."""
    spec = signature.inputs[0]
    count = max(min(limit, len(files) // batch), 1)
    chosen = _spread(files, count * batch)
    pictures = [_read_image(file, signature)[spec.name] for file in chosen]
    if batch > 1 and len({picture.shape for picture in pictures}) > 1:
        raise UsageError(
            f"--calibration {path}", "pictures of several sizes", f"one size for batches of {batch}", "give --shape with the size"
        )
    rows = [pictures[index % len(pictures)] for index in range(count * batch)]
    return [_checked(path, {spec.name: np.concatenate(rows[start : start + batch])}, signature) for start in range(0, count * batch, batch)]


def _checked(file: Path, inputs: Inputs, signature: Signature) -> Inputs:
    """Arrays in the inputs' dtypes: floats of another width and integers that fit are converted, all else is refused."""
    converted = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        if array.dtype.name != spec.dtype and _convertible(array, np.dtype(spec.dtype)):
            array = array.astype(spec.dtype)
        converted[spec.name] = np.ascontiguousarray(array) if array.ndim else array
    try:
        signature.check(converted)
    except EdgeKitError as exc:
        raise UsageError(f"--calibration {file}", f"{exc.thing}: {exc.found}", exc.expected, "write the file again") from exc
    return converted


def _convertible(array: np.ndarray, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "f":
        return array.dtype.kind == "f"
    if dtype.kind in "iu" and array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return False


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items spread evenly over all, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
