"""``bundle.json``: what a bundle holds, for which device, and what was proven about it."""

# No `annotations` from the future here: msgspec would compile each of them from its text when it makes the decoder, 2 ms of a start.
from typing import Literal

import msgspec

from edgekit.bundle._signature import Signature

__all__ = [
    "FORMAT",
    "Artifact",
    "FileEntry",
    "Manifest",
    "OutputMetrics",
    "Source",
    "TensorBinding",
    "Verification",
    "Verified",
]

FORMAT = "edgekit.bundle/1"

Verified = Literal["host", "reference", "parser", "deferred"]
"""How far a proof went.

``host``: the artifact ran through its own engine on the build machine. ``reference``: an independent interpreter ran the
saved artifact. ``parser``: the vendor's own parser and builder took it, nothing ran. ``deferred``: left to the device.
"""


class TensorBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one logical tensor appears inside an artifact.

    Attributes:
        name: the signature's name.
        native_name: the artifact's name for it.
        native_dtype: the artifact's NumPy dtype name.
        perm: ``native = logical.transpose(perm)``; ``None`` when the axis order is the same.
        scale: for a float tensor that the artifact has in int8 or uint8, ``logical = (native - zero_point) * scale``; 0 for all others.
        zero_point: see ``scale``.
    """

    name: str
    native_name: str
    native_dtype: str
    perm: tuple[int, ...] | None = None
    scale: float = 0.0
    zero_point: int = 0


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One loadable form of the model.

    Attributes:
        engine: the engine that loads it (``onnxruntime``, ``openvino``, ``tflite``, ``coreml``, ``tensorrt``, ``tensorrt-rtx``).
        path: file or directory inside the bundle, with ``/``.
        precision: ``fp32`` or ``fp16``.
        inputs: one binding per signature input, same order.
        outputs: one binding per signature output, same order.
        options: engine settings (``threads``, ``execution_mode``, …), strings as the engine's module documents them.
    """

    engine: str
    path: str
    precision: str
    inputs: tuple[TensorBinding, ...]
    outputs: tuple[TensorBinding, ...]
    options: dict[str, str] = {}


class OutputMetrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far one output is from the source model in float32, over all samples.

    Attributes:
        max_abs: largest absolute error.
        max_rel: largest absolute error divided by the largest absolute value of the reference output.
        cosine: smallest cosine similarity of any sample.
        top1_agreement: share of rows with the same arg-max; ``None`` where the output has no class axis.
        probabilities: every row along the last axis is a probability distribution.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float | None = None
    probabilities: bool = False


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was proven, by what, and what is left to the device.

    Attributes:
        verified: how far the proof went, see `Verified`.
        engine: name and version of what ran (``onnxruntime 1.31.1``), or of the parser that read it.
        samples: how many samples ran. For ``parser`` they ran through ONNX Runtime on the lowered graph, as the notes say; 0 when nothing ran.
        sample_source: ``calibration`` (the user's data) or ``synthetic`` (seeded random).
        metrics: per output name.
        thresholds: the limits that applied.
        notes: plain sentences for the user.
        left_to_device: what `edgekit finalize` still has to prove there.
    """

    verified: Verified
    engine: str
    samples: int
    sample_source: str
    metrics: dict[str, OutputMetrics]
    thresholds: dict[str, float]
    notes: tuple[str, ...] = ()
    left_to_device: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model came from."""

    filename: str
    format: str
    sha256: str
    opset: int


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file of the bundle."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``bundle.json``. Holds nothing that changes between two equal builds (no time, no host).

    ``fallback`` is loaded when ``artifact`` cannot be (no TensorRT yet, no accelerator); ``fixed`` records dimensions that
    were symbolic in the source model and are fixed here (``{"N": 1}``).
    """

    format: str
    name: str
    version: str
    device: str
    precision: str
    signature: Signature
    artifact: Artifact
    verification: Verification
    source: Source
    tools: dict[str, str]
    fixed: dict[str, int] = {}
    fallback: Artifact | None = None
    files: dict[str, FileEntry] = {}
