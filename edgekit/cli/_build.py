"""``edgekit build | inspect | verify | finalize | run | bench``: from a model to numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer

from edgekit.bundle import Bundle, OutputMetrics
from edgekit.cli._engine import Accelerator, EngineCache, Hint, Threads, engine_options
from edgekit.cli._output import say, show, size, table
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.converters import BuildResult

__all__ = ["register"]

BundlePath = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle directory or .edgekit file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("build", short_help="Turn a model into verified bundles.")(build)
    app.command("inspect", short_help="Show what is inside a bundle.")(inspect)
    app.command("verify", short_help="Check digests, and run the golden samples here.")(verify)
    app.command("finalize", short_help="On the device: build the engine, prove it, keep it.")(finalize)
    app.command("run")(run)
    app.command("bench", short_help="Measure latency, throughput and memory.")(bench)


def parse_shapes(values: list[str]) -> dict[str, list[int]]:
    """``["x=1,3,48,320"]`` to ``{"x": [1, 3, 48, 320]}``.

    Raises:
        UsageError: not of that form.
    """
    shapes = {}
    for value in values:
        name, equals, dims = value.rpartition("=")
        parts = dims.split(",")
        if not equals or not name or not all(part.strip() == "-1" or (part.strip().isdigit() and int(part) > 0) for part in parts):
            expected = "NAME=SIZE,SIZE,… with positive whole numbers, or -1 to leave a dimension open"
            raise UsageError("--shape", repr(value), expected, "for example --shape x=1,3,224,224")
        shapes[name] = [int(part) for part in parts]
    return shapes


def _metric_rows(metrics: dict[str, OutputMetrics]) -> list[str]:
    rows = [
        (name, f"{m.max_abs:.2e}", f"{m.max_rel:.2e}", f"{m.cosine:.7f}", "-" if m.top1_agreement is None else f"{m.top1_agreement:.1%}")
        for name, m in metrics.items()
    ]
    return [f"  {line}" for line in table(rows, ("output", "max abs", "max rel", "cosine", "top-1"))] if rows else []


def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX, .ort, .keras or .pt2 file, or a SavedModel directory.")],
    device: Annotated[list[str], typer.Option("--device", metavar="ID", help="Device profile; repeat to build several.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR_OR_FILE", help="Directory, or a name ending in .edgekit.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or int8; auto takes what the device runs fast.")] = "auto",
    calibration: Annotated[str, typer.Option(metavar="PATH", help="Real samples: images, .npy, .npz or Parquet; int8 needs them.")] = "",
    calibration_method: Annotated[
        str, typer.Option(metavar="NAME", help="How int8 ranges are chosen: auto, minmax, percentile, entropy or error.")
    ] = "auto",
    compress: Annotated[str, typer.Option(metavar="HOW", help="Smaller weights: prune=0.5, 2:4 or palette=6. See docs/precision.md.")] = "",
    min_agreement: Annotated[
        float | None, typer.Option(metavar="A", help="What int8 must keep of the float model's answers; 0.99 by default.")
    ] = None,
    shape: Annotated[
        list[str], typer.Option(metavar="NAME=1,3,224,224", help="Fix an input's shape, -1 leaves a dimension open; repeat per input.")
    ] = [],  # noqa: B006
    signature: Annotated[str, typer.Option(metavar="NAME", help="Which signature of a SavedModel; serving_default by default.")] = "",
    name: Annotated[str, typer.Option(metavar="N", help="Model name; the file's stem by default.")] = "",
    model_version: Annotated[str, typer.Option("--model-version", metavar="V", help="Model version.")] = "1",
    image_input: Annotated[
        list[str],
        typer.Option(metavar="NAME=uint8,HWC,…", help="Take uint8 pictures; resize and normalise inside. See docs/processing.md."),
    ] = [],  # noqa: B006
    classes: Annotated[str, typer.Option(metavar="FILE", help="Class names, one a line; they travel in the bundle.")] = "",
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="The best K classes in place of all scores; 5 at most with --classes.")
    ] = None,
    class_scores: Annotated[
        str, typer.Option(metavar="[OUTPUT=]ACTIVATION", help="Where class scores are; auto, none, softmax or sigmoid before ranking.")
    ] = "",
    nms: Annotated[
        str, typer.Option(metavar="iou=…,score=…,max=…", help="Suppress a detector's boxes inside. See docs/processing.md.")
    ] = "",
    state: Annotated[
        list[str],
        typer.Option(metavar="IN=OUT[:1,64]", help="An output that is the input of the next request; repeat. See docs/streaming.md."),
    ] = [],  # noqa: B006
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Devices at the same time; one for each core by default.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Take what was built before from the same input and options.")] = True,
    reproducer: Annotated[
        str, typer.Option(metavar="DIR", help="Where a failed build leaves its smallest failing part; beside the output by default.")
    ] = "",
    no_reproducer: Annotated[bool, typer.Option("--no-reproducer", help="Leave nothing when a build fails.")] = False,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For a toolchain's work on one artifact; 1800 by default.")
    ] = None,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="For a toolchain's process, such as 8GB; three quarters of the memory by default.")
    ] = "",
    isolate: Annotated[
        bool, typer.Option("--isolate/--in-process", help="Run toolchains in processes of their own, or in this one without limits.")
    ] = True,
) -> None:
    """Turn a model into a verified bundle for one device, or several."""
    from edgekit.converters import build_many

    results = build_many(
        model,
        devices=device,
        precision=precision,
        calibration=calibration or None,
        calibration_method=calibration_method,
        compress=compress or None,
        min_agreement=min_agreement,
        shapes=parse_shapes(shape),
        output=output or None,
        signature=signature or None,
        name=name or None,
        model_version=model_version,
        image_inputs=image_input,
        classes=classes or None,
        top_k=top_k,
        class_scores=class_scores or None,
        nms=nms or None,
        states=state or None,
        progress=_timed(),
        jobs=jobs,
        cache=cache,
        reproducer=False if no_reproducer else reproducer or None,
        time_limit_s=time_limit,
        memory_limit_bytes=parse_size(memory_limit) if memory_limit else None,
        isolate=isolate,
    )
    _show_builds(results)


def parse_size(text: str, flag: str = "--memory-limit") -> int:
    """Bytes of ``8GB`` (decimal), ``8GiB`` (binary) or a plain number; ``flag`` is what the error names.

    Raises:
        UsageError: not of that form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text)
    count = int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " ")) if found else 0
    if not count:
        raise UsageError(flag, repr(text[:96]), "a size such as 8GB, 7.5GiB or a number of bytes")
    return count


def _timed() -> Callable[[str], None]:
    """Progress lines that begin with the seconds since the command began."""
    started_s = time.monotonic()
    return lambda line: say(f"{time.monotonic() - started_s:6.1f} s  {line}")


def _show_builds(results: Sequence[BuildResult]) -> None:
    documents, lines = [], []
    for result in results:
        manifest = result.bundle.manifest
        proof = manifest.verification
        documents.append(
            {
                "bundle": str(result.bundle.path),
                "device": manifest.device,
                "engine": manifest.artifact.engine,
                "precision": manifest.precision,
                "verified": proof.verified,
                "metrics": msgspec.to_builtins(proof.metrics),
                "seconds": round(result.seconds, 3),
                "cached": result.cached,
                "bytes": result.bytes,
                "notes": proof.notes,
                "left_to_device": proof.left_to_device,
            }
        )
        lines += [
            f"{result.bundle.path}: {manifest.device}, {manifest.artifact.engine} {manifest.precision}, {size(result.bytes)}, {result.seconds:.1f} s"
            + (" (from the cache of builds)" if result.cached else ""),
            f"  verified: {proof.verified} by {proof.engine}, {proof.samples} {proof.sample_source} samples",
            *_metric_rows(proof.metrics),
            *(f"  note: {note}" for note in proof.notes),
            *(f"  left to the device: {rest}" for rest in proof.left_to_device),
        ]
    show(documents[0] if len(documents) == 1 else documents, lines)


def _processing_rows(bundle: Bundle) -> list[str]:
    """What the artifact does before and after the model, and the first class names."""
    signature, labels = bundle.signature, bundle.labels()
    rows = [f"  pictures {image.name}: uint8 {image.layout}, {_changed(image)}".rstrip(", ") for image in signature.images]
    if signature.postprocess is not None:
        rows.append(f"  after the model: {_changed(signature.postprocess)}")
    if labels:
        rows.append(f"  classes: {len(labels)} ({', '.join(labels[:5])}{', …' if len(labels) > 5 else ''})")
    return rows


def _changed(steps: msgspec.Struct) -> str:
    """Fields of a struct that are not their defaults."""
    facts = msgspec.to_builtins(steps)
    plain = {field.name: field.default for field in msgspec.structs.fields(steps) if not field.required}
    return ", ".join(f"{key}={value}" for key, value in facts.items() if key != "name" and plain.get(key, ...) != getattr(steps, key, None))


def inspect(bundle: BundlePath) -> None:
    """Show what is inside a bundle: signature, precision, verification, sizes, sources."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    proof = manifest.verification
    total = sum(entry.bytes for entry in manifest.files.values())
    fallback = f", fallback {manifest.fallback.engine}" if manifest.fallback else ""
    lines = [
        f"{manifest.name} version {manifest.version} for {manifest.device}: {manifest.artifact.engine} {manifest.precision}{fallback}",
        *(f"  input  {spec.name}: {spec.describe()}" for spec in manifest.signature.inputs),
        *(f"  output {spec.name}: {spec.describe()}" for spec in manifest.signature.outputs),
        *(
            f"  state  {pair.input} from {pair.output}: begins as zeros [{','.join(map(str, pair.shape))}]"
            for pair in manifest.signature.states
        ),
        *_processing_rows(opened),
        f"  fixed: {', '.join(f'{key}={value}' for key, value in manifest.fixed.items()) or 'nothing'}",
        f"  verified: {proof.verified} by {proof.engine}, {proof.samples} {proof.sample_source} samples",
        *_metric_rows(proof.metrics),
        *(f"  note: {note}" for note in proof.notes),
        *(f"  left to the device: {rest}" for rest in proof.left_to_device),
        f"  source: {manifest.source.filename} ({manifest.source.format}, opset {manifest.source.opset}), SHA-256 {manifest.source.sha256[:16]}…",
        "  tools: " + ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items())),
        f"  digest: {opened.digest}",
        f"  files: {size(total)}",
        *(f"    {size(entry.bytes):>9}  {file}" for file, entry in sorted(manifest.files.items())),
    ]
    show({"path": str(opened.path), "digest": opened.digest, "bytes": total, **msgspec.to_builtins(manifest)}, lines)


def verify(bundle: BundlePath, accelerator: Accelerator = "", engine_cache: EngineCache = "") -> None:
    """Check all digests and run the golden samples through the engine here."""
    from edgekit.runtime import verify_bundle

    result = verify_bundle(bundle, engine_options(accelerator=accelerator, cache_dir=engine_cache))
    engine = " ".join(f"{key}={value}" for key, value in result.engine.items())
    lines = [
        f"{bundle}: {'ok' if result.ok else 'FAILED'}, {result.samples} golden samples through the {result.artifact} artifact ({engine})",
        *([f"  the first artifact did not run here: {result.fallback_reason}"] if result.fallback_reason else []),
        *_metric_rows(result.metrics),
        *(f"  miss: {miss}" for miss in result.misses),
    ]
    show(result, lines)
    if not result.ok:
        raise typer.Exit(1)


def finalize(
    bundle: BundlePath,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where built engines are kept; EdgeKit's cache by default.")] = "",
) -> None:
    """On the device: build the engine, cache it, prove it, write the receipt."""
    from edgekit.runtime import finalize as finalize_bundle
    from edgekit.runtime import receipts_directory

    receipt = finalize_bundle(bundle, cache_dir=Path(cache_dir) if cache_dir else None)
    document = msgspec.to_builtins(receipt)
    lines = [f"{bundle}: finalized; its receipt is in {receipts_directory()}"]
    lines += [f"  {key}: {value}" for key, value in document.items() if key not in ("probe", "metrics")]
    show(document, [*lines, *_metric_rows(receipt.metrics)])


def run(
    bundle: BundlePath,
    inputs: Annotated[list[str], typer.Option("--input", metavar="NAME=FILE.npy", help="One per input.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT.npz", help="Where the outputs go.")] = "",
    threads: Threads = 0,
    accelerator: Accelerator = "",
    engine_cache: EngineCache = "",
) -> None:
    """Answer one request from .npy files."""
    from edgekit._storage_errors import storage_errors
    from edgekit.bundle import write_file
    from edgekit.runtime import load

    arrays = {}
    for value in inputs:
        name, equals, file = value.partition("=")
        if not equals or not name or not file:
            raise UsageError("--input", repr(value), "NAME=FILE.npy")
        with storage_errors(file):
            try:
                arrays[name] = np.load(file, allow_pickle=False)
            except ValueError as exc:
                # NumPy's own words tell to load it unsafely.
                raise UsageError(file, "not a .npy file, or one with Python objects", "an array saved by numpy.save") from exc
    options = engine_options(threads, accelerator, cache_dir=engine_cache)
    with load(bundle, **msgspec.structs.asdict(options)) as session:
        outputs = session.run(arrays)
    if output:
        import io

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **outputs)
        write_file(Path(output), buffer.getvalue())
    document = {
        key: {"dtype": array.dtype.name, "shape": array.shape, "min": array.min(), "max": array.max()}
        if array.size and array.dtype.kind in "fiu"
        else {"dtype": array.dtype.name, "shape": array.shape}
        for key, array in outputs.items()
    }
    document = {key: {k: float(v) if isinstance(v, np.generic) else v for k, v in facts.items()} for key, facts in document.items()}
    lines = [f"{key}: {', '.join(_told(name, fact) for name, fact in facts.items())}" for key, facts in document.items()]
    show({"outputs": document, "file": output or None}, [*lines, *([f"written: {output}"] if output else [])])


def _told(name: str, fact: object) -> str:
    """``float32``, ``[1,10]``, ``min 0.25``: what `run` tells of an output."""
    if isinstance(fact, tuple):
        return f"[{','.join(map(str, fact))}]"
    return f"{name} {fact:.6g}" if isinstance(fact, float) else str(fact)


def bench(
    bundle: BundlePath,
    seconds: Annotated[float, typer.Option(metavar="S", help="Seconds for each of the two contenders.")] = 5.0,
    concurrency: Annotated[int, typer.Option(metavar="N", help="Requests in flight.")] = 1,
    threads: Threads = 0,
    accelerator: Accelerator = "",
    hint: Hint = "latency",
    engine_cache: EngineCache = "",
) -> None:
    """Measure latency, throughput and memory, beside the bare engine in the same run."""
    from edgekit.runtime import bench as bench_bundle

    options = engine_options(threads, accelerator, hint, engine_cache)
    result = bench_bundle(bundle, seconds=seconds, concurrency=concurrency, options=options)
    rows = [
        (label, f"{t.p50_ms:.3f}", f"{t.p95_ms:.3f}", f"{t.p99_ms:.3f}", f"{t.throughput_per_s:.0f}", t.requests)
        for label, t in (("Session.run", result), ("bare engine", result.bare_engine))
    ]
    engine = " ".join(f"{key}={value}" for key, value in result.engine.items())
    lines = [f"{bundle}: {engine}, {concurrency} in flight, {seconds:g} s each, {size(result.rss_bytes)} resident"]
    show(result, [*lines, *table(rows, ("", "p50 ms", "p95 ms", "p99 ms", "per s", "requests"))])
