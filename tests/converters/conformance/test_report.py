"""Results as files, and the committed ones."""

from collections import Counter
from pathlib import Path

import pytest

from edgekit.cli._app import run as command
from edgekit.converters.conformance import conformance, read_results, run_cases, support_matrix, write_results
from edgekit.errors import UsageError

pytestmark = pytest.mark.slow

STORED = sorted((Path(__file__).resolve().parents[3] / "docs/conformance").glob("*.json"))
# Shares that must not be lost again; what is reached stands in docs/support-matrix.md.
LEAST = {"onnxruntime": 1.0, "openvino": 0.99, "tflite": 0.97, "coreml": 0.95, "tensorrt": 0.97, "tensorrt-rtx": 0.97}


@pytest.fixture(scope="module")
def results():
    return conformance("generic-x86", only="^test_(abs|relu|clip)", jobs=1)


def test_counts_are_those_of_the_cases(results):
    counts = Counter(outcome.verdict for outcome in results.cases.values())
    assert (results.passed, results.refused, results.failed) == (counts["passed"], counts["refused"], counts["failed"])
    assert set(results.operators) == set(results.cases)


def test_results_survive_a_file(results, tmp_path):
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    write_results(tmp_path / "table.md", results)
    assert (tmp_path / "table.md").read_text() == support_matrix([results])


def test_the_table_conserves_the_counts(results):
    lines = [line for line in support_matrix([results]).splitlines() if line.startswith("| ") and "/" in line and "versions" not in line]
    shares = [line.split("|")[2].strip() for line in lines if line.split("|")[2].strip()[0].isdigit()]
    assert sum(int(share.split("/")[0]) for share in shares) == results.passed
    assert sum(int(share.split("/")[1]) for share in shares) == len(results.cases)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"device": 3}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match="not a conformance result"):
        read_results(tmp_path / "results.json")


def test_a_name_of_another_kind_is_refused_before_any_run(results, tmp_path):
    with pytest.raises(UsageError, match=r"\.json or \.md"):
        write_results(tmp_path / "results.txt", results)
    assert command(["conformance", "--device", "generic-x86", "-o", str(tmp_path / "results.txt")]) == 2
    assert not list(tmp_path.iterdir())


def test_the_command_prints_one_document(tmp_path, capsys):
    assert command(["--json", "conformance", "--device", "generic-x86", "--only", "^test_relu$", "-o", str(tmp_path / "r.json")]) == 0
    assert read_results(tmp_path / "r.json").passed == 1
    assert '"passed": 1' in capsys.readouterr().out


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_committed_results_hold_what_is_promised(path, cases):
    stored = read_results(path)
    assert set(stored.cases) == set(cases)
    assert stored.failed == 0
    assert stored.passed / len(stored.cases) >= LEAST[stored.engine]
    assert all(outcome.reason for outcome in stored.cases.values() if outcome.verdict == "refused")


@pytest.mark.slow
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_sample_of_the_committed_results_comes_out_again(path, cases):
    stored = read_results(path)
    offset = sum(path.stem.encode()) % 40
    chosen = [cases[name] for name in list(stored.cases)[offset::40] if name in cases]
    found = run_cases(chosen, stored.device, precision=stored.precision, jobs=1)
    assert {name: verdict.verdict for name, verdict in found.items()} == {case.name: stored.cases[case.name].verdict for case in chosen}
