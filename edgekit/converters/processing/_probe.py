"""What a model answers to a few samples, before anything is put behind it: evidence about its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import structs

from edgekit.bundle import Dim, Signature
from edgekit.errors import ModelError

__all__ = ["answers"]

_SAMPLES = 3
_INTEGER_ENDS = (256, 8, 2, 1)  # exclusive; the first that the model takes: integers may be indices into small tables

Inputs = dict[str, np.ndarray]


def answers(
    run: Callable[[Inputs], Inputs], signature: Signature, shapes: Mapping[str, Sequence[Dim]], calibration: Path | None
) -> list[Inputs]:
    """Outputs by name of the user's first samples, else of synthetic ones.

    Args:
        run: the model with its picture steps, in float32.
        signature: of ``run``.
        shapes: as for a build.
        calibration: the user's samples.

    Raises:
        ShapeRequiredError: sizes that only the user can know, and no calibration.
        ModelError: the model cannot be run.
    """
    from edgekit.converters._normalise import resolve_shapes
    from edgekit.converters._samples import calibration_inputs, require_sizes, synthetic_inputs

    resolved = resolve_shapes(signature, shapes, static=False)
    signature = structs.replace(signature, inputs=tuple(structs.replace(spec, shape=resolved[spec.name]) for spec in signature.inputs))
    if calibration is not None:
        return [run(sample) for sample in calibration_inputs(calibration, signature)[:_SAMPLES]]
    require_sizes(signature)
    return [_first_taken(run, [synthetic_inputs(signature, index, 1, end) for end in _INTEGER_ENDS]) for index in range(_SAMPLES)]


def _first_taken(run: Callable[[Inputs], Inputs], candidates: Sequence[Inputs]) -> Inputs:
    """The answer to the first of several samples that the model takes; the last one's error when it takes none."""
    for sample in candidates[:-1]:
        try:
            return run(sample)
        except ModelError:
            continue
    return run(candidates[-1])
