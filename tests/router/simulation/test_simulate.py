"""`simulate` and ``edgekit simulate``: scenarios, seeds, the JSON that scripts read, wrong names."""

import json
import statistics

import pytest

from edgekit.cli._app import run as run_command
from edgekit.errors import UsageError
from edgekit.router.simulation import POLICIES, SCENARIOS, _run, make_trace, simulate

FIELDS = {
    "scenario",
    "policy",
    "fault",
    "requests",
    "sla_hit_rate",
    "attainment_vs_oracle",
    "cloud_share",
    "cloud_share_vs_oracle_least",
    "duplicates",
    "p50_ms",
    "p99_ms",
    "decision_us_p50",
    "decision_us_p99",
}


@pytest.fixture(autouse=True)
def short_tuning(monkeypatch):
    """The threshold's own trace is most of a short run."""
    monkeypatch.setattr(_run, "TUNING_REQUESTS", 200)
    _run._tuned_threshold.cache_clear()


def timeless(report):
    """All that does not depend on the machine's speed."""
    drop = ("decision_us_p50", "decision_us_p99")
    return [{name: getattr(row, name) for name in row.__struct_fields__ if name not in drop} for row in report.scenarios]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_its_seed(name):
    def key(trace):
        return [
            trace.arrive_s,
            trace.work_s,
            trace.jitter,
            trace.luck,
            trace.device.values,
            trace.uplink.values,
            trace.loss.times,
            [endpoint.work_s for endpoint in trace.endpoints],
        ]

    assert key(make_trace(name, 200, 5)) == key(make_trace(name, 200, 5))
    assert key(make_trace(name, 200, 5)) != key(make_trace(name, 200, 6))
    trace = make_trace(name, 2000, 5)
    assert len(trace) == 2000
    assert trace.arrive_s == sorted(trace.arrive_s)
    assert trace.fault is SCENARIOS[name].fault
    assert len(trace.endpoints) == SCENARIOS[name].endpoints


def test_the_common_figures_are_those_of_the_docstring():
    trace = make_trace("steady", 20_000, 1)
    assert len(trace) / trace.arrive_s[-1] == pytest.approx(150.0, rel=0.03)
    assert statistics.median(trace.work_s) == pytest.approx(0.010, rel=0.01)
    assert statistics.median(trace.endpoints[0].work_s) == pytest.approx(0.010, rel=0.01)
    heavy = make_trace("heavy-tail", 20_000, 1)
    assert statistics.fmean(heavy.work_s) == pytest.approx(0.010, rel=0.05)
    assert max(heavy.work_s) > 0.2


@pytest.mark.slow
def test_one_process_or_two_give_the_same_figures():
    asked = {"scenarios": ["cloud-down", "steady"], "policies": ["edgekit", "oracle", "random"], "requests": 300, "seeds": 2, "seed": 4}
    assert timeless(simulate(**asked, jobs=1)) == timeless(simulate(**asked, jobs=2))


def test_the_json_that_scripts_read(capfd):
    arguments = [
        "simulate",
        "--scenario",
        "steady",
        "--scenario",
        "brown-out",
        "--requests",
        "300",
        "--seeds",
        "1",
        "--seed",
        "3",
        "--jobs",
        "1",
    ]
    assert run_command([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["seed"] == 3
    assert [(row["scenario"], row["policy"]) for row in document["scenarios"]] == [
        (scenario, policy) for scenario in ("steady", "brown-out") for policy in POLICIES
    ]
    assert all(set(row) >= FIELDS for row in document["scenarios"])
    assert [row["fault"] for row in document["scenarios"][:: len(POLICIES)]] == [False, True]
    static = [row for row in document["scenarios"] if row["policy"] == "static-threshold"]
    assert all(row["parameters"]["threshold"] in _run.THRESHOLDS for row in static)
    assert {aim["scenario"] for aim in document["aims"]} == {"steady", "brown-out"}
    assert "steady: done" in err


def test_the_table_and_the_list_for_people(capfd):
    assert (
        run_command(["simulate", "--scenario", "steady", "--policy", "oracle", "--policy", "edgekit", "--requests", "200", "--jobs", "1"])
        == 0
    )
    out, _ = capfd.readouterr()
    assert out.splitlines()[0].startswith("scenario")
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["steady", "oracle"], ["steady", "edgekit"]]
    assert "aims met" in out
    assert run_command(["simulate", "--list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [entry["scenario"] for entry in listed["scenarios"]] == [*SCENARIOS]
    assert listed["policies"] == [*POLICIES]


def test_a_recorded_trace(tmp_path, capfd):
    path = tmp_path / "day.csv"
    lines = [f"{0.01 * turn},12,10,20" for turn in range(200)]
    path.write_text("\n".join(["arrival_s,device_ms,cloud_ms,round_trip_ms", *lines]))
    assert run_command(["simulate", "--trace", str(path), "--json", "--seeds", "1", "--jobs", "1"]) == 0
    rows = json.loads(capfd.readouterr().out)["scenarios"]
    assert {row["scenario"] for row in rows} == {str(path)}
    assert {row["requests"] for row in rows} == {200}
    oracle = next(row for row in rows if row["policy"] == "oracle")
    assert oracle["sla_hit_rate"] == 1.0


WRONG = {
    "scenario": (["--scenario", "steadi"], 2, "--scenario: unknown name 'steadi'; expected one of steady"),
    "policy": (["--policy", "best"], 2, "--policy: unknown name 'best'"),
    "both": (["--trace", "x.csv", "--scenario", "steady"], 2, "--trace: both a file and scenarios; expected one of them"),
    "no file": (["--trace", "none.csv"], 1, "none.csv: No such file or directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line(name, capfd):
    arguments, status, words = WRONG[name]
    assert run_command(["simulate", *arguments, "--jobs", "1"]) == status
    out, err = capfd.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"requests": 0}])
def test_nothing_to_run_is_refused(wrong):
    with pytest.raises(UsageError, match="1 or more"):
        simulate(**wrong)
