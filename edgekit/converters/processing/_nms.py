"""Non-maximum suppression for detectors, in plain operators with fixed sizes.

ONNX's own `NonMaxSuppression` gives as many rows as it finds, a size that TFLite and Core ML cannot carry and that TensorRT only has at run time;
and each engine's operator of that name breaks ties and counts classes its own way. So it is written out, the same for every engine::

    scores [N,A,C] ─ best class ─ TopK ─ candidates K, best first ─┬─ overlaps [K,K] of the same class ─┐
                                                                   └─ those above the score: r [K] ─────┤
    `max` times:  i = ArgMax(r);  r = r * (1 - overlaps[i])  <──────────────────────────────────────────┘

``r`` counts down from the best candidate, so that the largest value is the best box that is left and no two are equal; where none is left all are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import Detections, Signature, TensorSpec
from edgekit.converters.processing._classes import output_names, replace_outputs
from edgekit.converters.processing._edit import Edit, vacate
from edgekit.converters.processing._grammar import NmsRequest
from edgekit.errors import ShapeRequiredError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["add_detections", "detector_head"]

_FLAG = "--nms"


def detector_head(request: NmsRequest, signature: Signature) -> Detections:
    """Which outputs hold boxes and scores, checked.

    One output [N, 4+C, A] or [N, A, 4+C] (``boxes`` alone), or two: boxes [N, A, 4] and scores [N, A, C] or [N, C, A]. Of an output's two
    axes the longer one counts the boxes.

    Raises:
        UnknownNameError: an output that does not exist.
        UsageError: outputs of another layout, or several that could be meant.
        ShapeRequiredError: a number of boxes that is open.
    """
    known = {spec.name: spec for spec in signature.outputs}
    for name in filter(None, (request.boxes, request.scores)):
        if name not in known:
            raise UnknownNameError(f"{_FLAG} output", name, known)
    boxes, scores = (known.get(name) for name in (request.boxes, request.scores))
    if boxes is None:
        if len(known) != 1:
            listed = ", ".join(f"{spec.name} {spec.describe()}" for spec in signature.outputs)
            raise UsageError(
                _FLAG, f"{len(known)} outputs: {listed}", "to know which hold boxes and scores", "add boxes=OUTPUT,scores=OUTPUT"
            )
        boxes = signature.outputs[0]
    for spec in filter(None, (boxes, scores)):
        _require_known(spec)
    names = output_names(signature, {boxes.name} | ({scores.name} if scores else set()), ("boxes", "scores", "classes", "count"))
    _, count = _joined(boxes, request) if scores is None else _separate(boxes, scores)
    if count - request.background < 1:
        raise UsageError(_FLAG, f"{count} class(es)", "at least one class beside the background", "leave the word background out")
    return Detections(
        **names,
        iou=request.iou,
        score=request.score,
        max=request.max,
        candidates=request.candidates,
        of=(boxes.name,) if scores is None else (boxes.name, scores.name),
        format=request.format or ("cxcywh" if scores is None else "xyxy"),
        objectness=request.objectness,
        background=request.background,
        agnostic=request.agnostic,
    )


def _require_known(spec: TensorSpec) -> None:
    if spec.dtype not in ("float32", "float16") or len(spec.shape) != 3:
        raise UsageError(_FLAG, f"output {spec.name!r} is {spec.describe()}", "a float tensor of rank 3", "name other outputs")
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        raise ShapeRequiredError(
            f"output {spec.name!r}",
            f"{spec.describe()} has sizes that depend on the input's",
            "a fixed number of boxes",
            "give --shape with numbers for every dimension of the input",
        )


def _joined(spec: TensorSpec, request: NmsRequest) -> tuple[int, int]:
    """Number of boxes and of classes of one output that holds both."""
    sizes = [int(dim) for dim in spec.shape[1:]]
    anchors, values = max(sizes), min(sizes)
    classes = values - 4 - request.objectness
    if classes < 1 or sizes[0] == sizes[1]:
        want = f"[N, {'5' if request.objectness else '4'}+classes, boxes] or the last two exchanged"
        raise UsageError(_FLAG, f"output {spec.name!r} is {spec.describe()}", want, "name other outputs: boxes=OUTPUT,scores=OUTPUT")
    return anchors, classes


def _separate(boxes: TensorSpec, scores: TensorSpec) -> tuple[int, int]:
    """Number of boxes and of classes of two outputs."""
    anchors, side = (int(dim) for dim in boxes.shape[1:])
    first, last = (int(dim) for dim in scores.shape[1:])
    if side != 4 or anchors not in (first, last):
        found = f"boxes {boxes.describe()}, scores {scores.describe()}"
        raise UsageError(_FLAG, found, "boxes [N, A, 4] and scores [N, A, C] or [N, C, A]", "name other outputs")
    return anchors, last if first == anchors else first


# --- the graph -----------------------------------------------------------------------------------------------------------------------------


def add_detections(model: onnx.ModelProto, signature: Signature, post: Detections, batch: int) -> Signature:
    """Write the suppression into the graph; returns the new signature.

    Args:
        model: changed in place.
        signature: before.
        post: what `detector_head` found.
        batch: number of pictures of a request, fixed.
    """
    edit = Edit(model, "post")
    specs = {spec.name: spec for spec in signature.outputs}
    moved = vacate(model, (post.boxes, post.scores, post.classes, post.count, *post.of), edit)
    corners, scores, anchors, classes = _head(edit, post, [moved[name] for name in post.of], [specs[name] for name in post.of])
    count = min(post.candidates, anchors)
    corners, best, kinds = _candidates(edit, (corners, scores), (batch, anchors, classes), count)
    if post.format == "cxcywh":
        corners = _corners(edit, corners)
    blocked = _blocked(edit, post, corners, kinds, (batch, count))
    picks, valid = _picks(edit, post, best, blocked, (batch, count))
    _results(edit, post, (corners, best, kinds), (picks, valid), (batch, count))
    edit.commit()
    most = post.max
    added = (
        TensorSpec(post.boxes, "float32", (batch, most, 4)),
        TensorSpec(post.scores, "float32", (batch, most)),
        TensorSpec(post.classes, "int64", (batch, most)),
        TensorSpec(post.count, "int64", (batch,)),
    )
    replace_outputs(model, set(post.of), post.of[0], added)
    outputs = [new for old in signature.outputs for new in (added if old.name == post.of[0] else () if old.name in post.of else (old,))]
    return Signature(signature.inputs, tuple(outputs), signature.images, post, signature.labels)


def _head(edit: Edit, post: Detections, tensors: list[str], specs: list[TensorSpec]) -> tuple[str, str, int, int]:
    """Boxes [N,A,4] in the model's format and scores [N,A,C], with A and C."""
    names = [edit.cast(name, "float32") if spec.dtype != "float32" else name for name, spec in zip(tensors, specs, strict=True)]
    sizes = [tuple(int(dim) for dim in spec.shape[1:]) for spec in specs]
    if len(specs) == 2:
        boxes, scores, anchors = names[0], names[1], sizes[0][0]
        turned, classes = sizes[1][0] != anchors, sizes[1][1] if sizes[1][0] == anchors else sizes[1][0]
        scores = edit.add("Transpose", scores, perm=[0, 2, 1]) if turned else scores
    else:
        anchors, values = max(sizes[0]), min(sizes[0])
        joined = edit.add("Transpose", names[0], perm=[0, 2, 1]) if sizes[0][0] < sizes[0][1] else names[0]
        boxes, first = edit.cut(joined, 2, 0, 4), 5 if post.objectness else 4
        scores, classes = edit.cut(joined, 2, first, values), values - first
        if post.objectness:
            scores = edit.add("Mul", scores, edit.cut(joined, 2, 4, 5))
    if post.background:
        scores, classes = edit.cut(scores, 2, 1, classes), classes - 1
    return boxes, scores, anchors, classes


def _corners(edit: Edit, boxes: str) -> str:
    """Centre and size to corners, on the candidates only."""
    centre = edit.cut(boxes, 2, 0, 2)
    half = edit.add("Mul", edit.cut(boxes, 2, 2, 4), edit.constant(0.5, "float32"))
    return str(edit.add("Concat", edit.add("Sub", centre, half), edit.add("Add", centre, half), axis=2))


def _candidates(edit: Edit, head: tuple[str, str], sizes: tuple[int, int, int], count: int) -> tuple[str, str, str]:
    """The best boxes [N,K,4] with their scores [N,K] and classes [N,K] (float32), best first."""
    (boxes, scores), (batch, anchors, classes) = head, sizes
    best = edit.reshape(edit.reduce("ReduceMax", scores, [2]), (batch, anchors)) if classes > 1 else edit.reshape(scores, (batch, anchors))
    values, places = edit.add("TopK", best, edit.constant([count], "int64"), outputs=2, axis=1)
    rows = _rows(edit, places, batch, anchors)
    boxes = edit.add("Gather", edit.reshape(boxes, (batch * anchors, 4)), rows, axis=0)
    if classes == 1:
        return boxes, values, edit.constant(np.zeros((batch, count)), "float32")
    # The class is looked for among the candidates alone: an arg-max over all boxes would cost as much as the suppression.
    table = edit.add("Gather", edit.reshape(scores, (batch * anchors, classes)), rows, axis=0)
    return boxes, values, edit.cast(edit.add("ArgMax", table, axis=2, keepdims=0), "float32")


def _rows(edit: Edit, places: str, batch: int, length: int) -> str:
    """Row numbers in a table of all pictures from those within each picture, [N, …]."""
    if batch == 1:
        return places
    return str(edit.add("Add", places, edit.constant(np.arange(batch).reshape(batch, 1) * length, "int64")))


def _blocked(edit: Edit, post: Detections, corners: str, kinds: str, sizes: tuple[int, int]) -> str:
    """float32 [N*K, K]: 1 where a box stays when the row's box is taken, 0 where it goes; a box takes itself."""
    batch, count = sizes
    zero = edit.constant(0.0, "float32")
    low, high = edit.cut(corners, 2, 0, 2), edit.cut(corners, 2, 2, 4)
    side = edit.add("Max", edit.add("Sub", high, low), zero)
    area = edit.add("Mul", edit.cut(side, 2, 0, 1), edit.cut(side, 2, 1, 2))  # [N,K,1]

    def across(axis: int, end: str) -> tuple[str, str]:
        column = edit.cut(end, 2, axis, axis + 1)
        return column, edit.reshape(column, (batch, 1, count))

    spans = []
    for axis in (0, 1):
        length = edit.add("Sub", edit.add("Min", *across(axis, high)), edit.add("Max", *across(axis, low)))
        spans.append(edit.add("Max", length, zero))
    inner = edit.add("Mul", *spans)
    union = edit.add("Sub", edit.add("Add", area, edit.reshape(area, (batch, 1, count))), inner)
    gone = edit.add("Greater", inner, edit.add("Mul", union, edit.constant(post.iou, "float32")))
    if not post.agnostic:
        same = edit.add("Equal", edit.reshape(kinds, (batch, count, 1)), edit.reshape(kinds, (batch, 1, count)))
        gone = edit.add("And", gone, same)
    gone = edit.add("Or", gone, edit.constant(np.eye(count, dtype=bool)[np.newaxis], "bool"))
    return edit.reshape(edit.cast(edit.add("Not", gone), "float32"), (batch * count, count))


def _picks(edit: Edit, post: Detections, best: str, blocked: str, sizes: tuple[int, int]) -> tuple[str, str]:
    """Candidates in the order in which they are taken, int64 [N,max], and whether each is one, float32 [N,max] of 0 and 1."""
    batch, count = sizes
    above = edit.cast(edit.add("Greater", best, edit.constant(post.score, "float32")), "float32")
    left = edit.add("Mul", above, edit.constant(np.arange(count, 0, -1)[np.newaxis], "float32"))
    picks, valid = [], []
    for _ in range(min(post.max, count)):
        pick = edit.add("ArgMax", left, axis=1, keepdims=1)
        picks.append(pick)
        valid.append(edit.reduce("ReduceMax", left, [1]))
        row = edit.add("Gather", blocked, edit.reshape(_rows(edit, pick, batch, count), (batch,)), axis=0)
        left = edit.add("Mul", left, row)
    valid_ = edit.add("Concat", *valid, axis=1) if len(valid) > 1 else valid[0]
    picks_ = edit.add("Concat", *picks, axis=1) if len(picks) > 1 else picks[0]
    return picks_, edit.cast(edit.add("Greater", valid_, edit.constant(0.0, "float32")), "float32")


def _results(edit: Edit, post: Detections, found: tuple[str, str, str], chosen: tuple[str, str], sizes: tuple[int, int]) -> None:
    """The four outputs, zero beyond the count."""
    (corners, best, kinds), (picks, valid), (batch, count) = found, chosen, sizes
    rows, taken = _rows(edit, picks, batch, count), min(post.max, count)

    def picked(table: str, width: int) -> str:
        each = edit.add("Gather", edit.reshape(table, (batch * count, width) if width > 1 else (batch * count,)), rows, axis=0)
        return str(edit.add("Mul", each, edit.reshape(valid, (batch, taken, 1)) if width > 1 else valid))

    def padded(x: str, width: int) -> str:
        if taken == post.max:
            return x
        missing = (batch, post.max - taken, width) if width > 1 else (batch, post.max - taken)
        return str(edit.add("Concat", x, edit.constant(np.zeros(missing), "float32"), axis=1))

    edit.add("Identity", padded(picked(corners, 4), 4), output=post.boxes)
    edit.add("Identity", padded(picked(best, 1), 1), output=post.scores)
    edit.cast(padded(picked(kinds, 1), 1), "int64", post.classes)
    edit.cast(edit.reduce("ReduceSum", valid, [1], keepdims=0), "int64", post.count)
