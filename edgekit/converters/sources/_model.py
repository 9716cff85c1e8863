"""What a source model is to every later step, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle import Signature

if TYPE_CHECKING:
    import onnx

    from edgekit.converters.processing import Processing

__all__ = ["NativeModel", "SourceModel"]


@dataclass(frozen=True)
class NativeModel:
    """The TensorFlow original of a model, for targets that have a converter of their own for it.

    Attributes:
        path: ``.keras`` file or SavedModel directory, as the user gave it.
        kind: ``keras`` or ``saved-model``.
        signature_key: which signature of a SavedModel; empty for Keras.
        inputs: the original's argument name of every input, in the order of the source's signature.
        outputs: the original's result name of every output, in the order of the source's signature.
    """

    path: Path
    kind: str
    signature_key: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SourceModel:
    """A model as the user gave it, checked.

    Whoever puts another graph into ``model`` (pre- and post-processing) must set ``native`` to None: it would not be the same model any more.

    Attributes:
        path: the file or directory; for a model given as an object, its name.
        model: its ONNX form; initializers are no graph inputs, unnamed dimensions have unique names. All data is in it, but for ``weights``.
        format: ``onnx``, ``ort``, ``keras``, ``saved-model``, ``torch-export`` or ``torch``.
        sha256: hex digest of the file's bytes, followed by those of its external data files in the order of their names; of a directory,
            of the names and bytes of its files.
        opset: ai.onnx opset of ``model``.
        signature: the source's own names, dtypes, order and dimensions.
        native: the TensorFlow original, for a Keras model or a SavedModel.
        weights: set for a model beyond protobuf's 2 GB: the folder that the large tensors of ``model`` stay in, as external data.
        passes: ids of what was done to ``model`` so that ONNX Runtime runs it (``common::cap_versions``).
        notes: plain sentences about how it was read.
        processing: steps that were put around the model (`edgekit.converters.processing`), with the model as it was; None without any.
    """

    path: Path
    model: onnx.ModelProto
    format: str
    sha256: str
    opset: int
    signature: Signature
    native: NativeModel | None = None
    weights: Path | None = None
    passes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    processing: Processing | None = None

    @property
    def is_file(self) -> bool:
        """Whether ``path`` is what ONNX Runtime can load in place of ``model``."""
        return self.processing is None and (self.format == "ort" or (self.format == "onnx" and not self.passes))
