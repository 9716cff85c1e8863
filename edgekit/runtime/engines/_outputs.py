"""Outputs that the caller owns: what may be given as ``out``, and which of it an engine can write to directly. Decides only; copies nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from edgekit.bundle import TensorBinding, TensorSpec
from edgekit.errors import RequestError

__all__ = ["check_out", "deliver", "direct_targets", "known_shapes"]


def check_out(out: Mapping[str, np.ndarray], specs: tuple[TensorSpec, ...]) -> None:
    """Raise `RequestError` unless every array of ``out`` is a writable output of ``specs`` in dtype and fixed sizes. Some outputs may be left out."""
    if not isinstance(out, Mapping):
        raise RequestError("out", f"a {type(out).__name__}", "a mapping of output names to NumPy arrays")
    known = {spec.name: spec for spec in specs}
    for name, array in out.items():
        thing = f"output {name!r}"
        spec = known.get(name)
        if spec is None:
            raise RequestError(thing, "no such output", f"outputs {', '.join(known)}")
        if not isinstance(array, np.ndarray):
            raise RequestError(thing, f"a {type(array).__name__}", "a NumPy array that the result is written to")
        if array.dtype.name != spec.dtype and not (spec.dtype == "string" and array.dtype.kind == "O"):
            raise RequestError(thing, f"dtype {array.dtype.name}", spec.describe(), "give an array of that dtype")
        if not _fits(array.shape, spec.shape):
            raise RequestError(thing, f"shape [{','.join(map(str, array.shape))}]", spec.describe(), "give an array of that shape")
        if not array.flags.writeable:
            raise RequestError(thing, "an array that cannot be written", "a writable array", "give a copy of it")


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(isinstance(want, str) or want == have for want, have in zip(wanted, shape, strict=True))


def known_shapes(
    inputs: Mapping[str, np.ndarray], input_specs: tuple[TensorSpec, ...], output_specs: tuple[TensorSpec, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs that these inputs decide: every size is fixed, or named as one of an input. The others are left out."""
    sizes: dict[str, int] = {}
    for spec in input_specs:
        sizes.update((dim, size) for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True) if isinstance(dim, str))
    shapes = {}
    for spec in output_specs:
        shape = [dim if isinstance(dim, int) else sizes.get(dim, -1) for dim in spec.shape]
        if -1 not in shape:
            shapes[spec.name] = tuple(shape)
    return shapes


def direct_targets(
    out: Mapping[str, np.ndarray],
    bindings: tuple[TensorBinding, ...],
    specs: tuple[TensorSpec, ...],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    native: bool,
) -> dict[str, np.ndarray]:
    """By native name, the arrays of ``out`` that an engine may write to itself: C-ordered in the artifact's axis order, of its dtype and known shape.

    Raises:
        RequestError: an array whose shape is not the one that the inputs decide.
    """
    targets = {}
    for binding, spec in zip(bindings, specs, strict=True):
        array = out.get(spec.name)
        shape = shapes.get(spec.name)
        if array is None or shape is None:
            continue
        if array.shape != shape:
            raise wrong_shape(spec.name, array.shape, shape)
        if not native and (binding.scale or binding.native_dtype != spec.dtype):
            continue
        view = array if native or binding.perm is None else array.transpose(binding.perm)
        if view.flags.c_contiguous and view.flags.aligned and array.dtype.kind in "biuf":
            targets[binding.native_name] = view
    return targets


def deliver(out: Mapping[str, np.ndarray], answer: dict[str, np.ndarray], written: Collection[str]) -> dict[str, np.ndarray]:
    """The answer with the caller's own arrays in it. ``written``: names of those that the engine wrote to; the rest is copied.

    Raises:
        RequestError: an array whose shape is not the result's.
    """
    for name, array in out.items():
        if name not in written:
            if array.shape != answer[name].shape:
                raise wrong_shape(name, array.shape, answer[name].shape)
            np.copyto(array, answer[name])
        answer[name] = array
    return answer


def wrong_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> RequestError:
    """An array given for an output has another shape than the output of these inputs."""
    lists = [",".join(map(str, shape)) for shape in (found, wanted)]
    return RequestError(f"output {name!r}", f"shape [{lists[0]}]", f"[{lists[1]}] for these inputs", "give an array of that shape")
