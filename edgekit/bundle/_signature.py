"""What goes into a model and what comes out: names, dtypes, order and logical shapes."""

# No `annotations` from the future here: msgspec would compile each of them from its text when it makes the decoder, 2 ms of a start.
from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.bundle._processing import Detections, ImageInput, TopClasses
from edgekit.errors import RequestError

__all__ = ["Dim", "Signature", "StatePair", "TensorSpec"]

Dim = int | str
"""One dimension: a fixed size, or the name of a symbolic one (``"N"``)."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output as the source model declares it.

    Attributes:
        name: the source model's name, unchanged.
        dtype: a NumPy dtype name (``float32``, ``int64``, ``bool``), ``bfloat16`` or ``string``.
        shape: logical shape in the source model's axis order; a ``str`` is a symbolic dimension.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_static(self) -> bool:
        """True when every dimension is a number."""
        return all(isinstance(dim, int) for dim in self.shape)

    def describe(self) -> str:
        """``float32[N,3,48,320]``."""
        return f"{self.dtype}[{','.join(str(dim) for dim in self.shape)}]"

    def check(self, array: np.ndarray) -> None:
        """Raise `RequestError` unless ``array`` has this dtype and a shape that fits."""
        if array.dtype.name != self.dtype and not (self.dtype == "string" and array.dtype.kind in "OSU"):
            raise RequestError(f"input {self.name!r}", f"dtype {array.dtype.name}", self.describe(), f"convert it to {self.dtype}")
        if len(array.shape) != len(self.shape) or any(
            isinstance(want, int) and want != have for want, have in zip(self.shape, array.shape, strict=True)
        ):
            raise RequestError(
                f"input {self.name!r}",
                f"shape [{','.join(map(str, array.shape))}]",
                self.describe(),
                "send the tensor in the model's own axis order",
            )


class StatePair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One state of a model that is run in sequences: what the output says is the input of the next request.

    Attributes:
        input: name of an input of the signature.
        output: name of an output of the signature, of the same dtype.
        shape: of the first request's, which is all zeros.
    """

    input: str
    output: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The inputs and outputs of a bundle, in the source model's order.

    Attributes:
        inputs, outputs: as callers see them.
        images: the inputs that take pictures, and what the artifact does to them first.
        postprocess: what the artifact does last; its outputs stand where the source model's were.
        labels: the bundle has a label file, `edgekit.bundle.LABELS`.
        states: which outputs a sequence of requests hands on to which inputs. They are inputs and outputs like the others for who calls the model without a
            sequence.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    images: tuple[ImageInput, ...] = ()
    postprocess: TopClasses | Detections | None = None
    labels: bool = False
    states: tuple[StatePair, ...] = ()

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise `RequestError` for a missing, unknown or ill-shaped input.

        Symbolic dimensions that share a name must also share a size.
        """
        known = {spec.name for spec in self.inputs}
        for name in inputs:
            if name not in known:
                raise RequestError(f"input {name!r}", "no such input", f"inputs {', '.join(sorted(known))}")
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None:
                raise RequestError(f"input {spec.name!r}", "missing", spec.describe(), self._about_missing(spec.name))
            spec.check(array)
            for dim, size in zip(spec.shape, array.shape, strict=True):
                if isinstance(dim, str):
                    first, where = sizes.setdefault(dim, (size, spec.name))
                    if first != size:
                        raise RequestError(f"input {spec.name!r}", f"dimension {dim} is {size}", f"{first}, as in input {where!r}")

    def _about_missing(self, name: str) -> str:
        if not any(pair.input == name for pair in self.states):
            return ""
        return "send it, or the parameters sequence_id and (with the first request) sequence_start, and the server keeps it"
