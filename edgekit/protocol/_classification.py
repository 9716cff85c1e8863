"""Triton's classification extension: an output as its best classes instead of all its values. Pure.

Reference: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import RequestError
from edgekit.protocol._tensors import shorten, tensor_thing
from edgekit.protocol._types import InferRequest, InferResponse, Tensor

__all__ = ["CLASSIFICATION", "LabelsOf", "class_count", "classify", "classify_response"]

CLASSIFICATION = "classification"
LabelsOf = Callable[[str, str], Sequence[str]]
"""`InferenceCore.class_labels`."""


def class_count(thing: str, parameters: Mapping[str, Any]) -> int:
    """How many classes the parameters of a requested output ask for; 0 for none.

    Raises:
        RequestError: not a whole number of 0 or more.
    """
    count = parameters.get(CLASSIFICATION, 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise RequestError(thing, f"{CLASSIFICATION} {shorten(str(count))!r}", "how many classes, a whole number of 0 (none) or more")
    return count


def classify(thing: str, scores: np.ndarray, count: int, labels: Sequence[str] = ()) -> np.ndarray:
    """The best classes of ``scores``.

    Args:
        scores: numbers, (C) or (N, ...): the first axis is the batch, all others together are the classes.
        count: how many to give; all when there are fewer.
        labels: of the classes, in order; used when there is one for each class.

    Returns:
        BYTES of shape (k) or (N, k), best first, equal ones by index, NaN last. An element is ``<value>:<index>``, the value with six digits
        after the point when it is a float (as C++'s ``std::to_string`` writes it); with labels ``<value>:<index>:<label>``.

    Raises:
        RequestError: scores that are no numbers, or no vector.
    """
    if scores.dtype.kind in "OSUb" or scores.ndim == 0:
        raise RequestError(
            thing, f"{CLASSIFICATION} of {scores.dtype.name} with {scores.ndim} dimensions", "numbers, at least a vector of them"
        )
    whole = scores.dtype.kind in "iu"
    rows = scores.reshape(1, -1) if scores.ndim == 1 else scores.reshape(scores.shape[0], int(np.prod(scores.shape[1:], dtype=np.int64)))
    values = rows if whole else rows.astype(np.float64)
    count = min(count, rows.shape[1])
    # Backwards and stable, then turned round: descending order keeps the lower index first among equals.
    keys = values if whole else np.where(np.isnan(values), -np.inf, values)
    order = rows.shape[1] - 1 - np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    ends = [f"{i}:{label}" for i, label in enumerate(labels)] if len(labels) == rows.shape[1] else None
    best = np.empty((rows.shape[0], count), dtype=object)
    for row, indices in enumerate(order.tolist()):
        picked = values[row, indices].tolist() if count else []
        texts = [f"{value}" if whole else f"{value:.6f}" for value in picked]
        best[row] = [f"{text}:{ends[i] if ends else i}".encode() for text, i in zip(texts, indices, strict=True)]
    return best[0] if scores.ndim == 1 else best


def classify_response(response: InferResponse, request: InferRequest, labels_of: LabelsOf | None = None) -> InferResponse:
    """The answer with every output that was asked for as classes turned into them; the same object when none was.

    Raises:
        RequestError: as `class_count` and `classify`.
    """
    counts = {}
    for output in request.outputs:
        if output.parameters and (count := class_count(tensor_thing("output", output.name), output.parameters)):
            counts[output.name] = count
    if not counts:
        return response
    labels = labels_of(response.model_name, response.model_version) if labels_of is not None else ()
    tensors = [
        Tensor(tensor.name, classify(tensor_thing("output", tensor.name), tensor.data, counts[tensor.name], labels), tensor.parameters)
        if tensor.name in counts
        else tensor
        for tensor in response.outputs
    ]
    return msgspec.structs.replace(response, outputs=tensors)
