"""What only threads can get wrong: cancels that overtake beginnings, clients that leave, answers that come when nobody waits."""

import asyncio
import gc
import random
import threading
import weakref

import numpy as np
import pytest

from edgekit.errors import OverloadedError
from edgekit.protocol import InferResponse, InFlight, Tensor
from edgekit.router import Pilot, PilotOptions, Router, RouterOptions
from edgekit.router._driver import Call, Driver, Finish
from edgekit.router._events import Ask
from edgekit.router._work import Work, answer_of

X = {"x": np.arange(8, dtype=np.float32).reshape(1, 8)}
LIMIT_S = 10.0  # for what happens at once unless the test fails
pytestmark = pytest.mark.usefixtures("no_thread_left")


class HandRunner:
    """A device whose attempts the test begins and ends by hand."""

    model, version = "m", "1"

    def __init__(self):
        self.handles = []
        self.begun = threading.Semaphore(0)
        self.may_return = threading.Event()
        self.may_return.set()
        self.aborted = threading.Semaphore(0)

    def serves(self, _model, _version):
        return True

    def check(self, inputs):
        pass

    def start(self, _work, done):
        handle = InFlight("http://edge:1", self.aborted.release)
        handle.add_done_callback(lambda ended: done(answer_of(ended)))
        self.handles.append(handle)
        self.begun.release()
        assert self.may_return.wait(LIMIT_S)
        return handle

    def close(self):
        for handle in self.handles:
            handle.cancel()


class NoOpinions:
    """Nobody compares the tiers' answers."""

    def __getattr__(self, name):
        return lambda *_args, **_more: None


@pytest.fixture
def parts():
    runner = HandRunner()
    driver = Driver(Pilot(PilotOptions(), 0, random.Random(1)), runner, [], lambda *_: None, NoOpinions())
    driver.start()
    yield driver, runner
    runner.may_return.set()
    driver.close()


def begin(driver, ends, sla_s=60.0):
    """One request; its end is appended to ``ends``, which has a semaphore."""

    def done(end):
        ends.found.append(end)
        ends.heard.release()

    now = driver._clock()
    call = Call(Work("m", "", X, 32, now + sla_s, now + sla_s + 1.0), done)
    driver.begin(call, lambda number, digest: Ask(number, "m", 32, now, now + sla_s, now + sla_s + 1.0, sla_s, digest=digest))
    return call


class Ends:
    def __init__(self):
        self.found, self.heard = [], threading.Semaphore(0)

    def wait(self):
        assert self.heard.acquire(timeout=LIMIT_S)
        return self.found[-1]


def answer(handle):
    handle.resolve(InferResponse("m", "1", [Tensor("y", X["x"] * 2)]))


def test_a_cancel_that_comes_while_the_attempt_begins_is_not_lost(parts):
    driver, runner = parts
    runner.may_return.clear()
    ends, calls = Ends(), []
    beginner = threading.Thread(target=lambda: calls.append(begin(driver, ends)))
    beginner.start()
    assert runner.begun.acquire(timeout=LIMIT_S)  # inside start: nothing can be cancelled yet
    (call,) = driver._calls.values()
    driver.leave(call)
    assert not runner.aborted.acquire(blocking=False)
    runner.may_return.set()
    assert runner.aborted.acquire(timeout=LIMIT_S)
    beginner.join(LIMIT_S)
    assert ends.found == []
    assert driver._handles == {}
    assert driver._dead == set()


def test_a_client_that_left_hears_nothing_and_its_worker_is_free_again(parts):
    driver, runner = parts
    ends = Ends()
    first = begin(driver, ends)
    assert runner.begun.acquire(timeout=LIMIT_S)
    driver.leave(first)
    driver.leave(first)
    second = Ends()
    begin(driver, second)
    assert runner.begun.acquire(timeout=LIMIT_S)
    answer(runner.handles[1])
    assert isinstance(second.wait(), Finish)
    assert ends.found == []


def test_an_answer_that_nobody_waits_for_changes_nothing(parts):
    driver, runner = parts
    ends = Ends()
    begin(driver, ends, sla_s=0.001)  # and a second of grace
    assert runner.begun.acquire(timeout=LIMIT_S)
    error = ends.wait()
    assert "in time" in str(error)
    assert runner.aborted.acquire(timeout=LIMIT_S)
    answer(runner.handles[0])
    again = Ends()
    begin(driver, again)
    assert runner.begun.acquire(timeout=LIMIT_S)
    answer(runner.handles[1])
    assert isinstance(again.wait(), Finish)
    assert len(ends.found) == 1


def test_every_request_of_many_threads_ends_once(parts):
    driver, runner = parts
    all_ends = [Ends() for _ in range(40)]
    threads = [threading.Thread(target=begin, args=(driver, ends)) for ends in all_ends]
    for thread in threads:
        thread.start()
    for index in range(40):  # one worker: the next begins when the one before was answered
        assert runner.begun.acquire(timeout=LIMIT_S)
        answer(runner.handles[index])
    for thread in threads:
        thread.join(LIMIT_S)
    for ends in all_ends:
        assert isinstance(ends.wait(), Finish)
        assert len(ends.found) == 1
    assert (driver._calls, driver._of, driver._handles) == ({}, {}, {})


def test_a_request_leaves_no_circles_behind(clients):
    """Its arrays go when it ends, and not when the collector comes by."""
    edge, _ = clients
    with Router(edge, None, sla_ms=60_000, model="m") as router:
        router.infer(X)
        gc.collect()
        gc.disable()
        try:
            arrays = [np.ones((1, 8), np.float32).view(Watched) for _ in range(5)]
            watched = [weakref.ref(array) for array in arrays]
            for array in arrays:
                router.infer({"x": array})
            for thread in edge.threads:
                thread.join(LIMIT_S)
            edge.threads.clear()
            del array, arrays
            assert [reference() for reference in watched] == [None] * 5
        finally:
            gc.enable()


class Watched(np.ndarray):
    """An array that can be referred to weakly."""


def test_after_the_close_a_request_is_refused(parts):
    driver, _ = parts
    driver.close()
    ends = Ends()
    begin(driver, ends)
    assert isinstance(ends.wait(), OverloadedError)


def test_a_task_that_is_cancelled_gives_its_request_up(clients):
    edge, _ = clients
    edge.script.mode = "hang"

    async def ask(router):
        task = asyncio.create_task(router.ainfer(X, deadline_ms=60_000))
        await asyncio.to_thread(edge.script.reached.wait, LIMIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return router.explain()

    with Router(edge, None, sla_ms=1000, model="m", options=RouterOptions(queue=4)) as router:
        assert asyncio.run(ask(router))["open"] == 0
        assert edge.cancelled == 1
