"""What a run found, as data that can be stored and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import msgspec

from edgekit.converters._emitters import emitter_for
from edgekit.converters.conformance._cases import Case, scope
from edgekit.converters.conformance._judge import Verdict, Word
from edgekit.converters.conformance._run import Limits, run_cases
from edgekit.device_profiles import load_profile
from edgekit.errors import UsageError

__all__ = ["Conformance", "Outcome", "conformance", "operators_of"]

_TOOLS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tflite": ("tensorflow-cpu", "ai-edge-litert"),
    "coreml": ("coremltools",),
    "tensorrt": ("tensorrt-rtx-cu13-libs",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs",),
}


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How one case ended, and why when it did not pass."""

    verdict: Word
    reason: str = ""


class Conformance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device's results.

    Attributes:
        device: id of the profile.
        engine: its engine.
        precision: what the artifacts were built in.
        tools: versions of what shaped the results.
        operators: case name to the operator under test.
        passed, refused, failed: counts.
        cases: outcome of each case by name.
    """

    device: str
    engine: str
    precision: str
    tools: dict[str, str]
    passed: int
    refused: int
    failed: int
    cases: dict[str, Outcome]
    operators: dict[str, str]


def conformance(
    device: str,
    *,
    precision: str = "fp32",
    only: str = "",
    every: int = 1,
    jobs: int = 0,
    limits: Limits | None = None,
    progress: Callable[[str, Verdict], None] | None = None,
) -> Conformance:
    """Run ONNX's backend tests through the whole path of a device.

    Args:
        device: id or alias of a profile.
        precision: as for `build`; the suite's tolerances are made for fp32.
        only: regular expression; cases whose name it does not match are left out.
        every: run each n-th case only, for a quick look.
        jobs: workers; 0 takes one per core.
        limits: time and memory of one case.
        progress: called after each case, from several threads.

    Raises:
        UnknownNameError: no such device. UsageError: a bad pattern, or nothing left to run.
        EnvironmentMissingError: onnx or onnxruntime is not installed.
    """
    profile = load_profile(device)
    emitter_for(profile.engine.name)
    try:
        pattern = re.compile(only)
    except re.error as exc:
        raise UsageError(f"--only {only!r}", f"not a regular expression ({exc})", "for example --only 'conv|pool'") from exc
    everything = scope()
    cases = [case for case in everything if pattern.search(case.name)][:: max(every, 1)]
    if not cases:
        raise UsageError(f"--only {only!r}", f"none of {len(everything)} cases has such a name", "for example --only conv")
    verdicts = run_cases(cases, profile.id, precision=precision, jobs=jobs, limits=limits, progress=progress)
    return _results(profile.id, profile.engine.name, precision, cases, verdicts, operators_of(everything))


def _results(
    device: str, engine: str, precision: str, cases: Sequence[Case], verdicts: Mapping[str, Verdict], operators: Mapping[str, str]
) -> Conformance:
    words = [verdict.verdict for verdict in verdicts.values()]
    return Conformance(
        device,
        engine,
        precision,
        {tool: metadata.version(tool) for tool in ("onnx", *_TOOLS[engine])},
        words.count("passed"),
        words.count("refused"),
        words.count("failed"),
        {name: Outcome(verdict.verdict, verdict.reason) for name, verdict in verdicts.items()},
        {case.name: operators[case.name] for case in cases},
    )


def operators_of(cases: Sequence[Case]) -> dict[str, str]:
    """Case name to the operator under test.

    The suite holds many operators twice: as themselves and, with ``_expanded`` in the name, as their function's body. A body stands under
    its operator. Graphs of several operators stand under their suite.
    """
    single = {case.name: case.operator for case in cases}
    found = {}
    for name, operator in single.items():
        base = name.partition("_expanded")[0]
        found[name] = f"{single[base]} (function body)" if base != name and base in single else operator
    return found
