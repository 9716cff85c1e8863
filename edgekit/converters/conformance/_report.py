"""Results as files: JSON to keep and compare, Markdown to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit._storage_errors import storage_errors
from edgekit.bundle import write_file
from edgekit.converters.conformance._results import Conformance
from edgekit.errors import UsageError

__all__ = ["read_results", "support_matrix", "write_results"]


def write_results(path: Path, results: Conformance) -> None:
    """Write results as ``.json`` (to keep) or ``.md`` (the support table of this one device).

    Raises:
        UsageError: another suffix. StorageError: the file cannot be written.
    """
    if path.suffix == ".md":
        text = support_matrix([results])
    elif path.suffix == ".json":
        text = msgspec.json.format(msgspec.json.encode(results), indent=1).decode() + "\n"
    else:
        raise UsageError(f"--output {path}", f"suffix {path.suffix or '(none)'}", "a name that ends in .json or .md")
    write_file(path, text.encode())


def read_results(path: Path) -> Conformance:
    """Read what `write_results` wrote as JSON.

    Raises:
        UsageError: not such a file. StorageError: it cannot be read.
    """
    with storage_errors(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=Conformance)
    except msgspec.DecodeError as exc:
        raise UsageError(str(path), f"not a conformance result: {exc}", "a file of edgekit conformance -o FILE.json") from exc


def support_matrix(results: Sequence[Conformance]) -> str:
    """The table of all operators and targets in Markdown: counts first, then every operator, then why cases were refused."""
    lines = ["# Support matrix", "", *_introduction(results), "", *_summary(results), "", *_operators(results)]
    for entry in results:
        lines += ["", *_reasons(entry)]
    return "\n".join(lines) + "\n"


def _introduction(results: Sequence[Conformance]) -> list[str]:
    count = max(len(entry.cases) for entry in results)
    return [
        f"ONNX's own backend tests (node, simple, pytorch-converted, pytorch-operator; onnx {results[0].tools['onnx']}), as far as they have dense",
        f"numeric or bool tensors and ONNX Runtime itself passes them: {count} cases. The first input is live, all others are weights. Each case goes",
        "through `edgekit build`, is loaded and run on the recorded input, and must give the recorded outputs (the suite's own tolerances, equal",
        "dtypes and shapes). *Refused* is an error before any bundle exists that names the node and the reason; *failed* is everything else that",
        "is not right. Core ML cases run through the reference interpreter; TensorRT cases are parsed and built by TensorRT-RTX's parser and builder,",
        "and their lowered graph runs through ONNX Runtime, since no GPU is needed for these tables.",
    ]


def _summary(results: Sequence[Conformance]) -> list[str]:
    lines = ["| device | engine | passed | refused | failed | passed | versions |", "|---|---|---:|---:|---:|---:|---|"]
    for entry in results:
        share = entry.passed / max(len(entry.cases), 1)
        tools = ", ".join(f"{tool} {version}" for tool, version in entry.tools.items() if tool != "onnx")
        lines.append(
            f"| {entry.device} | {entry.engine} | {entry.passed} | {entry.refused} | {entry.failed} | {share:.1%} | {tools} |",
        )
    return lines


def _operators(results: Sequence[Conformance]) -> list[str]:
    """Cases passed of all, by operator and engine."""
    names = sorted({operator for entry in results for operator in entry.operators.values()})
    lines = [
        "## Operators: cases passed of all",
        "",
        f"| operator | {' | '.join(entry.engine for entry in results)} |",
        f"|---|{'---:|' * len(results)}",
    ]
    tables = [_by_operator(entry) for entry in results]
    for name in names:
        cells = [f"{passed}/{total}" if total else "-" for passed, total in (table.get(name, (0, 0)) for table in tables)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _by_operator(entry: Conformance) -> dict[str, tuple[int, int]]:
    total, passed = Counter(entry.operators.values()), Counter[str]()
    for name, operator in entry.operators.items():
        passed[operator] += entry.cases[name].verdict == "passed"
    return {operator: (passed[operator], total[operator]) for operator in total}


def _reasons(entry: Conformance) -> list[str]:
    """What did not pass, case by case."""
    rest = {name: outcome for name, outcome in entry.cases.items() if outcome.verdict != "passed"}
    if not rest:
        return [f"## {entry.engine} ({entry.device}): every case passed"]
    lines = [f"## {entry.engine} ({entry.device}): what does not pass", "", "| case | operator | verdict | reason |", "|---|---|---|---|"]
    for name, outcome in rest.items():
        reason = outcome.reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {name} | {entry.operators[name]} | {outcome.verdict} | {reason} |")
    return lines
