"""Budgets: no window ever holds more than its limit, whatever is spent, given back, reloaded, restarted or killed, and whatever the clocks do."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgekit.errors import StorageError, UsageError
from edgekit.router._budgets import DOLLAR_UNIT, FREE_OF_LIMITS, Book, BudgetLimits, Budgets, Limit, Saved, amount_of, resumed
from edgekit.router._budgets_file import FileLedger, default_ledger_path, keep_budgets
from edgekit.router._events import Cost

ONE = Cost(1, 0, 0.0)


def hourly(**limit):
    return BudgetLimits(hour=Limit(**limit))


class World:
    """Two clocks and a disk; the disk keeps what the last save put there."""

    def __init__(self):
        self.monotonic_s, self.wall_s, self.boot = 1000.0, 1.8e9, "boot-0"
        self.true_s = 0.0
        self.saved = None
        self.fails = False

    def save(self, book, lease):
        if self.fails:
            raise StorageError("ledger", "no space left on the disk")
        self.saved = msgspec.json.decode(msgspec.json.encode(Saved(book, lease, self.boot, self.monotonic_s, self.wall_s)), type=Saved)

    def close(self):
        pass

    def open(self, limits):
        book, ahead_s = resumed(self.saved, limits, self.boot, self.monotonic_s, self.wall_s)
        return Budgets(book, self, ahead_s)


LIMIT = st.builds(Limit, st.sampled_from([3, 40, 100]), st.sampled_from([500, 4000]), st.sampled_from([0.001, 0.01]))
LIMITS = st.builds(BudgetLimits, LIMIT, LIMIT)
COSTS = st.builds(lambda n, size: Cost(n, size, n * 0.0001 + size * 1e-6), st.integers(1, 3), st.integers(0, 100))


class AnyLife(RuleBasedStateMachine):
    """Everything that can happen to budgets, beside a list of what was really sent and when."""

    @initialize(limits=LIMITS)
    def begin(self, limits):
        self.world = World()
        self.limits = limits
        self.budgets = self.world.open(limits)
        self.sent = []  # [true time, amount]
        self.returnable = []  # (cost, monotonic time, entry of `sent`)

    @rule(cost=COSTS, most=st.sampled_from([1, 2, 5, 100]))
    def spend_some(self, cost, most):
        self.spend(cost, most)

    def spend(self, cost, most):
        before = len(self.sent)
        while len(self.sent) < before + most and self.budgets.spend(cost, self.world.monotonic_s):
            entry = [self.world.true_s, amount_of(cost)]
            self.sent.append(entry)
            self.returnable.append((cost, self.world.monotonic_s, entry))
        if len(self.sent) > before:  # what was spent under a higher limit may be over the present one
            self.within_limits()

    @rule()
    def give_back(self):
        if self.returnable:
            cost, spent_s, entry = self.returnable.pop()
            self.budgets.give_back(cost, spent_s)
            self.sent.remove(entry)

    @rule(seconds=st.sampled_from([0.5, 59.0, 1800.0, 3540.0, 3599.0, 3660.0, 40_000.0, 86_401.0]))
    def wait(self, seconds):
        self.world.monotonic_s += seconds
        self.world.wall_s += seconds
        self.world.true_s += seconds

    @rule(seconds=st.sampled_from([-1e8, -7200.0, -1.0]))
    def wall_clock_steps_back(self, seconds):
        self.world.wall_s += seconds

    @rule()
    def renew(self):
        self.budgets.renew(self.world.monotonic_s)

    @rule(limits=LIMITS)
    def reload(self, limits):
        self.limits = limits
        self.budgets.set_limits(limits, self.world.monotonic_s)

    @rule()
    def close(self):
        self.budgets.close(self.world.monotonic_s)
        self.restart()

    @rule()
    def kill(self):
        self.restart()

    @rule()
    def reboot(self):
        self.world.boot += "x"
        self.world.monotonic_s = 5.0
        self.restart()

    @rule()
    def disk_is_full(self):
        self.world.fails = True
        self.budgets.renew(self.world.monotonic_s)
        self.spend(Cost(2, 60, 0.0003), 100)
        self.world.fails = False

    def restart(self):
        self.budgets = self.world.open(self.limits)
        self.returnable.clear()

    def within_limits(self):
        now = self.world.true_s
        for limit, span_s in ((self.limits.hour, 3600.0), (self.limits.day, 86_400.0)):
            recent = [amount for at_s, amount in self.sent if at_s > now - span_s]
            for index, bound in enumerate(limit.amount):
                assert sum(amount[index] for amount in recent) <= bound

    @invariant()
    def nothing_is_negative(self):
        if hasattr(self, "budgets"):
            assert all(value >= 0 for side in self.budgets.spent(self.world.monotonic_s) for value in side)


AnyLife.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnyLife = pytest.mark.slow(AnyLife.TestCase)


def spend_all(budgets, cost, now, most=10_000):
    """How often ``cost`` goes at one moment."""
    for count in range(most):
        if not budgets.spend(cost, now):
            return count
    return most


def test_exactly_the_limit_goes_and_comes_back_an_hour_later():
    budgets = Budgets(Book(hourly(requests=5)))
    assert spend_all(budgets, ONE, 100.0) == 5
    assert not budgets.may_spend(ONE, 100.0)
    assert spend_all(budgets, ONE, 3699.9) == 0
    assert spend_all(budgets, ONE, 3780.1) == 5  # an hour, and the rest of the minute


def test_the_day_holds_what_the_hour_would_allow():
    budgets = Budgets(Book(BudgetLimits(Limit(requests=10), Limit(requests=25))))
    assert [spend_all(budgets, ONE, hour * 3700.0) for hour in range(4)] == [10, 10, 5, 0]


def test_dollars_add_up_without_rounding():
    budgets = Budgets(Book(hourly(dollars=0.1)))
    assert spend_all(budgets, Cost(1, 0, 0.0001), 0.0) == 1000
    assert budgets.spent(0.0)[0] == (1000, 0, round(0.1 / DOLLAR_UNIT))


def test_bytes_that_do_not_fit_leave_room_for_what_does():
    budgets = Budgets(Book(hourly(bytes=1000)))
    assert not budgets.spend(Cost(1, 1001, 0.0), 0.0)
    assert budgets.spend(Cost(1, 900, 0.0), 0.0)
    assert not budgets.spend(Cost(1, 101, 0.0), 0.0)
    assert budgets.spend(Cost(1, 100, 0.0), 0.0)


def test_what_never_left_is_given_back():
    budgets = Budgets(Book(hourly(requests=1)))
    assert budgets.spend(ONE, 10.0)
    budgets.give_back(ONE, 10.0)
    assert budgets.spend(ONE, 100.0)
    budgets.give_back(ONE, 10.0)  # nothing of that minute is left to give back
    assert not budgets.spend(ONE, 100.0)


def test_without_limits_everything_goes_and_is_counted():
    budgets = Budgets(Book())
    assert spend_all(budgets, Cost(1, 10, 0.01), 0.0, 300) == 300
    assert budgets.spent(0.0)[0][:2] == (300, 3000)
    assert not budgets.limits.any


def test_a_lower_limit_waits_until_enough_has_aged():
    budgets = Budgets(Book(hourly(requests=10)))
    assert spend_all(budgets, ONE, 0.0) == 10
    budgets.set_limits(hourly(requests=3), 1.0)
    assert spend_all(budgets, ONE, 1.0) == 0
    budgets.set_limits(hourly(requests=12), 2.0)
    assert spend_all(budgets, ONE, 2.0) == 2
    budgets.set_limits(FREE_OF_LIMITS, 3.0)
    assert spend_all(budgets, ONE, 3.0, 5) == 5


def test_a_small_limit_loses_nothing_to_a_kill():
    world = World()
    first = world.open(hourly(requests=5))
    assert first.spend(ONE, world.monotonic_s)
    assert first.spend(ONE, world.monotonic_s)
    second = world.open(hourly(requests=5))  # the first one is gone without a word
    assert spend_all(second, ONE, world.monotonic_s) == 3


def test_a_kill_costs_a_twentieth_at_most():
    world = World()
    first = world.open(hourly(requests=1000))
    assert spend_all(first, ONE, world.monotonic_s, 120) == 120
    assert 1000 - 120 - 51 <= spend_all(world.open(hourly(requests=1000)), ONE, world.monotonic_s) <= 1000 - 120


def test_an_orderly_end_costs_nothing():
    world = World()
    first = world.open(hourly(requests=1000))
    assert spend_all(first, ONE, world.monotonic_s, 120) == 120
    first.close(world.monotonic_s)
    assert spend_all(world.open(hourly(requests=1000)), ONE, world.monotonic_s) == 880


def test_the_lease_is_renewed_before_it_is_short():
    world, saves = World(), []
    budgets = world.open(hourly(requests=1000))
    budgets.renew(world.monotonic_s)
    world.save = lambda *_: saves.append(1)
    assert spend_all(budgets, ONE, world.monotonic_s, 20) == 20
    budgets.renew(world.monotonic_s)
    assert saves == []  # more than half is left
    assert not budgets.short.is_set()
    assert spend_all(budgets, ONE, world.monotonic_s, 20) == 20
    assert budgets.short.is_set()
    budgets.renew(world.monotonic_s)
    assert saves == [1]
    assert spend_all(budgets, ONE, world.monotonic_s, 50) == 50
    assert saves == [1]


def test_what_the_ledger_cannot_cover_is_not_spent():
    world = World()
    budgets = world.open(hourly(requests=5))
    world.fails = True
    assert not budgets.spend(ONE, world.monotonic_s)
    assert budgets.failures == 1
    world.fails = False
    assert spend_all(budgets, ONE, world.monotonic_s) == 5


def test_spending_goes_on_while_the_ledger_is_written():
    """A write that hangs holds up nobody whom the old lease and the new one cover."""
    world = World()
    budgets = world.open(hourly(requests=1000))
    budgets.renew(world.monotonic_s)
    assert spend_all(budgets, ONE, world.monotonic_s, 30) == 30
    written, go_on, save = threading.Event(), threading.Event(), world.save

    def slow(book, lease):
        written.set()
        assert go_on.wait(10.0)
        save(book, lease)

    world.save = slow
    writer = threading.Thread(target=budgets.renew, args=(world.monotonic_s,))
    writer.start()
    assert written.wait(10.0)
    assert spend_all(budgets, ONE, world.monotonic_s, 20) == 20  # 30 of 50 were gone
    go_on.set()
    writer.join(10.0)
    world.save = save
    after = spend_all(world.open(hourly(requests=1000)), ONE, world.monotonic_s)
    assert after <= 1000 - 50


def test_many_threads_spend_no_more_than_one():
    world = World()
    budgets = world.open(hourly(requests=200))
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(spend_all(budgets, ONE, world.monotonic_s))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert sum(counts) == 200


@pytest.mark.parametrize("limit", [{"requests": -1}, {"bytes": -5}, {"dollars": math.nan}, {"dollars": math.inf}])
def test_impossible_limits(limit):
    with pytest.raises(UsageError, match="0 or more"):
        Limit(**limit)


# The file


def open_budgets(limits, path):
    budgets = Budgets(Book(limits))
    keep_budgets(budgets, path)
    return budgets


MANY = Cost(1, 1000, 0.0)
KILLED = """
import sys
from pathlib import Path
from edgekit.router._budgets import Book, BudgetLimits, Budgets, Limit
from edgekit.router._budgets_file import keep_budgets
from edgekit.router._events import Cost
import time
budgets = Budgets(Book(BudgetLimits(hour=Limit(requests=100))))
keep_budgets(budgets, Path(sys.argv[1]))
for _ in sys.stdin:
    if budgets.spend(Cost(1, 0, 0.0), time.monotonic()):
        print("x", flush=True)
"""


def test_a_file_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "state" / "budgets.json"
    budgets = open_budgets(hourly(requests=10, bytes=4000), path)
    assert budgets.spend(MANY, time.monotonic())
    budgets.close(time.monotonic())
    again = open_budgets(hourly(requests=10, bytes=4000), path)
    assert again.spent(time.monotonic())[0] == (1, 1000, 0)
    assert spend_all(again, MANY, time.monotonic()) == 3
    again.close(time.monotonic())
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["budgets.json", "budgets.json.lock"]


def test_what_was_spent_before_there_was_a_file_counts(tmp_path):
    first = open_budgets(hourly(requests=10), tmp_path / "b.json")
    assert spend_all(first, ONE, time.monotonic(), 4) == 4
    first.close(time.monotonic())
    budgets = Budgets(Book(hourly(requests=10)))
    assert spend_all(budgets, ONE, time.monotonic(), 3) == 3
    keep_budgets(budgets, tmp_path / "b.json")
    assert spend_all(budgets, ONE, time.monotonic()) == 3
    budgets.close(time.monotonic())


def test_two_processes_do_not_share_a_file(tmp_path):
    ledger = FileLedger(tmp_path / "b.json")
    with pytest.raises(StorageError, match="another process keeps its budgets here"):
        FileLedger(tmp_path / "b.json")
    ledger.close()
    FileLedger(tmp_path / "b.json").close()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "not a ledger"),
        (b"\xff\xfe{", "not a ledger"),
        (b'{"format":1}', "not a ledger"),
        (b'{"format":9,"saved":%s}', "ledger format 9"),
        (b'{"format":1,"saved":%s}', "negative"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, line):
    saved = b'{"book":{"now_s":1,"hour":[[0,[-1,0,0]]],"day":[]},"lease":[0,0,0],"boot":"","monotonic_s":1,"wall_s":1}'
    path = tmp_path / "b.json"
    path.write_bytes(content % saved if b"%s" in content else content)
    with pytest.raises(StorageError, match=line) as caught:
        open_budgets(FREE_OF_LIMITS, path)
    assert "\n" not in str(caught.value)
    path.unlink()
    open_budgets(FREE_OF_LIMITS, path).close(0.0)  # the lock was let go


def test_a_file_for_each_policy(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path))
    one, other = default_ledger_path(tmp_path / "a.toml"), default_ledger_path(tmp_path / "b.toml")
    assert one != other
    assert one.is_relative_to(tmp_path)


@pytest.mark.slow
def test_kill_9_never_lets_more_than_the_limit_through(tmp_path):
    """Processes that are killed in the middle of spending, one after the other, until nothing is left."""
    path = tmp_path / "b.json"
    sent = 0
    for kill_after in (3, 17, 1, 40, 9):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(kill_after):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"x\n"
        process.stdin.write(b"go\n")  # it may be anywhere in this one, or not have begun it
        process.stdin.flush()
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=30.0)
        sent += kill_after + rest.count(b"x")
    budgets = open_budgets(hourly(requests=100), path)
    sent += spend_all(budgets, ONE, time.monotonic())
    budgets.close(time.monotonic())
    assert 100 - 5 * 7 <= sent <= 100  # every kill costs a lease of six and the one that was under way at most
