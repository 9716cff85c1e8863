"""Running benchmarks: what each leaves, what is said when it cannot run, and that the rest goes on."""

import contextlib
import json
import time

import psutil
import pytest

from benchmarks import __main__ as command_line
from benchmarks import _catalogue, _machine, _runner
from benchmarks._catalogue import Entry

GOOD = "import json, sys; print(json.dumps({'arguments': sys.argv[1:]}))"
LEFT_OUT = "import json, sys; print(json.dumps({'left_out': {'triton': 'not here'}})); sys.exit(1)"
WRONG = "import json, sys; print(json.dumps({'wrong': 3})); sys.exit(1)"
SILENT = "import sys; print('no result'); sys.exit(3)"
HANGS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
open(__file__ + ".pid", "w").write(str(child.pid))
child.wait()
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of benchmarks, and one for their results."""
    monkeypatch.setattr(_catalogue, "FOLDER", tmp_path)
    for name, text in {"good": GOOD, "left_out": LEFT_OUT, "wrong": WRONG, "silent": SILENT, "hangs": HANGS}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path / "results"


def test_a_record_tells_what_ran_where(scripts):
    record, why = _runner.run(Entry("good", "a good one", fixed=("--model", "m")), ["--model", "m", "--rounds", "3"], scripts)
    assert why == ""
    assert _runner.read(scripts)["good"].document == record.document
    assert record.command == "python -m benchmarks good --rounds 3"
    assert record.document == {"arguments": ["--model", "m", "--rounds", "3"]}
    assert record.machine.cores >= 1
    assert record.exit_code == 0


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (Entry("none", "no script"), "none.py is not there"),
        (Entry("good", "a tool is missing", tools=("no-such-tool",)), "needs no-such-tool on the path"),
        (Entry("silent", "no result"), "ended with 3 and no result"),
    ],
    ids=["no script", "no tool", "no result"],
)
def test_what_leaves_no_result_says_why(scripts, entry, why):
    assert _runner.run(entry, [], scripts) == (None, why)
    assert not scripts.exists()


def test_what_takes_too_long_is_ended_with_all_that_it_started(scripts):
    assert _runner.run(Entry("hangs", "too long", limit_s=0.6), [], scripts) == (None, "not done within 0.6 s")
    started = scripts.parent / "hangs.py.pid"
    if started.exists():  # not yet, on a machine that is very busy
        ended(int(started.read_text()))


def ended(pid, limit_s=30.0):
    """Wait for a process to end; one that nobody waits for stays as a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        end = time.monotonic() + limit_s
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "still running"


def test_a_result_that_is_not_in_order_is_kept_and_told(scripts):
    assert _runner.run(Entry("left_out", ""), [], scripts)[1] == "left out: triton"
    assert _runner.run(Entry("wrong", ""), [], scripts)[1] == "ended with 1"
    assert set(_runner.read(scripts)) == {"left_out", "wrong"}


def test_the_rest_goes_on(scripts, capsys):
    _runner.run(Entry("good", ""), [], scripts)
    (scripts / "good.json").rename(scripts / "silent.json")  # of an earlier run
    outcomes = _runner.run_all([Entry("silent", "one"), Entry("good", "two", quick=("1",), full=("2",))], full=True, folder=scripts)
    assert [(each.name, each.why) for each in outcomes] == [("silent", "ended with 3 and no result"), ("good", "")]
    assert {name: record.document for name, record in _runner.read(scripts).items()} == {"good": {"arguments": ["2"]}}
    assert "silent: ended with 3 and no result" in capsys.readouterr().err
    assert "ok" in _runner.summary(outcomes)


def test_an_earlier_result_stays_when_a_run_leaves_none(scripts):
    _runner.run(Entry("good", ""), [], scripts)
    (scripts.parent / "good.py").write_text(SILENT)
    assert _runner.run(Entry("good", ""), [], scripts)[0] is None
    assert "good" in _runner.read(scripts)


def test_the_command_prints_the_record_and_tells_by_its_exit(scripts, monkeypatch, capsys):
    monkeypatch.setattr(_runner.run, "__defaults__", (scripts,))
    monkeypatch.setattr(command_line, "BY_NAME", {name: Entry(name, "") for name in ("good", "silent")})
    assert command_line.main(["good", "--rounds", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["document"] == {"arguments": ["--rounds", "2"]}
    assert command_line.main(["silent"]) == 1
    assert capsys.readouterr().err == "silent: ended with 3 and no result\n"


def test_without_a_name_benchmarks_are_listed_and_none_runs(capsys):
    assert command_line.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in _catalogue.BY_NAME:
        assert any(line.strip().startswith(f"{name} ") for line in lines), name


@pytest.mark.parametrize("arguments", [["no-such"], ["all", "no-such"], ["keep", "no-such"], ["page", "more"]])
def test_what_is_not_there_is_wrong_usage(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_runner, "RESULTS", tmp_path)
    assert command_line.main(arguments) == 2
    assert arguments[-1] in capsys.readouterr().err


def test_keeping_results_writes_the_page(tmp_path, monkeypatch, make_record, side_by_side, capsys):
    monkeypatch.setattr(_runner, "ROOT", tmp_path)
    monkeypatch.setattr(_runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(_runner, "KEPT", tmp_path / "docs" / "benchmarks")
    for name in ("serve", "serve_grpc"):
        _runner.write(make_record(name, side_by_side), _runner.RESULTS)
    _runner.write(make_record("builds", {"rows": []}), _runner.RESULTS)  # of which the page shows nothing
    assert command_line.main(["keep", "serve"]) == 0
    assert [path.name for path in _runner.KEPT.iterdir()] == ["serve.json"]
    assert "**edgekit**" in (tmp_path / "docs" / "benchmarks.md").read_text()
    assert (tmp_path / "docs" / "images" / "bench-http.svg").is_file()
    assert "wrote docs/benchmarks.md" in capsys.readouterr().out
    assert command_line.main(["keep"]) == 0
    assert {path.stem for path in _runner.KEPT.iterdir()} == {"serve", "serve_grpc"}


def test_every_entry_has_a_script_and_a_line():
    assert len(_catalogue.BY_NAME) == len({*_catalogue.BY_NAME})
    for entry in _catalogue.BY_NAME.values():
        assert entry.about, entry.name


def test_a_script_that_no_entry_names_is_found_by_its_docstring(tmp_path, monkeypatch):
    monkeypatch.setattr(_catalogue, "FOLDER", tmp_path)
    (tmp_path / "extra.py").write_text('"""What extra measures: this.\n\nMore.\n"""\n')
    assert _catalogue._unlisted() == (Entry("extra", "What extra measures", suite=False),)


def test_the_full_mode_has_other_arguments_than_the_quick_one():
    for entry in _catalogue.suite():
        if entry.full:
            assert entry.arguments(full=True) != entry.arguments(full=False), entry.name


@pytest.mark.parametrize(
    ("said", "version"),
    [("wrk debian/4.1.0-3 [epoll] Copyright", "4.1.0-3"), ("h2load nghttp2/1.52.0\n", "1.52.0"), ("", "unknown")],
)
def test_versions_are_read_from_what_tools_say(said, version):
    assert _machine.tool_version(said) == version


def test_the_model_of_the_processor_is_read():
    assert _machine.cpu_model("processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t: fpu\n") == "AMD EPYC 9R14"
    assert _machine.cpu_model("Processor: ARMv8\n") == ""
