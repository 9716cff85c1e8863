"""``--state NAME_IN=NAME_OUT[:SHAPE]``: which output of a model is which input of its next request, and the proof that handing it on gives the source model's
numbers.

A proof with single samples says nothing about an error that grows from request to request, so a short sequence runs as well: once through the source model
with the state passed explicitly, once through the artifact with the state kept as the runtime keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from edgekit.bundle import Artifact, GoldenSample, Manifest, OutputMetrics, Signature, StatePair, TensorSpec
from edgekit.converters._emitters import process_of
from edgekit.converters._isolation import Guard, Tell
from edgekit.converters._samples import reference_run
from edgekit.converters._verify import judge
from edgekit.errors import RequestError, UnknownNameError, UsageError
from edgekit.runtime._compare import thresholds_for
from edgekit.runtime._states import States, Stream
from edgekit.runtime.engines import EngineOptions, open_engine

if TYPE_CHECKING:
    from edgekit.converters._delivery import Delivery
    from edgekit.converters._source import SourceModel

__all__ = ["StateProof", "bind_states", "prove_states", "run_sequence"]

STEPS = 8
"""Requests of the sequence that is run. An error that grows by a tenth with each has doubled by then."""
_FORM = "NAME_IN=NAME_OUT, or NAME_IN=NAME_OUT:1,64 where sizes are open"
_SHAPE = re.compile(r"(?:\d+(?:,\d+)*)?")

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class StateProof:
    """What was proven about a sequence.

    Attributes:
        states: of the signature.
        note: what the user should know.
        report: for ``report.json``.
        left_to_device: what is not proven.
    """

    states: tuple[StatePair, ...]
    note: str
    report: dict[str, object]
    left_to_device: tuple[str, ...] = ()

    def put_into(self, manifest: Manifest) -> Manifest:
        """A manifest that says so."""
        proof = manifest.verification
        return structs.replace(
            manifest,
            signature=structs.replace(manifest.signature, states=self.states),
            verification=structs.replace(
                proof, notes=(*proof.notes, self.note), left_to_device=(*proof.left_to_device, *self.left_to_device)
            ),
        )


# --- what the user says --------------------------------------------------------------------------------------------------------------------


def bind_states(signature: Signature, asked: Sequence[str]) -> tuple[StatePair, ...]:
    """The states that ``--state`` names, checked against a signature.

    Raises:
        UsageError: another form, a name twice, types or sizes that do not fit, an open size without a number, no input left.
        UnknownNameError: no such input or output.
    """
    pairs: list[StatePair] = []
    for text in asked:
        pair = _pair(signature, text)
        for known in pairs:
            if known.input == pair.input or known.output == pair.output:
                raise UsageError(f"--state {text}", f"beside {known.input}={known.output}", "each input and each output once")
        pairs.append(pair)
    if pairs and len(pairs) == len(signature.inputs):
        raise UsageError("--state", "every input is a state", "an input that the caller sends", "leave one out")
    return tuple(pairs)


def _pair(signature: Signature, text: str) -> StatePair:
    thing = f"--state {text[:160]}"
    inputs, outputs = ({spec.name: spec for spec in side} for side in (signature.inputs, signature.outputs))
    # A name may hold "=" and end in ":0", so the names that there are decide.
    source = next((name for name in inputs if text.startswith(f"{name}=")), text.partition("=")[0])
    rest = text[len(source) + 1 :]
    if "=" not in text or not source or not rest:
        raise UsageError(thing, "not of that form", _FORM, "for example --state state=stateN")
    if source not in inputs:
        raise UnknownNameError("input of --state", source, inputs)
    target, colon, sizes = (rest, "", "") if rest in outputs else rest.rpartition(":")
    if not target or (colon and not _SHAPE.fullmatch(sizes)):
        target, colon, sizes = rest, "", ""
    if target not in outputs:
        raise UnknownNameError("output of --state", target, outputs)
    given = tuple(int(size) for size in sizes.split(",") if size) if colon else None
    return StatePair(source, target, _shape(thing, inputs[source], outputs[target], given))


def _shape(thing: str, source: TensorSpec, target: TensorSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that a sequence begins with."""
    if source.dtype != target.dtype or source.dtype == "string":
        raise UsageError(thing, f"{source.describe()} and {target.describe()}", "the same type of numbers on both sides")
    if len(source.shape) != len(target.shape) or any(
        isinstance(one, int) and isinstance(other, int) and one != other for one, other in zip(source.shape, target.shape, strict=True)
    ):
        raise UsageError(thing, f"{source.describe()} and {target.describe()}", "the same sizes on both sides")
    if given is None:
        if not source.is_static:
            sizes = ",".join(str(dim) if isinstance(dim, int) else "1" for dim in source.shape)
            raise UsageError(
                thing, f"{source.describe()} has open sizes", "what the first request begins with", f"give {source.name}=…:{sizes}"
            )
        return tuple(int(dim) for dim in source.shape)
    if len(given) != len(source.shape) or any(isinstance(dim, int) and dim != size for dim, size in zip(source.shape, given, strict=True)):
        raise UsageError(thing, f"sizes {list(given)}", f"what fits {source.describe()}")
    return given


# --- the proof -----------------------------------------------------------------------------------------------------------------------------


def prove_states(states: tuple[StatePair, ...], source: SourceModel, delivery: Delivery, guard: Guard) -> StateProof:
    """Run a sequence through the artifact where its engine runs here, else through its fallback, and hold it to the artifact's limits.

    Raises:
        VerificationError: the numbers are not those of the source model with its state passed explicitly.
        UsageError: no sample fits the states' sizes.
    """
    job, emitted = delivery.job, delivery.emitted
    signature = structs.replace(job.source.signature, states=states)
    here = delivery.proof.verified == "host"
    artifact = emitted.artifact if here else emitted.fallback
    names = ", ".join(f"{pair.input} from {pair.output}" for pair in states)
    left = f"a sequence of requests with the state handed on ({names})"
    if artifact is None:
        return StateProof(states, f"no sequence of requests ran here: states ({names}) are handed on as the runtime does", {}, (left,))
    sequence = _sequence(signature, [sample.inputs for sample in job.samples])
    wanted: list[GoldenSample] = guard.call(
        "onnxruntime", f"model {source.path.name}", f"{__name__}:run_source", source, signature, sequence
    )
    found: list[Inputs] = guard.call(
        process_of(artifact.engine),
        f"target {artifact.engine}",
        f"{__name__}:run_sequence",
        job.directory / artifact.path,
        artifact,
        signature,
        sequence,
    )
    held_to = job.held_to if here else artifact.precision
    thing = f"{artifact.path} for {job.profile.id} ({artifact.precision}), a sequence of {STEPS} requests with its state handed on"
    metrics: dict[str, OutputMetrics] = judge(thing, wanted, found, signature, held_to)
    which = "" if here else "the fallback's "
    note = f"{which}sequence of {STEPS} requests with {names} gives the source model's numbers"
    report: dict[str, object] = {
        "states": {"steps": STEPS, "engine": artifact.engine, "metrics": metrics, "thresholds": thresholds_for(held_to)}
    }
    return StateProof(states, note, report, () if here else (left,))


def _sequence(signature: Signature, samples: Sequence[Inputs]) -> list[Inputs]:
    """The true inputs of `STEPS` requests, from samples that fit the states' sizes."""
    states = States(signature)
    fitting = []
    for sample in samples:
        inputs = {name: array for name, array in sample.items() if name not in states.inputs}
        try:
            signature.check({**inputs, **states.initial})
        except RequestError:  # a sample with two rows, say, where a sequence has one
            continue
        fitting.append(inputs)
    if not fitting:
        shapes = ", ".join(f"{pair.input} {list(pair.shape)}" for pair in signature.states)
        raise UsageError(
            "--state", f"no sample fits {shapes}", "sizes that go with those of the other inputs", "give other sizes, or --calibration"
        )
    return [fitting[index % len(fitting)] for index in range(STEPS)]


def run_source(tell: Tell, source: SourceModel, signature: Signature, sequence: Sequence[Inputs]) -> list[GoldenSample]:
    """In ONNX Runtime's process: what the source model answers, each state passed on explicitly."""
    tell("running a sequence through the source model")
    run = reference_run(source, signature)
    state, answers = dict(States(signature).initial), []
    for inputs in sequence:
        outputs = run({**inputs, **state})
        state = {pair.input: outputs[pair.output] for pair in signature.states}
        answers.append(GoldenSample(inputs, outputs))
    return answers


def run_sequence(tell: Tell, path: Path, artifact: Artifact, signature: Signature, sequence: Sequence[Inputs]) -> list[Inputs]:
    """In the engine's process: what an artifact answers, states included, with the state kept as the runtime keeps it."""
    tell("proving a sequence of requests")
    engine = open_engine(path, artifact, signature, EngineOptions(threads=1))
    try:
        stream = Stream(engine.run, States(signature))
        answers = []
        for inputs in sequence:
            outputs = stream.run(inputs)
            state = stream.state
            answers.append(outputs | {pair.output: state[pair.input] for pair in signature.states})
        return answers
    finally:
        engine.close()
