"""The device's queue and workers, with a runner that the test holds in its hands."""

import threading

import numpy as np
import pytest

from edgekit.errors import DeadlineError, EngineError, OverloadedError
from edgekit.router import Tier
from edgekit.router._local import LocalJob, LocalTier
from edgekit.router._work import Answer, Work

FAR = 1e9


class Runner:
    """Runs what it is given one step at a time: each run waits for a permit, and takes as long as the test's clock says."""

    def __init__(self):
        self.permits = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.ran = []
        self.raises = None
        self.closed = False

    def serves(self, model, version):
        return model == "m"

    def run(self, work):
        self.ran.append(work.id)
        self.started.release()
        assert self.permits.acquire(timeout=10.0)
        if self.raises is not None:
            raise self.raises
        return Answer({"y": work.inputs["x"]}, "1")

    def close(self):
        self.closed = True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def parts():
    runner, clock = Runner(), Clock()
    tier = LocalTier(runner, 1, 4, clock)
    yield tier, runner, clock
    runner.permits.release(100)
    tier.close()
    assert runner.closed
    assert not any(thread.is_alive() for thread in tier._threads)


class Heard:
    def __init__(self):
        self.results = {}
        self.arrived = threading.Semaphore(0)

    def of(self, name):
        def on_done(tier, result):
            assert tier is Tier.EDGE
            assert name not in self.results  # each is told once
            self.results[name] = result
            self.arrived.release()

        return on_done

    def wait(self, count=1):
        for _ in range(count):
            assert self.arrived.acquire(timeout=10.0)


def job(name, heard, deadline_s=FAR, limit_s=FAR, late=False, returnable=False):
    work = Work("m", "", {"x": np.zeros(4, np.float32)}, 16, deadline_s, limit_s, id=name)
    return LocalJob(work, heard.of(name), late, returnable)


def know(tier, service_s):
    tier.seed("m", 16, [service_s] * 20)


def test_in_time_before_late_in_the_order_of_arrival(parts):
    tier, runner, _ = parts
    heard = Heard()
    tier.submit(job("first", heard))
    assert runner.started.acquire(timeout=10.0)
    for name, late in (("late", True), ("a", False), ("b", False)):
        tier.submit(job(name, heard, late=late))
    runner.permits.release(4)
    heard.wait(4)
    assert runner.ran == ["first", "a", "b", "late"]


def test_a_hopeless_request_is_given_back_or_joins_the_late_ones(parts):
    tier, runner, clock = parts
    know(tier, 0.05)
    heard = Heard()
    tier.submit(job("first", heard))
    assert runner.started.acquire(timeout=10.0)
    returned = job("returned", heard, deadline_s=clock.now + 0.1, returnable=True)
    kept = job("kept", heard, deadline_s=clock.now + 0.1)
    for one in (returned, kept, job("well", heard)):
        tier.submit(one)
    clock.now += 0.08
    runner.permits.release(3)
    heard.wait(4)
    assert returned.given_back
    assert isinstance(heard.results["returned"], DeadlineError)
    assert runner.ran == ["first", "well", "kept"]
    assert isinstance(heard.results["kept"], Answer)


def test_what_waited_beyond_its_limit_is_refused_without_running(parts):
    tier, runner, clock = parts
    heard = Heard()
    tier.submit(job("first", heard))
    assert runner.started.acquire(timeout=10.0)
    tier.submit(job("old", heard, deadline_s=clock.now + 0.1, limit_s=clock.now + 1.0))
    clock.now += 2.0
    runner.permits.release(1)
    heard.wait(2)
    assert isinstance(heard.results["old"], DeadlineError)
    assert runner.ran == ["first"]


def test_a_cancelled_request_leaves_the_queue(parts):
    tier, runner, _ = parts
    heard = Heard()
    tier.submit(job("first", heard))
    assert runner.started.acquire(timeout=10.0)
    dropped = job("dropped", heard)
    tier.submit(dropped)
    assert tier.waiting == 1
    tier.cancel(dropped)
    assert tier.waiting == 0
    runner.permits.release(1)
    heard.wait(1)
    assert runner.ran == ["first"]


def test_a_full_queue_refuses(parts):
    tier, runner, _ = parts
    heard = Heard()
    tier.submit(job("first", heard))
    assert runner.started.acquire(timeout=10.0)
    for name in "abcde":
        tier.submit(job(name, heard))
    heard.wait(1)
    assert isinstance(heard.results["e"], OverloadedError)


def test_whatever_an_engine_raises_is_told_and_the_worker_goes_on(parts):
    tier, runner, _ = parts
    heard = Heard()
    runner.raises = ValueError("from deep inside")
    runner.permits.release(1)
    tier.submit(job("broken", heard))
    heard.wait(1)
    assert isinstance(heard.results["broken"], EngineError)
    assert "from deep inside" in str(heard.results["broken"])
    runner.raises = None
    runner.permits.release(1)
    tier.submit(job("well", heard))
    heard.wait(1)
    assert isinstance(heard.results["well"], Answer)


@pytest.mark.parametrize("workers", [1, 2])
def test_offloaded_traffic_is_probed_whenever_it_began(workers):
    """A worker that fell asleep before the traffic moved away must hear of it: requests of both kinds overlap when a device is throttled."""
    runner, clock = Runner(), Clock()
    tier = LocalTier(runner, workers, 4, clock)
    heard = Heard()
    tier.submit(job("slow", heard, deadline_s=clock.now + 0.1))
    assert runner.started.acquire(timeout=10.0)
    work = job("offloaded", heard).work
    tier.offloaded(work, 0.05, clock.now)  # while the slow one still runs
    clock.now += 0.2
    runner.raises = DeadlineError("edge", "too slow")
    runner.permits.release(1)
    heard.wait(1)  # its end is newer than the last offloaded request, so no probe is planned
    threading.Event().wait(0.05)  # for the workers to fall asleep
    runner.raises = None
    clock.now += 100.0
    tier.offloaded(work, 0.05, clock.now)
    assert runner.started.acquire(timeout=10.0)  # the probe
    assert runner.ran == ["slow", ""]  # under no name of a client's request
    runner.permits.release(1)
    tier.close()
