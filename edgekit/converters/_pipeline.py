"""One device's bundle: emitted, proven and written, or an error and what repeats it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit.bundle import Bundle, write_bundle
from edgekit.converters import processing
from edgekit.converters._delivery import WrongNumbersError
from edgekit.converters._emitter import EmitJob
from edgekit.converters._isolation import Guard
from edgekit.converters._large import refuse_large
from edgekit.converters._options import BuildOptions
from edgekit.converters._precision_choice import deliver_best
from edgekit.converters._record import manifest_of, report_of
from edgekit.converters._reproducer import Reproduction, leave_reproducer
from edgekit.converters._scratch import scratch_folder
from edgekit.converters._shared_model import SharedModel
from edgekit.converters._states import bind_states, prove_states
from edgekit.converters._targets import Target
from edgekit.errors import BuildError

__all__ = ["build_bundle"]


def build_bundle(model: SharedModel, target: Target, guard: Guard, rebuild: Callable[[Path, BuildOptions], None] | None) -> Bundle:
    """Build for one device.

    Args:
        model: shared with the other devices of the command.
        target: the device, its precision and where the bundle goes.
        guard: how toolchains are called.
        rebuild: builds a part of a failing model with options; None leaves no reproducer.

    Raises:
        BuildError: names the reproducer. All else as `edgekit.build`.
    """
    normalised, samples = model.form(target.emitter.static_only or target.profile.engine.static_shapes, target.emitter.batch_probes)
    refuse_large(normalised, target.emitter.engine, target.precision)
    options, source = model.options, model.source()
    states = bind_states(normalised.signature, options.get("states") or ())
    name = options.get("name") or model.path.stem
    with scratch_folder("build") as folder:
        job = EmitJob(name, normalised, target.profile, target.profile.engine, target.precision, folder, samples.samples)
        try:
            delivery = deliver_best(model, target, job, guard)
        except BuildError as exc:
            if rebuild is None:
                raise
            suspect = exc.place.index if isinstance(exc, WrongNumbersError) else -1
            asked: BuildOptions = {**options, "precision": exc.precision or target.precision}
            raise leave_reproducer(exc, job, suspect, Reproduction(target.given, target.destination, asked, rebuild, guard.tell)) from exc
        manifest = manifest_of(name, options.get("model_version", "1"), source, samples, delivery)
        report = report_of(source, samples, delivery)
        if states:
            proven = prove_states(states, source, delivery, guard)
            manifest, report = proven.put_into(manifest), report | proven.report
        processing.write_labels(source, delivery.job.directory)
        guard.tell(f"writing {target.destination}")
        return write_bundle(target.destination, manifest, delivery.job.directory, samples.samples, report)
