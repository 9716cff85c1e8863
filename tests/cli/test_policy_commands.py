"""``edgekit policy check``: what holds for each model, and one line for a file that is wrong."""

from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/policy.toml"


def test_it_prints_what_holds(edgekit):
    done = edgekit("policy", "check", EXAMPLE, "--model", "unnamed")
    assert done.status == 0, done.err
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert "edge-only" in rows["faces"]
    assert "40 ms" in rows["faces"]
    assert "probabilities < 0.2" in rows["defects"]
    assert "5.00% of 4 (cloud)" in rows["defects"]
    assert "1.00% of 9" in rows["plates"]
    assert rows["unnamed"].split()[1:] == rows["(others)"].split()[1:]
    assert "budget per hour: 20,000 requests, 5.0 GB" in done.out
    assert "budget per day: $5.00" in done.out


def test_it_tells_scripts(edgekit):
    told = edgekit("policy", "check", EXAMPLE, "--json").json
    assert told["valid"] is True
    assert told["models"]["faces"]["data"] == "edge-only"
    assert told["default"]["priority_sla_ms"] == {"3": 2000.0}


def test_an_empty_file_limits_nothing(edgekit, tmp_path):
    (tmp_path / "p.toml").write_text("")
    out = edgekit("policy", "check", tmp_path / "p.toml").out
    assert "router's" in out
    assert "budget per hour: no limit" in out


def test_a_wrong_file_is_one_line(edgekit, tmp_path):
    (tmp_path / "p.toml").write_text("[default]\nslas_ms = 5\n")
    done = edgekit("policy", "check", tmp_path / "p.toml")
    assert done.status == 2
    assert "p.toml line 2: key of default: unknown name 'slas_ms'; expected one of sla_ms" in done.error
    missing = edgekit("policy", "check", tmp_path / "none.toml")
    assert (missing.status, missing.error.count("\n")) == (1, 0)
    assert "no such file" in missing.error


WRONG = {
    "a state without a policy": (["--budget-state", "b.json"], 2, "--budget-state: given without --policy"),
    "no such file": (["--policy", "{folder}/none.toml"], 1, "none.toml: no such file"),
    "a wrong file": (["--policy", "{folder}/wrong.toml"], 2, "wrong.toml line 1: default.sla_ms: 0; expected milliseconds"),
    "a damaged ledger": (["--policy", "{folder}/right.toml", "--budget-state", "{folder}/wrong.toml"], 1, "not a ledger of budgets"),
}


@pytest.mark.parametrize("what", WRONG)
def test_route_refuses_in_one_line(edgekit, tmp_path, what):
    (tmp_path / "wrong.toml").write_text("default.sla_ms = 0")
    (tmp_path / "right.toml").write_text("budget.per_day.dollars = 3")
    flags, status, line = WRONG[what]
    done = edgekit("route", "--edge", "http://127.0.0.1:9", "--sla-ms", "50", *(flag.format(folder=tmp_path) for flag in flags))
    assert done.status == status
    assert line in done.error
    assert "\n" not in done.error
