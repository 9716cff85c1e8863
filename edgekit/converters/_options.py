"""The options of a build, in one place: the Python functions, the command line and the build cache all read this."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from edgekit.bundle import Dim
from edgekit.errors import UnknownNameError

__all__ = ["OF_THE_SOURCE", "WITHOUT_EFFECT", "BuildOptions", "Progress", "Shapes", "check_names", "silent"]

Progress = Callable[[str], None]
Shapes = Mapping[str, Sequence[Dim]]
Location = str | os.PathLike[str]


class BuildOptions(TypedDict, total=False):
    """What `edgekit.build` takes beside the model and the device.

    An option that is left out has the default that its comment says; whoever needs it asks with ``options.get(name, default)``. A new option is one line
    here, one in ``edgekit.cli._build``, and the call that uses it.
    """

    precision: str  # "auto" (default: the best that the profile calls fast; int8 only with ``calibration``), "fp32", "fp16" or "int8"
    calibration: Location | None  # samples for the proof and for int8's ranges (`edgekit.converters._samples`); synthetic ones without it
    calibration_method: str | None  # how int8's ranges are chosen: one of `quantization.METHODS`, or "auto" (default) for the best of them
    compress: (
        str | None
    )  # "prune=SHARE", "N:M" or "palette=BITS": smaller weights where the engine stores them smaller; needs ``calibration``
    min_agreement: float | None  # what int8 must keep of the float model's answers; 0.99 by default
    shapes: Shapes | None  # input name to sizes, for inputs with open dimensions
    output: Location | None  # directory or ``.edgekit`` file; a folder where several devices are built; the current folder by default
    signature: str | None  # of a SavedModel with several; its only one or ``serving_default`` without it
    example_inputs: object  # what a torch module is called with: a tensor or array, a sequence of them, or a dict by argument name
    dynamic_shapes: object  # of a torch module, as `torch.onnx.export` takes them; all sizes are fixed without
    name: str | None  # the bundle's name; the model's file name without its suffix by default
    model_version: str  # what a model repository serves it as; "1"
    progress: Progress | None  # called with a few words at each step
    isolate: bool  # toolchains run in processes of their own (default), else in this one and without limits
    time_limit_s: float | None  # for a toolchain's work on one artifact; half an hour by default
    image_inputs: Sequence[str] | None  # per picture input what ``--image-input`` takes (`edgekit.converters.processing`)
    classes: Location | None  # file of class names, one a line
    top_k: int | None  # the best classes in place of all scores; 5 with ``classes``, 0 to carry the names only
    class_scores: str | None  # which output holds them, and what to add before ranking: ``OUTPUT=softmax``; "auto"
    states: Sequence[str] | None  # per state what ``--state`` takes (`edgekit.converters._states`)
    nms: str | None  # suppression of a detector's boxes, as ``--nms`` takes it
    memory_limit_bytes: int | None  # for a toolchain's process; three quarters of the machine's memory by default
    jobs: int | None  # devices that are built at the same time; as many as there are cores by default
    cache: bool  # take what was built before from the same input and options, and keep this build (default)
    reproducer: Location | Literal[False] | None  # folder for what a failed build leaves; beside the output by default, False for none


WITHOUT_EFFECT = frozenset({"output", "progress", "isolate", "time_limit_s", "memory_limit_bytes", "jobs", "cache", "reproducer"})
"""Options that do not change what is in a bundle; all others are part of the cache's key."""

OF_THE_SOURCE = frozenset(
    {
        "signature",
        "example_inputs",
        "dynamic_shapes",
        "shapes",
        "calibration",
        "name",
        "model_version",
        "image_inputs",
        "classes",
        "top_k",
        "class_scores",
        "nms",
        "states",
    }
)
"""Options that speak of the source model as a whole: a part of its graph (a reproducer) is built without them."""


def check_names(options: Mapping[str, object]) -> None:
    """Refuse a name that is no option; a misspelt keyword must not be ignored.

    Raises:
        UnknownNameError: with the nearest names.
    """
    for name in options:
        if name not in BuildOptions.__annotations__:
            raise UnknownNameError("build option", name, BuildOptions.__annotations__)


def silent(_: str) -> None:
    """The progress of who did not ask for any."""
