"""Operator conformance: ONNX's own backend tests through the whole path of a target."""

from edgekit.converters.conformance._cases import Case, scope
from edgekit.converters.conformance._judge import Verdict, judge_case
from edgekit.converters.conformance._report import read_results, support_matrix, write_results
from edgekit.converters.conformance._results import Conformance, Outcome, conformance, operators_of
from edgekit.converters.conformance._run import Limits, run_cases

__all__ = [
    "Case",
    "Conformance",
    "Limits",
    "Outcome",
    "Verdict",
    "conformance",
    "judge_case",
    "operators_of",
    "read_results",
    "run_cases",
    "scope",
    "support_matrix",
    "write_results",
]
