"""Following the file: a change holds at once and as a whole, a mistake changes nothing, and what was spent stays spent."""

import threading
import time

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.router._cascade import ConfidenceRule
from edgekit.router._events import Cost
from edgekit.router._policy_agreement import agree
from edgekit.router._policy_metrics import PolicyMetrics
from edgekit.router._policy_watch import Operator
from edgekit.telemetry import Meter

ONE = Cost(1, 1000, 0.25)


class Telemetry:
    def __init__(self):
        self.meter = Meter()

    def values(self):
        """By name and attributes (their values, ordered), everything since the last call."""
        return {(point.name, *sorted(map(str, point.attributes.values()))): point.value for point in self.meter.collect(10**18)}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("default.sla_ms = 10\nbudget.per_hour.requests = 3\n")
    return path


@pytest.fixture
def telemetry():
    return Telemetry()


@pytest.fixture
def operator(file, telemetry, tmp_path):
    made = Operator(file, PolicyMetrics(telemetry), tmp_path / "budgets.json")
    yield made
    made.close()


def test_a_change_holds_and_what_was_spent_stays(operator, file):
    now = time.monotonic()
    assert operator.budgets.spend(ONE, now)
    assert operator.budgets.spend(ONE, now)
    file.write_text("default.sla_ms = 20\nbudget.per_hour.requests = 2\n")
    operator.turn()
    assert operator.policy.sla_s("m", 0) == 0.02
    assert not operator.budgets.spend(ONE, now)
    file.write_text("default.sla_ms = 20\nbudget.per_hour.requests = 9\n")
    operator.turn()
    assert [operator.budgets.spend(ONE, now) for _ in range(8)] == [True] * 7 + [False]


@pytest.mark.parametrize("broken", ["default.sla_ms = -1\n", "[", ""], ids=["value", "toml", "gone"])
def test_a_mistake_changes_nothing_and_is_told_once(operator, file, telemetry, caplog, broken):
    before = operator.policy
    if broken:
        file.write_text(broken)
    else:
        file.unlink()
    for _ in range(3):
        operator.turn()
    assert operator.policy is before
    assert str(file) in operator.problem
    assert len(caplog.records) == 1
    points = telemetry.values()
    assert points["edgekit.route.policy.valid",] == 0.0
    assert points["edgekit.route.policy.reloads", "refused"] == 1.0
    file.write_text("default.sla_ms = 30\n")
    operator.turn()
    assert operator.policy.sla_s("m", 0) == 0.03
    assert operator.problem == ""
    points = telemetry.values()
    assert points["edgekit.route.policy.valid",] == 1.0
    assert points["edgekit.route.policy.reloads", "accepted"] == 1.0


def test_the_file_as_it_was_is_right_again(operator, file):
    before, content = operator.policy, file.read_text()
    file.write_text("[")
    operator.turn()
    assert operator.problem
    file.write_text(content)
    operator.turn()
    assert (operator.problem, operator.policy) == ("", before)


def test_the_same_content_is_no_change(operator, file):
    before = operator.policy
    file.write_text(file.read_text())
    operator.turn()
    assert operator.policy is before


def test_the_thread_follows_by_itself(file, tmp_path):
    changed = threading.Event()

    def on_change(policy):
        if policy.sla_s("m", 0) == 0.04:  # the file may be read while it is written
            changed.set()

    operator = Operator(file, PolicyMetrics(None), tmp_path / "b.json", on_change)
    operator.start()
    try:
        file.write_text("default.sla_ms = 40\n")
        assert changed.wait(30.0)
        assert operator.policy.sla_s("m", 0) == 0.04
    finally:
        operator.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "edgekit-router-policy"]


def test_gauges_tell_spent_and_limit(operator, telemetry):
    assert operator.budgets.spend(ONE, time.monotonic())
    operator.turn()
    points = telemetry.values()
    assert points["edgekit.route.budget.spent", "hour", "requests"] == 1.0
    assert points["edgekit.route.budget.spent", "bytes", "day"] == 1000.0
    assert points["edgekit.route.budget.spent", "dollars", "hour"] == pytest.approx(0.25)
    assert points["edgekit.route.budget.limit", "hour", "requests"] == 3.0
    assert points["edgekit.route.budget.limit", "day", "requests"] == -1.0
    assert telemetry.meter.rejected == 0


def test_a_wrong_file_at_the_start_leaves_nothing_behind(file, tmp_path):
    file.write_text("nonsense = 1\n")
    with pytest.raises(UsageError, match="nonsense"):
        Operator(file, PolicyMetrics(None), tmp_path / "b.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.toml"]


def test_a_policy_without_a_budget_needs_no_ledger(file, tmp_path):
    """So that two routers may share one; the budget that a change adds counts what was sent before."""
    file.write_text("")
    both = [Operator(file, PolicyMetrics(None), tmp_path / "b.json") for _ in range(2)]
    assert both[0].budgets.spend(ONE, time.monotonic())
    file.write_text("budget.per_hour.requests = 2\n")
    for operator in both:
        operator.turn()
    assert [both[0].budgets.spend(ONE, time.monotonic()) for _ in range(2)] == [True, False]
    assert "another process keeps its budgets here" in both[1].problem
    assert both[1].policy.limits.hour.requests is None
    both[0].close()
    both[1].turn()  # the ledger is free now
    assert both[1].problem == ""
    assert not both[1].budgets.spend(ONE, time.monotonic())
    both[1].close()


def test_no_file_no_thread():
    operator = Operator(None, PolicyMetrics(None))
    operator.start()
    assert operator.budgets.spend(ONE, 0.0)
    operator.close()
    assert operator.policy.terms("m").escalate_below is None


CLASSES = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32)
TEXT = np.array(["a"], dtype=object)


@pytest.mark.parametrize(
    ("device", "cloud", "rule", "expected"),
    [
        ({"p": CLASSES}, {"p": CLASSES[:, ::-1]}, ConfidenceRule("p"), False),
        ({"p": CLASSES}, {"p": CLASSES**3}, ConfidenceRule("p"), True),  # other numbers, the same classes
        ({"p": CLASSES}, {"p": CLASSES[::-1]}, None, False),
        ({"p": CLASSES}, {"p": CLASSES * 1.01}, None, True),
        ({"p": CLASSES, "t": TEXT}, {"p": CLASSES, "t": TEXT.copy()}, None, True),
        ({"t": TEXT}, {"t": np.array(["b"], dtype=object)}, None, False),
        ({"p": CLASSES}, {}, None, False),
        ({"p": CLASSES}, {}, ConfidenceRule("p"), False),
        ({"p": CLASSES}, {"p": CLASSES[:1]}, ConfidenceRule("p"), False),
        ({"p": CLASSES}, {"p": CLASSES[:1]}, None, False),
        ({"p": CLASSES}, {"p": CLASSES * np.nan}, None, False),
        ({"s": CLASSES[:, :1]}, {"s": CLASSES[:, :1] + 1e-3}, ConfidenceRule("s", "score"), True),
    ],
)
def test_when_two_answers_agree(device, cloud, rule, expected):
    assert agree(device, cloud, rule) is expected


def test_agreement_is_counted(telemetry):
    metrics = PolicyMetrics(telemetry)
    for agreed in (True, True, False):
        metrics.compared("m", "audit", agreed)
    metrics.compared("m", "shadow", True)
    assert metrics.told() == [
        {"model": "m", "reason": "audit", "compared": 3, "agreed": 2},
        {"model": "m", "reason": "shadow", "compared": 1, "agreed": 1},
    ]
    assert telemetry.values()["edgekit.route.agreement", "True", "audit", "m"] == 2.0
