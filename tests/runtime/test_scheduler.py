"""The queue with a clock that the test moves, and a device simulated around it."""

import heapq
import itertools
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DeadlineError, OverloadedError
from edgekit.protocol import InferRequest
from edgekit.runtime._admission import AGED_EVERY, PATIENCE_S, PROBE_AFTER_S, Waiting
from edgekit.runtime._job import Job
from edgekit.runtime._scheduler import InstanceQueue, QueueClosedError

NOW = 100.0


class Clock:
    """Seconds that only the test moves."""

    def __init__(self):
        self.now_s = NOW

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def job(deadline_s=None, *, level=None, rows=1, key=None):
    made = Job(InferRequest("m", [], deadline_s=deadline_s), lambda _: None)
    made.level = level or made.level
    made.rows, made.key = rows, key
    return made


def know(queue, seconds, max_batch=1):
    """Let the queue have seen every size, so that its estimates are exact and its limit is ``max_batch``."""
    for size in itertools.takewhile(lambda size: size <= max_batch, (1 << rung for rung in itertools.count())):
        for _ in range(9):
            queue.times.add(size, seconds(size))


def queue_of(clock, count=1, *, capacity=4, max_batch=1, seconds=None):
    queue = InstanceQueue("m", list(range(count)), capacity, clock, max_batch=max_batch)
    if seconds is not None:
        know(queue, seconds, max_batch)
    return queue


def start(queue, *jobs):
    return queue.start(list(jobs), math.inf)


def test_an_idle_instance_takes_a_request_at_once(clock):
    queue = queue_of(clock, 2)
    one, two, three = job(), job(), job()
    first, _ = start(queue, one)
    second, _ = start(queue, two)
    assert {first.instance, second.instance} == {0, 1}
    assert (first.jobs, second.jobs) == ([one], [two])
    assert start(queue, three) == (None, [])
    assert (queue.running, queue.queued, queue.ready) == (2, 1, False)
    clock.now_s += 0.25
    assert queue.finish(first) == 0.25
    assert queue.ready
    third, _ = queue.take()
    assert third.jobs == [three]
    for batch in (second, third):
        queue.finish(batch)
    assert (queue.running, queue.queued, queue.ready) == (0, 0, False)


def test_what_arrived_together_and_while_it_was_busy_runs_together(clock):
    queue = queue_of(clock, max_batch=4, seconds=lambda rows: 0.010, capacity=9)
    jobs = [job() for _ in range(9)]
    first, _ = start(queue, *jobs[:3])
    assert first.jobs == jobs[:3]
    for one in jobs[3:]:
        assert start(queue, one) == (None, [])
    queue.finish(first)
    second, _ = queue.take()
    assert second.jobs == jobs[3:7]
    assert second.rows == 4
    assert second.saturated
    queue.finish(second)
    assert queue.take()[0].jobs == jobs[7:]


def test_other_shapes_wait_for_their_own_batch(clock):
    queue = queue_of(clock, max_batch=4, seconds=lambda rows: 0.010, capacity=9)
    jobs = [job(key=key) for key in "aaba"] + [job(key=Waiting.ALONE)]
    batches = []
    batch, _ = start(queue, *jobs)
    while batch is not None:
        batches.append(batch.jobs)
        queue.finish(batch)
        batch, _ = queue.take()
    assert batches == [jobs[:2], [jobs[2]], [jobs[3]], [jobs[4]]] or batches == [[jobs[0], jobs[1], jobs[3]], [jobs[2]], [jobs[4]]]


def test_a_batch_that_takes_too_long_for_the_caller_stays(clock):
    queue = queue_of(clock)
    assert queue.start([job()], 1e-3) == (None, [])  # nothing is known about it
    assert queue.ready
    batch, _ = queue.take()
    clock.now_s += 0.5e-3
    queue.finish(batch)
    batch, _ = queue.start([job()], 1e-3)
    assert batch is not None
    clock.now_s += 5e-3
    queue.finish(batch)
    queue.finish(queue.start([job()], 9e-3)[0])
    clock.now_s += 1.0
    assert queue.start([job()], 0.2e-3) == (None, [])


def alone(count):
    return [job(key=Waiting.ALONE) for _ in range(count)]


# run time, how many wait, longest for the caller -> how many run in one go
ROWS = {
    "brief ones all": (1e-4, 9, math.inf, 9),
    "brief ones, as long as the caller has": (1e-4, 9, 0.5e-3, 5),
    "of long ones a part": (1.5e-3, 8, math.inf, 4),
    "of a short queue less, so that nobody waits for who came with it": (1.5e-3, 3, math.inf, 1),
    "of long ones at most ten milliseconds": (1.5e-3, 40, math.inf, 6),
    "of longer ones fewer": (3e-3, 40, math.inf, 3),
    "very long ones never": (6e-3, 40, math.inf, 1),
}


@pytest.mark.parametrize(("run_s", "waiting", "longest_s", "expected"), ROWS.values(), ids=ROWS)
def test_what_cannot_run_together_may_go_in_a_row(clock, run_s, waiting, longest_s, expected):
    queue = queue_of(clock, capacity=99, seconds=lambda _: run_s)
    jobs = alone(waiting)
    queue.start(jobs, 0.0)
    batch, _ = queue.take(longest_s)
    assert batch.jobs == jobs[:expected]
    assert (batch.runs, batch.rows) == (expected, 1)
    before_s = queue.times.p50_s
    # Whoever comes now is told what the whole row takes.
    assert queue.estimated_latency_s() == pytest.approx(run_s * (expected + len(queue._pending) + 1))
    clock.now_s += run_s * expected
    queue.finish(batch)
    assert queue.times.p50_s == pytest.approx(before_s)  # of one run


def test_no_more_rows_together_than_pay(clock):
    """A batch that costs as much as its rows one by one only keeps them from other instances."""

    def taken(seconds):
        queue = queue_of(clock, count=2, capacity=99, max_batch=8, seconds=seconds)
        queue.start([job() for _ in range(12)], 0.0)
        return [(len(batch.jobs), batch.rows, batch.runs) for batch in (queue.take()[0], queue.take()[0])]

    assert taken(lambda rows: 1e-3 * rows) == [(4, 1, 4), (2, 1, 2)]  # in rows
    assert taken(lambda rows: 1e-3 * (1 + 0.5 * rows)) == [(4, 4, 1), (8, 8, 1)]


def test_a_long_batch_is_shared_with_instances_that_are_free(clock):
    def taken(run_s):
        queue = queue_of(clock, count=2, capacity=99, max_batch=8, seconds=lambda rows: run_s * (3 + rows))
        queue.start([job() for _ in range(8)], 0.0)
        return [len(batch.jobs) for batch in (queue.take()[0], queue.take()[0]) if batch is not None]

    assert taken(1e-3) == [4, 4]
    assert taken(1e-4) == [8]  # brief: not worth another thread
    queue = queue_of(clock, count=2, capacity=99, max_batch=8, seconds=lambda rows: 1e-3 * (3 + rows))
    start(queue, job())
    queue.start([job() for _ in range(7)], 0.0)
    assert len(queue.take()[0].jobs) == 7  # the other instance is busy


def test_as_many_at_once_as_there_are_cores_for():
    for cores, threads, begin in ((4, 1, 4), (4, 2, 2), (2, 4, 1), (4, 0, 1)):
        assert InstanceQueue("m", [0] * cores, 9, threads=threads, adaptive=True).limit == begin
    assert InstanceQueue("m", [0] * 3, 9).limit == 3


def test_no_row_while_deadlines_wait_or_sizes_differ(clock):
    queue = queue_of(clock, capacity=99, seconds=lambda _: 1e-4)
    queue.start([*alone(4), job(clock.now_s + 1.0, key=Waiting.ALONE)], 0.0)
    assert queue.take()[0].runs == 1
    other = queue_of(clock, capacity=99, max_batch=4, seconds=lambda rows: rows * 1e-4)
    mixed = [job(key=Waiting.ALONE), job(key=Waiting.ALONE), job(key=Waiting.ALONE, rows=4), job()]
    other.start(mixed, 0.0)
    assert other.take()[0].jobs == mixed[:2]


def test_priority_then_deadline_then_arrival(clock):
    queue = queue_of(clock, capacity=9)
    holder, _ = start(queue, job())
    late, early = job(clock.now_s + 9), job(clock.now_s + 5)
    least, plain, urgent, plain_too = job(level=3), job(), job(level=1), job()
    assert start(queue, late, early, least, plain, urgent, plain_too) == (None, [])
    order = []
    queue.finish(holder)
    while queue.ready:
        batch, _ = queue.take()
        order += batch.jobs
        queue.finish(batch)
    assert order == [urgent, early, late, plain, plain_too, least]


def refusals(outcome):
    batch, refused = outcome
    assert batch is None
    return [str(error) for _, error in refused]


def test_refusals_say_why(clock):
    queue = queue_of(clock, capacity=0, seconds=lambda rows: 0.010)
    (line,) = refusals(start(queue, job(clock.now_s - 0.005)))
    assert line.startswith("model m: the deadline passed 5.0 ms before")
    (line,) = refusals(start(queue, job(clock.now_s + 0.004)))
    assert "leaves 4.0 ms; expected about 10.0 ms" in line
    batch, refused = start(queue, job(), job())
    assert [type(error) for _, error in refused] == [OverloadedError]
    assert "model m: 1 requests wait already; expected at most 0" in str(refused[0][1])
    (line,) = refusals(start(queue, job()))
    assert "model m: 0 requests wait already; expected at most 0" in line
    queue.finish(batch)


def test_a_probe_replaces_an_estimate_that_was_too_high(clock):
    queue = queue_of(clock, seconds=lambda rows: 5.0)
    clock.now_s += PROBE_AFTER_S
    batch, refused = start(queue, job(clock.now_s + 0.1))
    assert (batch.probe, refused) == (True, [])
    clock.now_s += 0.01
    queue.finish(batch)
    assert queue.estimated_latency_s() == pytest.approx(0.01)
    batch, _ = start(queue, job(clock.now_s + 0.1))
    assert not batch.probe


def test_a_failed_run_does_not_count_as_a_service_time(clock):
    queue = queue_of(clock, seconds=lambda rows: 0.5)
    batch, _ = start(queue, job())
    queue.finish(batch, failed=True)
    assert queue.estimated_latency_s() == 0.5


def test_what_became_hopeless_in_the_queue_is_refused_when_its_turn_comes(clock):
    queue = queue_of(clock, seconds=lambda rows: 0.010)
    holder, _ = start(queue, job())
    hurried, patient = job(clock.now_s + 60), job()
    start(queue, hurried, patient)
    clock.now_s += 59.995
    queue.finish(holder)
    queue.times.add(1, 0.010, restart=True)
    batch, refused = queue.take()
    assert batch.jobs == [patient]
    assert refused[0][0] is hurried
    assert "queued for 59995.0 ms" in str(refused[0][1])


def test_deadlines_pass_in_the_queue(clock):
    queue = queue_of(clock)
    start(queue, job())
    one, two, three = job(clock.now_s + 0.02), job(clock.now_s + 0.03), job()
    start(queue, one, two, three)
    assert queue.first_deadline_s() == clock.now_s + 0.02
    assert queue.expire() == []
    clock.now_s += 0.02
    assert [late for late, _ in queue.expire()] == [one]
    assert isinstance(queue.give_up(two), DeadlineError)
    assert queue.give_up(two) is None
    assert queue.queued == 1
    assert queue.first_deadline_s() == math.inf


def test_a_cancelled_request_leaves_the_queue(clock):
    queue = queue_of(clock)
    running = job()
    batch, _ = start(queue, running)
    waiting = job(clock.now_s + 1)
    start(queue, waiting)
    waiting.cancel()
    running.cancel()  # too late: it runs on
    assert (queue.queued, queue.running) == (0, 1)
    queue.finish(batch)
    assert queue.take() == (None, [])


def test_a_lease_holds_an_instance_and_says_when_it_ends(clock):
    queue = queue_of(clock)
    told = []
    queue.on_ready = lambda: told.append(queue.queued)
    with queue.lease() as lease:
        assert lease.instance == 0
        assert queue.running == 1
        assert start(queue, job()) == (None, [])
        with pytest.raises(DeadlineError, match="no instance became free"), queue.lease(clock.now_s):
            pass
    assert told == [1]


def test_close_waits_for_what_runs_and_waits_and_takes_no_more(clock):
    queue = queue_of(clock)
    running, _ = start(queue, job())
    start(queue, job())
    closer = threading.Thread(target=queue.close)
    closer.start()
    while True:
        try:
            start(queue)
        except QueueClosedError:
            break
    with pytest.raises(QueueClosedError), queue.lease():
        pass
    queue.finish(running)
    assert closer.is_alive()
    batch, _ = queue.take()
    queue.finish(batch)
    closer.join(5)
    assert not closer.is_alive()


# --- a simulated device --------------------------------------------------------------------------------------------------------------------


class Simulation:
    """A queue and as many runners as it has instances; runs take exactly what the queue expects of them.

    ``arrivals``: (time, job) in order of time. Time only moves from one event to the next.
    """

    def __init__(self, arrivals, *, instances=1, capacity=1000, max_batch=1, fixed_s=0.002, each_s=0.001):
        self.clock = Clock()
        self.max_batch = max_batch
        self.seconds = lambda rows: fixed_s + each_s * (1 << max(0, rows - 1).bit_length())
        self.queue = queue_of(self.clock, instances, capacity=capacity, max_batch=max_batch, seconds=self.seconds)
        self.started, self.ended_s, self.refused = [], {}, {}
        self._ends = []
        self._number = itertools.count()
        for arrived_s, group in itertools.groupby(arrivals, key=lambda arrival: arrival[0]):
            self._run_until(NOW + arrived_s)
            self._begin(self.queue.start([one for _, one in group], math.inf))
        self._run_until(math.inf)

    def _begin(self, outcome):
        while True:
            batch, refused = outcome
            for one, error in refused:
                assert one not in self.refused
                self.refused[one] = error
            if batch is None:
                return
            assert batch.rows <= self.max_batch or batch.runs == len(batch.jobs)
            self.started.append((self.clock.now_s, batch.jobs))
            heapq.heappush(self._ends, (self.clock.now_s + self.seconds(batch.rows) * batch.runs, next(self._number), batch))
            outcome = self.queue.take()

    def _run_until(self, until_s):
        while self._ends and self._ends[0][0] <= until_s:
            end_s, _, batch = heapq.heappop(self._ends)
            self.clock.now_s = end_s
            self.queue.finish(batch)
            for one in batch.jobs:
                assert one not in self.ended_s
                self.ended_s[one] = end_s
            self._begin(self.queue.take())
        if until_s != math.inf:
            self.clock.now_s = until_s


steps = st.tuples(
    st.integers(0, 30),  # arrival, ms
    st.one_of(st.none(), st.integers(1, 40)),  # time until the deadline, ms
    st.integers(1, 3),  # priority
    st.integers(1, 5),  # rows
    st.sampled_from(["a", "a", "b"]),
)


def make(cases, *, plain=False):
    arrivals = []
    for arrived_ms, remaining_ms, level, rows, key in sorted(cases, key=lambda case: case[0]):
        deadline_s = None if remaining_ms is None else NOW + (arrived_ms + remaining_ms) / 1e3
        one = job(deadline_s) if plain else job(deadline_s, level=level, rows=rows, key=key)
        arrivals.append((arrived_ms / 1e3, one))
    return arrivals


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(steps, max_size=30), st.integers(1, 3), st.sampled_from([1, 4, 8]), st.integers(0, 12), st.sampled_from([0.0, 0.002]))
def test_nothing_is_lost_or_answered_twice(cases, instances, max_batch, capacity, fixed_s):
    """Also where a batch saves nothing (no fixed part), so that requests go in rows."""
    arrivals = make(cases)
    simulation = Simulation(arrivals, instances=instances, capacity=capacity, max_batch=max_batch, fixed_s=fixed_s)
    jobs = {one for _, one in arrivals}
    assert simulation.ended_s.keys() | simulation.refused.keys() == jobs
    assert not simulation.ended_s.keys() & simulation.refused.keys()
    assert (simulation.queue.queued, simulation.queue.running) == (0, 0)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(steps, max_size=30), st.integers(1, 3), st.sampled_from([1, 4, 8]), st.sampled_from([0.0, 0.002]))
def test_equals_keep_their_order(cases, instances, max_batch, fixed_s):
    arrivals = make(cases)
    simulation = Simulation(arrivals, instances=instances, max_batch=max_batch, fixed_s=fixed_s)
    began = {one: (at_s, index) for index, (at_s, jobs) in enumerate(simulation.started) for one in jobs}
    alike = {}
    for _, one in arrivals:
        alike.setdefault((one.level, one.deadline_s, one.key, one.rows), []).append(one)
    for group in alike.values():
        ran = [one for one in group if one in began]
        assert [began[one] for one in ran] == sorted(began[one] for one in ran)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(steps, max_size=30), st.sampled_from([1, 4, 8]), st.sampled_from([0.0, 0.002]))
def test_what_was_taken_is_answered_in_time(cases, max_batch, fixed_s):
    """With exact estimates, one instance, and requests of one kind: a deadline once accepted is kept, whatever comes later."""
    arrivals = make(cases, plain=True)
    simulation = Simulation(arrivals, max_batch=max_batch, fixed_s=fixed_s)
    for one, end_s in simulation.ended_s.items():
        assert end_s <= one.deadline_s + 1e-9
    for error in simulation.refused.values():
        assert "queued for" not in str(error)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(st.integers(4, 12), st.integers(3, 50), st.integers(1, 2))
def test_nothing_starves(period_ms, level, max_batch):
    """More important requests than the device can take arrive all the time; the least important one still runs."""
    least = job(level=level)
    busy = [(index * period_ms / 2e3, job(level=1)) for index in range(int(3e3 / period_ms))]
    arrivals = sorted([(0.0, job()), (0.0005, least), *busy], key=lambda arrival: arrival[0])
    simulation = Simulation(arrivals, max_batch=max_batch, each_s=0.004)
    waited_s = simulation.ended_s[least] - NOW
    assert waited_s <= PATIENCE_S + (AGED_EVERY + 2) * simulation.seconds(max_batch)


def test_an_idle_queue_adds_no_wait(clock):
    """Each request that finds the device idle begins in the very moment that it arrives."""
    arrivals = [(index * 0.01, job()) for index in range(20)]
    simulation = Simulation(arrivals, max_batch=8)
    assert [at_s for at_s, _ in simulation.started] == [NOW + arrived_s for arrived_s, _ in arrivals]
