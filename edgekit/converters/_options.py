"""The options of a build, in one place: the Python functions, the command line and the build cache all read this."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from edgekit.bundle import Dim
from edgekit.errors import UnknownNameError

__all__ = ["BuildOptions", "Progress", "Shapes", "check_names", "silent"]

Progress = Callable[[str], None]
Shapes = Mapping[str, Sequence[Dim]]
Location = str | os.PathLike[str]


class BuildOptions(TypedDict, total=False):
    """What `edgekit.build` takes beside the model and the device.

    An option that is left out has the default that its comment says; whoever needs it asks with ``options.get(name, default)``. A new option is one line
    here, one in ``edgekit.cli._build``, and the call that uses it.
    """

    precision: str  # "auto" (default: fp16 where the profile calls it fast, else fp32), "fp32" or "fp16"
    calibration: Location | None  # file or folder of samples for the proof (`edgekit.converters._samples`); synthetic ones without it
    shapes: Shapes | None  # input name to sizes, for inputs with open dimensions
    output: Location | None  # directory or ``.edgekit`` file; a folder where several devices are built; the current folder by default
    name: str | None  # the bundle's name; the model's file name without its suffix by default
    model_version: str  # what a model repository serves it as; "1"
    progress: Progress | None  # called with a few words at each step
    isolate: bool  # heavy toolchains run in processes of their own (default), else in this one and without limits
    time_limit_s: float | None  # for a toolchain's work on one artifact; half an hour by default
    image_inputs: Sequence[str] | None  # per picture input what ``--image-input`` takes (`edgekit.converters.processing`)
    classes: Location | None  # file of class names, one a line
    top_k: int | None  # the best classes in place of all scores; 5 with ``classes``, 0 to carry the names only
    class_scores: str | None  # which output holds them, and what to add before ranking: ``OUTPUT=softmax``; "auto"
    nms: str | None  # suppression of a detector's boxes, as ``--nms`` takes it
    memory_limit_bytes: int | None  # for a toolchain's process; three quarters of the machine's memory by default


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
