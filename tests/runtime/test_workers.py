"""The device's threads: cores, fairness among models, and what goes wrong in them."""

import math
import threading

import pytest

from edgekit.protocol import InferRequest
from edgekit.runtime._fairness import BORROW_S
from edgekit.runtime._job import Job
from edgekit.runtime._scheduler import InstanceQueue
from edgekit.runtime._workers import Workers


class Clock:
    """Seconds that only the runs of one model move."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def queue_with(name, jobs, *, run_s=0.001, instances=1, deadline_s=None):
    """A queue with ``jobs`` waiting, of a model whose runs take ``run_s`` by its own clock."""
    clock = Clock()
    queue = InstanceQueue(name, list(range(instances)), 1000, clock)
    queue.clock, queue.run_s = clock, run_s
    queue.times.add(1, run_s)
    waiting = [Job(InferRequest(name, [], deadline_s=deadline_s), lambda _: None) for _ in range(jobs)]
    assert queue.start(waiting, 0.0) == (None, [])  # nothing is so quick: all stay for the workers
    return queue


class Device:
    """Workers whose runs only count, and wait where a test says so."""

    def __init__(self, cores, cost=lambda _: 1, hold=None):
        self.order, self.refused, self.most = [], [], 0
        self._running, self._lock, self._hold = 0, threading.Lock(), hold
        self._done = threading.Condition(self._lock)
        self.workers = Workers(cores, cost, self._run, self.refused.append)

    def _run(self, queue, batch):
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        if self._hold is not None:
            self._hold()
        queue.clock.now_s += queue.run_s * batch.runs
        with self._lock:
            self._running -= 1
        queue.finish(batch)
        with self._done:
            self.order += [queue] * batch.runs
            self._done.notify_all()

    def wait(self, count):
        with self._done:
            assert self._done.wait_for(lambda: len(self.order) >= count, 10)


@pytest.fixture
def devices():
    made = []

    def make(*arguments, **options):
        made.append(Device(*arguments, **options))
        return made[-1]

    yield make
    for device in made:
        device.workers.close()
        assert not any(thread.is_alive() for thread in device.workers._threads)


def test_models_share_the_time_not_the_turns(devices):
    """Both wait from the start; while both have work, the slow one gets a tenth of the runs and half of the time."""
    gate = threading.Event()
    device = devices(1, hold=gate.wait)
    slow, quick = queue_with("slow", 20, run_s=0.010), queue_with("quick", 200, run_s=0.001)
    device.workers.wake(slow)
    device.workers.wake(quick)
    gate.set()
    device.wait(220)
    for count in range(30, 180, 10):
        ran = device.order[:count]
        spent_s = ran.count(slow) * slow.run_s, ran.count(quick) * quick.run_s
        assert abs(spent_s[0] - spent_s[1]) <= 2 * slow.run_s
    assert (device.order.count(slow), device.order.count(quick)) == (20, 200)


def test_deadlines_do_not_take_the_device_from_others(devices):
    """One model's deadlines are always about to pass (by the workers' clock; its own stands far from them)."""
    gate = threading.Event()
    device = devices(1, hold=gate.wait)
    hurried, plain = queue_with("hurried", 150, run_s=0.01, deadline_s=3.0), queue_with("plain", 150, run_s=0.01)
    device.workers.wake(hurried)
    device.workers.wake(plain)
    gate.set()
    device.wait(300)
    for count in range(20, 260, 20):
        ran = device.order[:count]
        assert abs(ran.count(hurried) - ran.count(plain)) * 0.01 <= BORROW_S + 0.03


@pytest.mark.parametrize(("cores", "cost", "most"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (4, 2, 2), (1, 4, 1)])
def test_batches_run_side_by_side_while_there_are_cores(devices, cores, cost, most):
    barrier = threading.Barrier(most)
    device = devices(cores, cost=lambda _: cost, hold=lambda: barrier.wait(10))
    queue = queue_with("m", 4 * most, instances=4)
    device.workers.wake(queue)
    device.wait(4 * most)
    assert device.most == most


def test_an_error_in_a_callback_costs_no_thread(devices, caplog):
    device = devices(1)
    queue = queue_with("m", 1)
    real, device.workers._run = device.workers._run, lambda queue, batch: (queue.finish(batch), 1 / 0)
    device.workers.wake(queue)
    while "unexpected error" not in caplog.text:
        threading.Event().wait(0.001)
    device.workers._run = real
    queue.start([Job(InferRequest("m", []), lambda _: None)], 0.0)
    device.workers.wake(queue)
    device.wait(1)


def test_waking_for_nothing_starts_nothing(devices):
    device = devices(2)
    device.workers.wake(InstanceQueue("m", ["a"], 4))
    assert device.workers._threads == []
    assert queue_with("m", 1).first_deadline_s() == math.inf


def test_a_core_that_was_lent_is_left_alone(devices):
    device = devices(2)
    device.workers.lend_core(3600)
    assert device.workers.spare() == 1
    queue = queue_with("m", 6, instances=2)
    device.workers.wake(queue)
    device.wait(6)
    assert device.most == 1
    assert len(device.workers._threads) == 1


def test_a_core_that_nobody_uses_is_taken_back(devices):
    """Each run waits for another beside it, which a worker begins when the loan has ended."""
    barrier = threading.Barrier(2)
    device = devices(2, hold=lambda: barrier.wait(10))
    device.workers.lend_core(0.02)
    device.workers.wake(queue_with("m", 2, instances=2))
    device.workers.wake(queue_with("n", 2, instances=2))
    device.wait(4)
    assert device.most == 2
