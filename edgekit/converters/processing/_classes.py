"""Classifier post-processing: the best classes in place of the scores of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Signature, TensorSpec, TopClasses
from edgekit.converters.processing._edit import Edit, vacate
from edgekit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["DEFAULT_K", "activation_of", "add_top_classes", "class_output", "read_labels"]

DEFAULT_K = 5
"""How many classes come out where ``--classes`` is given without ``--top-k``: what image classifiers are scored by beside the first."""

_SUM_TOLERANCE = 1e-3  # of 1.0: a softmax in float32 over thousands of classes is nearer than that


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line; blank lines at the end do not count.

    Raises:
        UsageError: no labels, a blank line between them, not UTF-8.
        StorageError: the file cannot be read.
    """
    flag = f"--classes {path}"
    if not path.is_file():
        raise UsageError(flag, "no such file", "a text file with one label a line", "check the path")
    with storage_errors(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(flag, f"not UTF-8 (byte {exc.start})", "a text file in UTF-8", "save it as UTF-8") from exc
    labels = [line.strip() for line in text.split("\n")]
    while labels and not labels[-1]:
        labels.pop()
    if not labels:
        raise UsageError(flag, "no label in it", "one label a line")
    if "" in labels:
        raise UsageError(flag, f"line {labels.index('') + 1} is blank", "one label a line", "class numbers are counted by lines")
    return tuple(labels)


def class_output(signature: Signature, wanted: str) -> TensorSpec:
    """The output with class scores along its last axis.

    Raises:
        UnknownNameError: no such output. UsageError: several could be, or none.
    """
    known = {spec.name: spec for spec in signature.outputs}
    if wanted and wanted not in known:
        raise UnknownNameError(f"--class-scores {wanted}=…", wanted, known)
    found = [spec for spec in signature.outputs if spec.dtype in ("float32", "float16") and len(spec.shape) >= 2 and spec.shape[-1] != 1]
    if wanted:
        found = [spec for spec in found if spec.name == wanted]
    if len(found) != 1:
        described = ", ".join(f"{spec.name} {spec.describe()}" for spec in signature.outputs)
        raise UsageError(
            "--top-k / --classes",
            f"{'several outputs could' if found else 'no output can'} hold class scores: {described}",
            "one float output [N, classes]",
            "name it: --class-scores OUTPUT=auto" if found else "leave the flag out",
        )
    return found[0]


def activation_of(asked: str, answers: Sequence[np.ndarray]) -> Literal["none", "softmax", "sigmoid"]:
    """What to add before ranking; ``auto``: nothing where every answer is a probability distribution already, else a softmax."""
    if asked != "auto":
        return cast("Literal['none', 'softmax', 'sigmoid']", asked)
    sums = [answer.sum(axis=-1, dtype=np.float64) for answer in answers]
    probabilities = all(
        np.all(answer >= 0) and np.all(np.abs(each - 1) <= _SUM_TOLERANCE) for answer, each in zip(answers, sums, strict=True)
    )
    return "none" if probabilities else "softmax"


def add_top_classes(model: onnx.ModelProto, signature: Signature, post: TopClasses) -> Signature:
    """Write the ranking into the graph; returns the new outputs' signature, in the place of the old one."""
    edit = Edit(model, "post")
    spec = next(spec for spec in signature.outputs if spec.name == post.of)
    x = vacate(model, (post.scores, post.classes, post.of), edit)[post.of]
    if spec.dtype != "float32":
        x = edit.cast(x, "float32")
    if post.activation == "softmax":
        x = edit.add(
            "Softmax", x, axis=len(spec.shape) - 1
        )  # before opset 13 it would flatten what follows the axis: nothing follows the last
    elif post.activation == "sigmoid":
        x = edit.add("Sigmoid", x)
    values, places = edit.add("TopK", x, edit.constant([post.k], "int64"), outputs=2, axis=len(spec.shape) - 1)
    edit.add("Identity", values, output=post.scores)
    edit.add("Identity", places, output=post.classes)
    edit.commit()
    shape = (*spec.shape[:-1], post.k)
    added = (TensorSpec(post.scores, "float32", shape), TensorSpec(post.classes, "int64", shape))
    replace_outputs(model, {post.of}, post.of, added)
    outputs = [new for old in signature.outputs for new in (added if old.name == post.of else (old,))]
    return Signature(signature.inputs, tuple(outputs), signature.images, post, signature.labels)


def replace_outputs(model: onnx.ModelProto, gone: set[str], place: str, added: Sequence[TensorSpec]) -> None:
    """Graph outputs with some taken out and others put where ``place`` was."""
    import onnx

    new = [
        onnx.helper.make_tensor_value_info(spec.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
        for spec in added
    ]
    kept: list[onnx.ValueInfoProto] = []
    for value in model.graph.output:
        if value.name == place:
            kept += new
        elif value.name not in gone:
            kept.append(value)
    del model.graph.output[:]
    model.graph.output.extend(kept)


def output_names(signature: Signature, gone: set[str], wanted: Sequence[str]) -> Mapping[str, str]:
    """Names for new outputs: plain where nothing else has them, else with the first replaced output's name before."""
    taken = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.name not in gone}
    prefix = f"{min(gone)}_" if taken & set(wanted) else ""
    return {name: f"{prefix}{name}" for name in wanted}
