"""The site as the simulator has it, and what a real run is held against."""

import math

import pytest

from benchmarks._network_scenarios import SCENARIOS, UNTIL
from benchmarks._site import Ran
from benchmarks._site_model import Drift, Load, Samples, predict, trace_of
from benchmarks.routing import Real, drift, row
from edgekit.cli.demo._load import Answer

LOAD = Load([0.5 * number for number in range(1, 60)], 30.0, 0.150, 200_000)
SAMPLES = Samples({0: [0.02], 1: [0.04], 2: [0.06], 4: [0.2]}, [0.05], 0.002, 1_000_000)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("policy", ["edgekit", "local-only", "cloud-only"])
def test_every_scenario_is_predicted_and_nobody_beats_the_oracle(name, policy):
    found = predict(policy, SCENARIOS[name], SAMPLES, LOAD, 2, Drift())
    assert 0.0 <= found.sla_hit_rate <= found.oracle <= 1.0
    assert found.cloud_share == {"local-only": 0.0, "cloud-only": 1.0 if found.sla_hit_rate else 0.0}.get(policy, found.cloud_share)


def test_a_tier_that_is_slow_or_cut_off_is_predicted_to_miss_while_it_is():
    fault = math.ceil(len(LOAD.arrivals) * 0.4) / len(LOAD.arrivals)  # of the requests; the scenarios are worse for 40 % of a run
    alone = {name: predict("local-only", SCENARIOS[name], SAMPLES, LOAD, 1, Drift()).sla_hit_rate for name in ("steady", "contention")}
    assert alone["steady"] == 1.0
    assert alone["contention"] == pytest.approx(1 - fault, abs=0.02)
    for name in ("brown-out", "cloud-down", "cloud-silent", "half-open"):
        assert predict("cloud-only", SCENARIOS[name], SAMPLES, LOAD, 1, Drift()).sla_hit_rate == pytest.approx(1 - fault, abs=0.02), name


def test_the_network_takes_what_the_proxy_would_take_for_these_bytes():
    trace = trace_of(SCENARIOS["mobility"], SAMPLES, LOAD, 0, Drift())
    middle, end = len(LOAD.arrivals) // 2, len(LOAD.arrivals) - 1
    way = trace.endpoints[0].round_trip_s
    assert way.at(LOAD.arrivals[end]) * trace.jitter[end] == pytest.approx(0.02)
    server_s, answer_s = 0.03, SAMPLES.answer_bytes / 25e6  # the way back is the slower of the two in a row: answers queue for it
    assert trace.endpoints[0].work_s[middle] == pytest.approx(answer_s)
    assert 0.03 + server_s <= way.at(LOAD.arrivals[middle]) * trace.jitter[middle] <= 0.07 + server_s
    assert trace.uplink.at(LOAD.arrivals[middle]) == 25e6


def test_drift_scales_the_service_times_of_its_state():
    moved = Drift({1: 2.0}, 3.0)
    trace = trace_of(SCENARIOS["cloud-down"], SAMPLES, LOAD, 0, moved)
    assert trace.work_s == pytest.approx([0.08] * len(trace))
    assert trace.endpoints[0].work_s == pytest.approx([0.09] * len(trace))  # 50 ms less the round trip of 20


def test_drift_is_read_from_the_servers_statistics_state_by_state():
    edge = [Ran(100, 1.0), Ran(120, 1.4), Ran(130, 3.4), Ran(150, 3.8)]  # 20 ms a run, 200 while it is worse
    cloud = [Ran(0, 0.0)] * 4
    found = drift(SCENARIOS["contention"], list(zip(edge, cloud, strict=True)), Drift({0: 0.01, 4: 0.1}, 0.03))
    assert found.edge == {0: pytest.approx(2.0), 4: pytest.approx(2.0)}
    assert found.cloud == 1.0  # it never ran: nothing is known
    same = drift(SCENARIOS["cloud-down"], list(zip(edge, cloud, strict=True)), Drift({1: 0.028}, 0.03))
    assert same.edge == {1: pytest.approx(2.0)}


def test_a_row_tells_the_errors_of_the_fault_from_the_others():
    answers = [
        Answer(1.0, 20.0, "edge"),
        Answer(10.0, 150.0, "", "DeadlineError"),
        Answer(UNTIL * 30.0, 5.0, "", "UnavailableError"),
        Answer(29.0, 60.0, "cloud"),
    ]
    said = predict("edgekit", SCENARIOS["cloud-down"], SAMPLES, LOAD, 1, Drift())
    found = row(
        "cloud-down",
        "edgekit",
        Real(answers, [(Ran(0, 0.0), Ran(runs, 0.0)) for runs in (5, 9, 9, 30)], 0.8, 0.1),
        said,
        said,
        Drift({1: 1.5}, 1.0),
        LOAD,
    )
    assert (found.requests, found.errors, found.errors_in_fault) == (4, 2, 1)
    assert (found.sla_hit_rate, found.cloud_share) == (0.5, 0.5)
    assert (found.edge_drift, found.noticed_s, found.cloud_runs, found.waited_ms) == (1.5, 0.8, (4, 0, 21), 25.0)
