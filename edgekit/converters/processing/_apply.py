"""Put the asked-for steps around a source model, and keep what is needed to prove them: the model as it was, and the steps in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from edgekit.bundle import LABELS, Detections, Dim, ImageInput, Signature, TensorSpec, TopClasses
from edgekit.converters.processing import _reference
from edgekit.converters.processing._classes import (
    DEFAULT_K,
    activation_of,
    add_top_classes,
    class_output,
    output_names,
    read_labels,
)
from edgekit.converters.processing._grammar import ClassScores, NmsRequest, parse_class_scores, parse_image_input, parse_nms
from edgekit.converters.processing._image import ModelInput, add_image, model_input
from edgekit.converters.processing._nms import add_detections, detector_head
from edgekit.converters.processing._probe import answers
from edgekit.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._options import BuildOptions
    from edgekit.converters._source import SourceModel

__all__ = ["Processing", "Request", "apply", "requested", "write_labels"]

Inputs = dict[str, np.ndarray]

_MIN_OPSET = 11
"""The first with half-pixel Resize, and TopK and Pad whose parameters are inputs."""
_UPGRADED_OPSET = 13


@dataclass(frozen=True)
class Request:
    """What the user asked for, parsed.

    Attributes:
        images: one per picture input.
        labels: class names; empty without ``--classes``.
        top_k: 0 for no ranking.
        scores: which output holds class scores, and what to add before ranking.
        nms: suppression of a detector's boxes.
        shapes: as for a build.
        calibration: the user's samples, which show what the model answers better than synthetic ones.
    """

    images: tuple[ImageInput, ...] = ()
    labels: tuple[str, ...] = ()
    top_k: int = 0
    scores: ClassScores = field(default_factory=ClassScores)
    nms: NmsRequest | None = None
    shapes: Mapping[str, Sequence[Dim]] | None = None
    calibration: Path | None = None


@dataclass(frozen=True)
class Processing:
    """Steps around a model.

    Attributes:
        original: the model as it was.
        images: the picture inputs, each with how the original reads it.
        postprocess: what was put behind it.
        labels: class names.
        outputs: names of what comes out.
        notes: plain sentences for the user.
    """

    original: SourceModel
    images: tuple[tuple[ImageInput, ModelInput], ...]
    postprocess: TopClasses | Detections | None
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def around(self, run: Callable[[Inputs], Inputs]) -> Callable[[Inputs], Inputs]:
        """The whole, from what runs the original: the steps before and after it in NumPy, independent of the graph that is proven by it."""

        def whole(inputs: Inputs) -> Inputs:
            ready = dict(inputs)
            for image, found in self.images:
                ready[image.name] = _reference.prepared(image, inputs[image.name], found.channels_last, found.spec.dtype)
            outputs = run(ready)
            if isinstance(self.postprocess, TopClasses):
                outputs |= _reference.top_classes(self.postprocess, outputs[self.postprocess.of])
            elif isinstance(self.postprocess, Detections):
                outputs |= _reference.detections(self.postprocess, outputs)
            return {name: outputs[name] for name in self.outputs}

        return whole


def requested(options: BuildOptions) -> Request | None:
    """The processing that a build's options ask for; None when they ask for none. Needs no model.

    Raises:
        UsageError, UnknownNameError, StorageError: a flag that is not of its grammar, or contradicts another; a label file that cannot be read.
    """
    texts, classes, top_k = options.get("image_inputs") or (), options.get("classes"), options.get("top_k")
    nms, scores = options.get("nms"), options.get("class_scores")
    images = tuple(parse_image_input(text) for text in texts)
    if len({image.name for image in images}) < len(images):
        raise UsageError("--image-input", "one input is given twice", "each input once")
    if top_k is not None and (top_k < 0 or (top_k == 0 and classes is None)):
        raise UsageError(f"--top-k {top_k}", "no classes", "a positive number, or 0 with --classes to carry labels only")
    if nms and (top_k or scores):
        raise UsageError("--nms", "given with --top-k or --class-scores", "one post-processing", "leave one of them out")
    if scores and top_k is None and classes is None:
        raise UsageError(f"--class-scores {scores}", "nothing to rank", "--top-k or --classes beside it")
    labels = read_labels(Path(classes)) if classes is not None else ()
    request = Request(
        images=images,
        labels=labels,
        top_k=0 if nms else top_k if top_k is not None else min(DEFAULT_K, len(labels)),
        scores=parse_class_scores(scores) if scores else ClassScores(),
        nms=parse_nms(nms) if nms else None,
        shapes=options.get("shapes"),
        calibration=Path(given) if (given := options.get("calibration")) is not None else None,
    )
    return request if images or request.labels or request.top_k or request.nms else None


def apply(source: SourceModel, request: Request | None) -> SourceModel:
    """The source model with the asked-for steps in its graph; every later step sees the whole as the model.

    Raises:
        UsageError, UnknownNameError, ShapeRequiredError: the steps do not fit the model.
        ModelError: ONNX Runtime cannot run the model, whose answers decide about class scores.
    """
    if request is None:
        return source
    model = _writable(source.model)
    images = tuple((image, model_input(image, source.signature)) for image in request.images)
    notes = [_folding_note(image, add_image(model, image, found)) for image, found in images]
    signature = _with_images(model, source.signature, images)
    post: TopClasses | Detections | None = None
    if request.labels or request.top_k or request.nms:
        run = Processing(source, images, None, (), tuple(spec.name for spec in signature.outputs)).around(_original(source))
        signature, post = _finish(run, model, signature, request)
    notes += _post_notes(post)
    signature = structs.replace(signature, labels=bool(request.labels))
    kept = tuple(note for note in notes if note)
    processing = Processing(source, images, post, request.labels, tuple(spec.name for spec in signature.outputs), kept)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return replace(source, model=model, opset=opset, signature=signature, native=None, processing=processing, notes=(*source.notes, *kept))


def write_labels(source: SourceModel, directory: Path) -> None:
    """Put the label file among a bundle's files, where there is one."""
    if source.processing is not None and source.processing.labels:
        (directory / LABELS).write_text("\n".join(source.processing.labels) + "\n", encoding="utf-8")


# --- the parts -----------------------------------------------------------------------------------------------------------------------------


def _writable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose opset has the operators that are added; what an upgrade changes would show in the proof, which runs the original."""
    import onnx.version_converter

    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _MIN_OPSET:
        upgraded: onnx.ModelProto = onnx.version_converter.convert_version(model, _UPGRADED_OPSET)
        return upgraded
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _with_images(model: onnx.ModelProto, signature: Signature, images: Sequence[tuple[ImageInput, ModelInput]]) -> Signature:
    """The signature with uint8 inputs; sizes that a step fixed now are fixed in the outputs too."""
    if not images:
        return signature
    values = {value.name: value for value in model.graph.input}
    inputs = tuple(_declared(values[spec.name]) if spec.name in {image.name for image, _ in images} else spec for spec in signature.inputs)
    sizes: dict[str, Dim] = {}
    for _, found in images:
        own = found.spec.shape[1:3] if found.channels_last else found.spec.shape[2:4]
        sizes |= {dim: size for dim, size in zip(own, found.size, strict=True) if isinstance(dim, str)}
    _fix_outputs(model, sizes)
    outputs = tuple(
        TensorSpec(spec.name, spec.dtype, tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape))
        for spec in signature.outputs
    )
    return structs.replace(signature, inputs=inputs, outputs=outputs, images=tuple(image for image, _ in images))


def _declared(value: onnx.ValueInfoProto) -> TensorSpec:
    from edgekit.converters._source import dtype_name

    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype_name(tensor.elem_type), shape)


def _fix_outputs(model: onnx.ModelProto, sizes: Mapping[str, Dim]) -> None:
    """Write sizes in the place of symbols; what an exporter wrote about inner tensors holds for the old ones."""
    fixed = {name: size for name, size in sizes.items() if isinstance(size, int)}
    if not fixed:
        return
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]


def _original(source: SourceModel) -> Callable[[Inputs], Inputs]:
    from edgekit.converters._samples import reference_run

    return reference_run(source, source.signature)


def _finish(
    run: Callable[[Inputs], Inputs], model: onnx.ModelProto, signature: Signature, request: Request
) -> tuple[Signature, TopClasses | Detections | None]:
    """Write the post-processing; the model's own answers say what the file leaves open."""
    batch = 1
    if request.nms:
        signature, batch = _fix_batch(model, signature, request.shapes or {})
    found = answers(run, signature, request.shapes or {}, request.calibration)
    signature = structs.replace(signature, outputs=tuple(_observed(spec, found) for spec in signature.outputs))
    if request.nms:
        head = detector_head(request.nms, signature)
        _check_labels(request.labels, _classes_of(head, signature), "the detector's classes")
        return add_detections(model, signature, head, batch), head
    spec = class_output(signature, request.scores.output)
    classes = int(found[0][spec.name].shape[-1])
    _check_labels(request.labels, classes, f"output {spec.name!r}")
    if not request.top_k:
        return signature, None
    if request.top_k > classes:
        raise UsageError(f"--top-k {request.top_k}", f"output {spec.name!r} has {classes} classes", f"at most {classes}")
    names = output_names(signature, {spec.name}, ("scores", "classes"))
    post = TopClasses(
        **names, k=request.top_k, of=spec.name, activation=activation_of(request.scores.activation, [each[spec.name] for each in found])
    )
    return add_top_classes(model, signature, post), post


def _observed(spec: TensorSpec, found: Sequence[Inputs]) -> TensorSpec:
    """An output with the sizes that came out; those that differ between samples, and the batch, stay as the file names them."""
    shapes = [each[spec.name].shape for each in found]
    if len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) != len(spec.shape):
        return spec
    dims = tuple(
        sizes[0] if axis and isinstance(dim, str) and len(set(sizes)) == 1 else dim
        for axis, (dim, sizes) in enumerate(zip(spec.shape, zip(*shapes, strict=True), strict=True))
    )
    return TensorSpec(spec.name, spec.dtype, dims)


def _fix_batch(model: onnx.ModelProto, signature: Signature, shapes: Mapping[str, Sequence[Dim]]) -> tuple[Signature, int]:
    """Suppression writes out every picture's boxes, so the number of pictures is fixed: as given by ``--shape``, else 1."""
    first = signature.inputs[0]
    symbol = first.shape[0] if first.shape else 1
    if isinstance(symbol, int):
        return signature, symbol
    given = (list(shapes.get(first.name, ())) or [1])[0]
    batch = given if isinstance(given, int) and given > 0 else 1
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_value = batch

    def fixed(spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, spec.dtype, tuple(batch if dim == symbol else dim for dim in spec.shape))

    changed = structs.replace(signature, inputs=tuple(map(fixed, signature.inputs)), outputs=tuple(map(fixed, signature.outputs)))
    return changed, batch


def _classes_of(head: Detections, signature: Signature) -> int:
    shapes = {spec.name: [dim for dim in spec.shape if isinstance(dim, int)] for spec in signature.outputs}
    if len(head.of) == 2:
        anchors = shapes[head.of[0]][-2]
        sides = shapes[head.of[1]][-2:]
        return (sides[1] if sides[0] == anchors else sides[0]) - head.background
    return min(shapes[head.of[0]][-2:]) - 4 - head.objectness - head.background


def _check_labels(labels: Sequence[str], classes: int, thing: str) -> None:
    if labels and len(labels) != classes:
        raise UsageError(
            "--classes", f"the file has {len(labels)} labels", f"{classes}, as {thing} has", "one label a line, in the model's order"
        )


def _folding_note(image: ImageInput, folded: bool) -> str:
    done = "the factors of scale, mean and std are in the weights of the first convolution"
    return f"input {image.name!r} takes uint8 pictures" + (f"; {done}" if folded else "")


def _post_notes(post: TopClasses | Detections | None) -> list[str]:
    if isinstance(post, TopClasses):
        added = "" if post.activation == "none" else f" after a {post.activation}"
        return [f"outputs {post.scores!r} and {post.classes!r} are the best {post.k} classes of {post.of!r}{added}"]
    if isinstance(post, Detections):
        return [f"boxes are suppressed inside the model: at most {post.max} of the {post.candidates} best candidates come out"]
    return []
