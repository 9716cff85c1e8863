"""Which precision a bundle ends up in: the best one, in the order of `Target.precisions`, whose numbers hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgekit.converters._delivery import Delivery, deliver
from edgekit.converters._emitter import EmitJob
from edgekit.converters._isolation import Guard
from edgekit.converters._quantising import compressed, quantised
from edgekit.converters._shared_model import SharedModel
from edgekit.converters._targets import Target
from edgekit.converters.quantization import (
    COMPRESSING_ENGINES,
    DEFAULT_AGREEMENT,
    Quantization,
    parse_compression,
    scheme_for,
)
from edgekit.errors import ModelError, UnsupportedOperatorsError, UsageError, VerificationError

__all__ = ["deliver_best"]

_WORTH_IT = 0.5
"""Share of the multiplications that must be int8 for ``auto`` to take it: below, conversions between int8 and float eat what it gains."""


def deliver_best(model: SharedModel, target: Target, job: EmitJob, guard: Guard) -> Delivery:
    """Write, run and judge an artifact in the first precision that holds.

    Args:
        model: gives the calibration, made once for all devices.
        target: with its precisions.
        job: of the first precision; its directory is empty. Artifact files go there, or below it where several precisions are tried.
        guard: how toolchains are called.

    Raises:
        what `deliver` and `quantise` raise for the last precision.
    """
    passed_over: list[str] = []
    for position, precision in enumerate(target.precisions):
        attempt = job
        if len(target.precisions) > 1:
            attempt = replace(job, precision=precision, directory=job.directory / precision)
            attempt.directory.mkdir()
        try:
            return _delivered(model, target, attempt, guard, passed_over, worth_it=position + 1 < len(target.precisions))
        except UnsupportedOperatorsError:
            raise  # another precision has the same operators
        except (VerificationError, ModelError, UsageError) as exc:
            if position + 1 == len(target.precisions):
                raise
            passed_over.append(f"{precision} was not taken: {exc.found}")
            guard.tell(f"{precision} does not hold; trying {target.precisions[position + 1]}")
    raise AssertionError  # the loop returns or raises


def _delivered(model: SharedModel, target: Target, job: EmitJob, guard: Guard, passed_over: list[str], *, worth_it: bool) -> Delivery:
    quantization = _changed(model, job, guard)
    if quantization is not None and worth_it and quantization.share < _WORTH_IT:
        raise VerificationError("int8", f"only {quantization.share:.0%} of the multiplications would be int8 within the agreement target")
    delivery = deliver(target.emitter, replace(job, quantization=quantization), guard)
    notes = (*(quantization.notes if quantization is not None else ()), *passed_over)
    report = dict(delivery.report)
    if quantization is not None:
        report["int8" if quantization.compression is None else "compression"] = quantization.report
    if passed_over:
        report["passed_over"] = list(passed_over)
    return replace(delivery, report=report, emitted=replace(delivery.emitted, notes=(*notes, *delivery.emitted.notes)))


def _changed(model: SharedModel, job: EmitJob, guard: Guard) -> Quantization | None:
    """The int8 form of the job's model, or the one with compressed weights; None when it is written as it is.

    Raises:
        UsageError: weights are to be compressed where that saves nothing, or in int8 as well.
    """
    wanted = parse_compression(given) if (given := model.options.get("compress")) else None
    if wanted is None:
        return _quantised(model, job, guard) if job.precision == "int8" else None
    thing = f"--compress {wanted.describe()}"
    if wanted.kind not in COMPRESSING_ENGINES.get(job.claim.name, ()):
        engines = ", ".join(sorted(COMPRESSING_ENGINES))
        raise UsageError(
            thing, f"{job.claim.name} stores such weights no smaller and runs them no faster", f"a device of {engines}", "leave it out"
        )
    if job.precision == "int8":
        raise UsageError(thing, "with --precision int8", "fp16 or fp32", "choose one of the two: int8 weights are compressed already")
    return _called(guard, job, compressed, model.calibrated(job.source), wanted, model.options.get("min_agreement") or DEFAULT_AGREEMENT)


def _quantised(model: SharedModel, job: EmitJob, guard: Guard) -> Quantization:
    options = model.options
    method, agreement = options.get("calibration_method") or "auto", options.get("min_agreement") or DEFAULT_AGREEMENT
    return _called(guard, job, quantised, model.calibrated(job.source), scheme_for(job.claim.name, job.profile), method, agreement)


def _called(guard: Guard, job: EmitJob, function: Callable[..., Quantization], *arguments: object) -> Quantization:
    """In ONNX Runtime's process, which does nearly all of it, within the limits of a toolchain."""
    name = f"{function.__module__}:{function.__name__}"
    found: Quantization = guard.call("onnxruntime", f"target {job.claim.name}", name, job.source, *arguments)
    return found
