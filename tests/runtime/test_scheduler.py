"""The admission rule with injected time, and the queue that applies it."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DeadlineError, OverloadedError
from edgekit.runtime._scheduler import (
    PROBE_AFTER_S,
    Decision,
    InstanceQueue,
    Load,
    QueueClosedError,
    ServiceTimes,
    decide,
    estimated_wait_s,
)

NOW = 100.0


def load(running=(), queued=0, instances=1, capacity=4, p50=0.010, last=NOW):
    return Load(instances, capacity, tuple(NOW - age for age in running), queued, p50, last)


# name: (load, seconds until the deadline, expected)
DECISIONS = {
    "idle": (load(), None, Decision.RUN),
    "idle, enough time": (load(), 0.011, Decision.RUN),
    "idle, expired": (load(), 0.0, Decision.REFUSE_EXPIRED),
    "idle, too little time": (load(), 0.009, Decision.REFUSE_HOPELESS),
    "idle, too little time, estimate is old": (load(last=NOW - PROBE_AFTER_S), 0.009, Decision.PROBE),
    "expired is expired, however old the estimate": (load(last=0.0), -1.0, Decision.REFUSE_EXPIRED),
    "idle, nothing measured": (load(p50=0.0), 0.001, Decision.RUN),
    "busy, no deadline": (load([0.0]), None, Decision.WAIT),
    "busy, just enough time for residual and run": (load([0.004]), 0.0161, Decision.WAIT),
    "busy, too little": (load([0.004]), 0.0159, Decision.REFUSE_HOPELESS),
    "busy, too little, no probe while one runs": (load([0.004], last=0.0), 0.0159, Decision.REFUSE_HOPELESS),
    "one of two is free": (load([0.0], instances=2), 0.011, Decision.RUN),
    "two busy halve the wait": (load([0.0, 0.0], queued=2, instances=2), 0.0301, Decision.WAIT),
    "two busy, too little": (load([0.0, 0.0], queued=2, instances=2), 0.0299, Decision.REFUSE_HOPELESS),
    "queue full": (load([0.0], queued=4), None, Decision.REFUSE_FULL),
    "queue full, hopeless is said first": (load([0.0], queued=4), 0.020, Decision.REFUSE_HOPELESS),
    "no queue at all": (load([0.0], capacity=0), None, Decision.REFUSE_FULL),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decide(name):
    state, remaining_s, expected = DECISIONS[name]
    assert decide(state, None if remaining_s is None else NOW + remaining_s, NOW) is expected


@settings(derandomize=True, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.floats(0, 1), max_size=4),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0.0001, 2),
    st.floats(0, 1),
)
def test_more_time_never_turns_an_accepted_request_away(instances, ages, queued, p50, remaining, extra):
    state = load(ages[:instances], queued if len(ages) >= instances else 0, instances, 64, p50)
    accepted = {Decision.RUN, Decision.WAIT}
    if decide(state, NOW + remaining, NOW) in accepted:
        assert decide(state, NOW + remaining + extra, NOW) in accepted
        assert estimated_wait_s(state, NOW) + p50 <= remaining + 1e-9


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_service_times_are_the_median_of_the_newest(values):
    times = ServiceTimes()
    for value in values:
        times.add(value)
    newest = sorted(values[-63:])
    assert times.p50_s == newest[len(newest) // 2]
    times.add(0.5, restart=True)
    assert times.p50_s == 0.5


class Clock:
    """Seconds that only the test moves."""

    def __init__(self):
        self.now_s = NOW

    def __call__(self):
        return self.now_s


def measured(clock, seconds, **options):
    """A queue whose instance takes ``seconds``."""
    queue = InstanceQueue("m", ["a"], options.get("capacity", 4), clock)
    with queue.lease(None):
        clock.now_s += seconds
    return queue


def test_an_idle_instance_is_handed_out_at_once():
    clock = Clock()
    queue = InstanceQueue("m", ["a", "b"], 4, clock)
    with queue.lease(None) as first, queue.lease(None) as second:
        assert {first.instance, second.instance} == {"a", "b"}
        assert first.queue_s == 0
        assert (queue.running, queue.queued) == (2, 0)
    assert queue.running == 0


def test_refusals_say_why():
    clock = Clock()
    queue = measured(clock, 0.010, capacity=0)
    with pytest.raises(DeadlineError, match=r"model m: the deadline passed 5\.0 ms before"), queue.lease(clock.now_s - 0.005):
        pass
    with pytest.raises(DeadlineError, match=r"leaves 4.0 ms; expected about 10.0 ms"), queue.lease(clock.now_s + 0.004):
        pass
    with queue.lease(None), pytest.raises(OverloadedError, match="model m: 0 requests wait already; expected at most 0"), queue.lease(None):
        pass


def test_a_probe_replaces_an_estimate_that_was_too_high():
    clock = Clock()
    queue = measured(clock, 5.0)
    clock.now_s += PROBE_AFTER_S
    with queue.lease(clock.now_s + 0.1) as lease:
        assert lease.probe
        clock.now_s += 0.01
    assert queue.estimated_latency_s() == pytest.approx(0.01)
    with queue.lease(clock.now_s + 0.1) as lease:
        assert not lease.probe


def test_a_failed_run_does_not_count_as_a_service_time():
    clock = Clock()
    queue = measured(clock, 0.5)
    with pytest.raises(ZeroDivisionError), queue.lease(None):
        raise ZeroDivisionError
    assert queue.estimated_latency_s() == 0.5


class Waiting:
    """A request in a thread of its own; ``order`` gets its name when it runs."""

    def __init__(self, queue, name, order, deadline_s=None):
        self.error = None
        self.queue_s = None

        def work():
            try:
                with queue.lease(deadline_s) as lease:
                    self.queue_s = lease.queue_s
                    order.append(name)
            except (DeadlineError, OverloadedError, QueueClosedError) as exc:
                self.error = exc

        before = queue.queued
        self.thread = threading.Thread(target=work)
        self.thread.start()
        while queue.queued == before and self.thread.is_alive():
            pass

    def join(self):
        self.thread.join(5)
        assert not self.thread.is_alive()


def test_first_come_first_served_and_time_in_the_queue():
    clock = Clock()
    queue = InstanceQueue("m", ["a"], 4, clock)
    order = []
    with queue.lease(None):
        waiting = [Waiting(queue, name, order) for name in "abc"]
        assert queue.queued == 3
        clock.now_s += 0.25
    for item in waiting:
        item.join()
    assert order == ["a", "b", "c"]
    assert waiting[0].queue_s == 0.25


def test_what_became_hopeless_in_the_queue_is_refused_when_its_turn_comes():
    clock = Clock()
    queue = measured(clock, 0.010)
    order = []
    with queue.lease(None):
        late = Waiting(queue, "late", order, clock.now_s + 60)
        patient = Waiting(queue, "patient", order)
        clock.now_s += 59.995
    late.join()
    patient.join()
    assert order == ["patient"]
    assert isinstance(late.error, DeadlineError)
    assert "queued for 59995.0 ms" in str(late.error)


def test_a_deadline_that_passes_in_the_queue_ends_the_wait():
    queue = InstanceQueue("m", ["a"], 4)
    with queue.lease(None):
        with pytest.raises(DeadlineError, match="queued for"), queue.lease(_soon()):
            pass
        assert queue.queued == 0


def _soon():
    return time.monotonic() + 0.02


def test_close_waits_for_what_runs_and_waits_and_refuses_the_rest():
    queue = InstanceQueue("m", ["a"], 4)
    order = []
    closer = threading.Thread(target=queue.close)
    with queue.lease(None):
        waiting = Waiting(queue, "waiting", order)
        closer.start()
        while True:  # until the closer has said so
            try:
                with queue.lease(_soon()):
                    pass
            except QueueClosedError:
                break
            except (DeadlineError, OverloadedError):
                continue
        assert closer.is_alive()
    waiting.join()
    closer.join(5)
    assert not closer.is_alive()
    assert order == ["waiting"]


def test_never_more_than_the_instances_run_at_once():
    queue = InstanceQueue("m", ["a", "b"], 100)
    lock = threading.Lock()
    running = set()
    seen = []

    def work():
        for _ in range(50):
            with queue.lease(None) as lease:
                with lock:
                    assert lease.instance not in running
                    running.add(lease.instance)
                    seen.append(len(running))
                with lock:
                    running.remove(lease.instance)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 400
    assert max(seen) <= 2
    assert (queue.running, queue.queued) == (0, 0)
