"""Resize in every mode as one matrix for each axis: interpolation is linear in the values, and its weights are constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgekit.converters._folding import evaluate_nodes
from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_MAX_WEIGHTS = 1 << 22
"""Most weights of one axis: 2048 by 2048."""


@lowers("Resize", "Upsample")
def resize(piece: Piece) -> None:
    """Each axis that changes is multiplied by its matrix; ONNX Runtime gives the weights, by resizing an identity matrix."""
    node = piece.node
    tensor = node.inputs[0]
    shape, result = piece.around.shape(tensor), piece.around.shape(node.outputs[0])
    nearest = str(node.attrs.get("mode", "nearest")) == "nearest"
    if not nearest and np.dtype(piece.around.dtype(tensor)).kind != "f":
        raise CannotLowerError("integers are only resized to the nearest")
    if nearest:
        _nearest(piece, tensor, shape)
        return
    outside: dict[int, np.ndarray] = {}
    scales = _scales(piece, shape, result)
    for axis, scale in scales.items():
        weights = _weights(piece, axis, shape[axis], result[axis], scale)
        missing = np.isnan(weights).any(1)
        if missing.any():
            outside[axis] = missing
            weights = np.where(missing[:, None], 0, weights)
        tensor = _applied(piece, tensor, axis, len(shape), weights)
    if outside:
        tensor = _extrapolated(piece, tensor, result, outside)
    piece.op("Identity", tensor, into=node.outputs[0])


def _nearest(piece: Piece, tensor: str, shape: tuple[int, ...]) -> None:
    """Resizing the numbers of the places says where each result comes from; -1 is outside."""
    from onnx import helper

    node = piece.node
    total = math.prod(shape)
    if total > _MAX_WEIGHTS:
        raise CannotLowerError(f"{total} elements are too many to be numbered")
    constants = {name: value for name in node.inputs[1:] if name and (value := piece.around.constant(name)) is not None}
    if any(name and name not in constants for name in node.inputs[1:]):
        raise CannotLowerError("its sizes are computed")
    attrs = node.attrs | ({"extrapolation_value": -1.0} if node.op == "Resize" and piece.around.opset >= 11 else {})
    numbers = np.arange(total, dtype=np.float32).reshape(shape)  # exact: there are fewer than 2^24
    made = helper.make_node(node.op, ["x", *node.inputs[1:]], ["y"], **attrs)
    found = evaluate_nodes([made], {"x": numbers, **constants}, ["y"], piece.around.opset)
    if found is None:
        raise CannotLowerError("ONNX Runtime does not resize in this mode")
    places = found["y"].astype(np.int64)
    flat = piece.op("Reshape", tensor, np.array([-1], np.int64))
    if (places >= 0).all():
        piece.op("Gather", flat, places, axis=0, into=node.outputs[0])
        return
    outside = np.array([node.attrs.get("extrapolation_value", 0.0)], piece.around.dtype(tensor))
    piece.op("Gather", piece.op("Concat", flat, outside, axis=0), np.where(places < 0, total, places), axis=0, into=node.outputs[0])


def _scales(piece: Piece, shape: tuple[int, ...], result: tuple[int, ...]) -> dict[int, float]:
    """The scale of every axis that is resized."""
    node, attrs = piece.node, piece.node.attrs
    axes = [int(axis) % len(shape) for axis in attrs.get("axes", range(len(shape)))]
    given = _given_scales(piece)
    if given is None:
        sizes = piece.around.constant(node.input(3)) if node.input(3) else None
        if sizes is None:
            raise CannotLowerError("its sizes are computed")
        given = np.array([float(size) / shape[axis] for axis, size in zip(axes, sizes, strict=True)])
        policy = attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            given = np.full(len(axes), given.min() if policy == "not_larger" else given.max())
    moving = attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return {axis: float(scale) for axis, scale in zip(axes, given, strict=True) if moving or scale != 1 or result[axis] != shape[axis]}


def _given_scales(piece: Piece) -> np.ndarray | None:
    node = piece.node
    if node.op == "Upsample":
        name = node.input(1)
        found = piece.around.constant(name) if name else np.array(node.attrs["scales"], np.float32)
    else:
        name = node.input(2 if piece.around.opset >= 11 else 1)
        found = piece.around.constant(name) if name else np.empty(0)
    if found is None:
        raise CannotLowerError("its scales are computed")
    return found if found.size else None


def _weights(piece: Piece, axis: int, size: int, wanted: int, scale: float) -> np.ndarray:
    """``[wanted, size]``; a row of NaN lies outside of the input (``tf_crop_and_resize``)."""
    from onnx import helper

    if size * wanted > _MAX_WEIGHTS:
        raise CannotLowerError(f"{size} to {wanted} elements along one axis is too large for a matrix")
    node = piece.node
    passed: dict[str, Any] = {key: value for key, value in node.attrs.items() if key not in ("axes", "keep_aspect_ratio_policy", "scales")}
    inputs = {"x": np.eye(size, dtype=np.float32)[None, None], "roi": np.empty(0, np.float32)}
    if node.op == "Resize" and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        inputs["roi"] = _roi(piece, axis)
        passed["extrapolation_value"] = math.nan
    names = ["x", "roi", "scales", ""]
    inputs["scales"] = np.array([1, 1, 1, scale], np.float32)
    if math.floor(size * float(np.float32(scale))) != wanted:
        names = ["x", "roi", "", "sizes"]
        del inputs["scales"]
        inputs["sizes"] = np.array([1, 1, size, wanted], np.int64)
        if not math.isclose(wanted / size, scale, rel_tol=1e-6):
            raise CannotLowerError("its output size is not that of its scale")
    if node.op == "Upsample" or piece.around.opset < 11:
        # The form before opset 11: asymmetric coordinates, and the element before a place is the nearest.
        passed = {"mode": passed.get("mode", "nearest"), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    made = helper.make_node("Resize", names, ["y"], **passed)
    found = evaluate_nodes([made], inputs, ["y"], max(piece.around.opset, 13))
    if found is None:
        raise CannotLowerError("ONNX Runtime does not resize one axis in this mode")
    weights: np.ndarray = found["y"][0, 0].T
    if weights.shape != (wanted, size):
        raise CannotLowerError("its output size is not that of its scale")
    return weights


def _roi(piece: Piece, axis: int) -> np.ndarray:
    """Start and end of the region, of one axis as the last of four."""
    found = piece.around.constant(piece.node.input(1)) if piece.node.input(1) else None
    if found is None:
        raise CannotLowerError("its region of interest is computed or not given")
    rank = len(piece.around.shape(piece.node.inputs[0]))
    axes = [int(each) % rank for each in piece.node.attrs.get("axes", range(rank))]
    place = axes.index(axis)
    return np.array([0, 0, 0, found[place], 1, 1, 1, found[len(axes) + place]], np.float32)


def _applied(piece: Piece, tensor: str, axis: int, rank: int, weights: np.ndarray) -> str:
    matrix = weights.astype(piece.around.dtype(piece.node.inputs[0]))
    if axis == rank - 1:
        return piece.op("MatMul", tensor, np.ascontiguousarray(matrix.T))
    if axis == rank - 2:
        return piece.op("MatMul", matrix, tensor)
    order = [each for each in range(rank) if each != axis] + [axis]
    last = piece.op("MatMul", piece.op("Transpose", tensor, perm=order), np.ascontiguousarray(matrix.T))
    return piece.op("Transpose", last, perm=[int(each) for each in np.argsort(order)])


def _extrapolated(piece: Piece, tensor: str, result: tuple[int, ...], outside: dict[int, np.ndarray]) -> str:
    mask = np.zeros(result, bool)
    for axis, missing in outside.items():
        mask |= missing.reshape([-1 if each == axis else 1 for each in range(len(result))])
    value = np.asarray(piece.node.attrs.get("extrapolation_value", 0.0), piece.around.dtype(piece.node.inputs[0]))
    return piece.op("Where", mask, value, tensor)
