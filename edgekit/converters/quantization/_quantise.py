"""From a normalised model and real samples to the int8 model of one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization._calibration import METHODS, Calibration, collect
from edgekit.converters.quantization._expand import expand
from edgekit.converters.quantization._ladder import Ladder, climb
from edgekit.converters.quantization._prepare import prepare
from edgekit.converters.quantization._scheme import Scheme
from edgekit.converters.quantization._write import write_quantised
from edgekit.errors import ModelError, UnknownNameError, UsageError, VerificationError

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._emitter import NormalisedModel
    from edgekit.converters.quantization._compress import Compression

__all__ = ["DEFAULT_AGREEMENT", "MAX_CALIBRATION", "Calibrated", "Quantization", "calibrate", "check_settings", "quantise"]

MAX_CALIBRATION = 300
"""Samples that ranges are collected on. NNCF takes 300 by default, NVIDIA's ModelOpt advises 500 for CNNs; beyond a few hundred, ranges hardly move."""

DEFAULT_AGREEMENT = 0.99
"""Agreement that int8 has to keep: one answer in a hundred may differ, the 1 % that int8 is usually allowed to lose."""

_PRODUCTS_PER_RUNG = 8 * 10**9  # multiplications of one measurement, about two seconds of one core in the simulation
_FEWEST, _MOST = 8, 64  # samples that one measurement takes
_ENOUGH = 32  # samples below which a range may be an accident: a value in ten thousand is not seen
_CONFIRMED = 128  # samples that a set of layers must hold on in the end: the first number that can tell 1 %

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibrated:
    """What all engines share.

    Attributes:
        model: the prepared float32 model, see `prepare`.
        calibration: ranges of its tensors.
        samples: what the ladder measures on; a part of the calibration samples.
        few: how many of the first take part in every step.
    """

    model: onnx.ModelProto
    calibration: Calibration
    samples: Sequence[Inputs] = ()
    few: int = 0


@dataclass(frozen=True)
class Quantization:
    """The int8 form of a model for one engine.

    Attributes:
        model: with Q/DQ pairs; the source's signature.
        scheme: how it is written.
        kept: layers that stay in float.
        integer_nodes: names of the nodes that are int8.
        share: of all multiplications with weights, those in int8; of the layers where no sizes are known.
        report: JSON-able: calibration, ladder, scheme.
        notes: plain sentences for the user.
        compression: set where weights are compressed and nothing is int8.
    """

    model: NormalisedModel
    scheme: Scheme
    kept: tuple[str, ...] = ()
    integer_nodes: frozenset[str] = frozenset()
    share: float = 1.0
    report: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compression: Compression | None = None


def check_settings(method: str, min_agreement: float) -> None:
    """Refuse settings that cannot be.

    Raises:
        UnknownNameError, UsageError: says what could.
    """
    if method not in ("auto", *METHODS):
        raise UnknownNameError("--calibration-method", method, ("auto", *METHODS))
    if not 0 < min_agreement <= 1:
        raise UsageError("--min-agreement", f"{min_agreement:g}", "a share above 0 and up to 1", f"the default is {DEFAULT_AGREEMENT:g}")


def calibrate(normalised: NormalisedModel, samples: Sequence[Inputs], source: str = "") -> Calibrated:
    """Prepare the model and collect ranges, once for every engine.

    Args:
        normalised: the float32 model.
        samples: real inputs, at most `MAX_CALIBRATION` of use.
        source: where they came from, for the report.

    Raises:
        ModelError: beyond protobuf's 2 GB, where int8 is not written.
    """
    if normalised.weights is not None:
        raise ModelError("int8", "the model is larger than 2 GB", "a smaller one", "build with --precision fp32 or fp16")
    model = prepare(normalised.model)
    calibration = collect(model, samples[:MAX_CALIBRATION], source=source)
    few = _measured(model, len(samples))
    every = max(1, min(_CONFIRMED, len(samples)) // few)
    chosen = [samples[index * len(samples) // (few * every)] for index in range(few * every)]
    # The few come first. Spread as golden samples are, those are among them: what the proof will judge is judged here before.
    ordered = [*chosen[::every], *(sample for index, sample in enumerate(chosen) if index % every)]
    return Calibrated(model, calibration, ordered, few)


def _measured(model: onnx.ModelProto, available: int) -> int:
    """How many samples the ladder measures on: fewer for models that take longer, and no clock in it, so that equal builds decide alike."""
    products = 1
    shapes = {value.name: value.type.tensor_type.shape for value in (*model.graph.value_info, *model.graph.output)}
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights and node.output[0] in shapes:
            outputs = int(np.prod([dim.dim_value or 1 for dim in shapes[node.output[0]].dim]))
            products += outputs * int(np.prod(weights[node.input[1]])) // max(1, max(weights[node.input[1]], default=1))
    wanted = max(_FEWEST, min(_MOST, _PRODUCTS_PER_RUNG // products)) // _FEWEST * _FEWEST
    return min(available, wanted)


def quantise(
    normalised: NormalisedModel,
    calibrated: Calibrated,
    scheme: Scheme,
    *,
    method: str = "auto",
    min_agreement: float = DEFAULT_AGREEMENT,
    progress: Callable[[str], None] | None = None,
) -> Quantization:
    """The int8 model of one engine, with the layers in float that the agreement target asks for.

    Raises:
        ModelError: nothing in the model can be int8.
        VerificationError: the target holds only with every layer in float.
    """
    if progress is not None:
        progress(f"choosing int8 layers for {scheme.engine}")
    prepared, calibration = expand(calibrated.model, calibrated.calibration, scheme.expanded)
    ladder = climb(prepared, normalised.signature, calibration, scheme, calibrated.samples, min_agreement, method, few=calibrated.few)
    if not ladder.plan.layers:
        raise ModelError(
            "int8", "no convolution or matrix product with constant weights is in the model", "", "build with --precision fp32 or fp16"
        )
    if not ladder.quantised:
        tried = [rung for rung in ladder.rungs if len(rung.kept) < len(ladder.plan.layers)]
        best = max(tried, key=lambda rung: rung.agreement)
        raise VerificationError(
            "int8",
            f"agreement {min_agreement:g} holds only with all {len(ladder.plan.layers)} layers in float; with {len(best.kept)} in float it is {best.agreement:.4f}",
            "",
            "give more calibration samples, lower --min-agreement, or build with --precision fp16 or fp32",
        )
    model = write_quantised(prepared, ladder.plan, ladder.kept)
    report = {"scheme": _describe(scheme), "target": min_agreement, **ladder.report(), "calibration": calibrated.calibration.report()}
    written = replace(normalised, model=model, opset=_opset(model), native=None)
    integer = frozenset(name for layer in ladder.plan.layers if layer.name not in ladder.kept for name in layer.nodes)
    notes = _notes(ladder, min_agreement, calibrated.calibration.samples)
    return Quantization(written, scheme, ladder.kept, integer, ladder.share, report, notes)


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _describe(scheme: Scheme) -> dict[str, object]:
    return {
        "activations": scheme.activation if scheme.activations else "float",
        "symmetric": scheme.symmetric,
        "weights": f"int8, symmetric, per channel, {scheme.weight_bits} bits",
        "bias": scheme.bias,
        "placement": "everything" if scheme.everything else "inputs",
    }


def _notes(ladder: Ladder, target: float, samples: int) -> tuple[str, ...]:
    text = f"int8: {ladder.quantised} of {len(ladder.plan.layers)} layers, agreement {ladder.agreement:.4f} on {ladder.samples} samples (target {target:g})"
    notes = [text]
    if samples < _ENOUGH:
        notes.append(f"int8 ranges come from {samples} sample(s) only: {_ENOUGH} or more real inputs make them reliable")
    if not ladder.kept:
        return tuple(notes)
    listed = ", ".join(ladder.kept[:5]) + (f" and {len(ladder.kept) - 5} more" if len(ladder.kept) > 5 else "")
    share = f" ({ladder.share:.0%} of the multiplications are int8)" if any(layer.products for layer in ladder.plan.layers) else ""
    return (*notes, f"{len(ladder.kept)} layer(s) stay in float: {listed}{share}")
