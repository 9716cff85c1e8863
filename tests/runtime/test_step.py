"""`RuntimeCore.step`: the thread that brings requests runs what is short, piece by piece: all of it on one core, and on several what the workers cannot begin."""

import itertools
import threading

import numpy as np
import pytest

from edgekit.protocol import InferRequest, InferResponse, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from edgekit.runtime._dispatch import Dispatcher
from edgekit.runtime._estimates import BatchTimes
from edgekit.runtime._job import Job
from edgekit.runtime._kept_models import KeptModels
from edgekit.runtime._scheduler import InstanceQueue
from edgekit.runtime._workers import Workers
from tests.runtime.serving_bundles import write_scale

X = np.arange(4, dtype=np.float32).reshape(1, 4)
RUN_S = 2e-3  # long enough to end a step, short enough to run in it
LIMIT_S = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stepped")
    for name in ("scale", "other"):
        write_scale(root / name, name=name, scale=2.0)
    return root


class Clock:
    """Seconds that each look moves on by half a run: a run takes `RUN_S` by it."""

    def __init__(self):
        self._now_s = itertools.count(0, RUN_S)

    def __call__(self):
        return next(self._now_s)


@pytest.fixture
def make_core(folder):
    opened = []

    def make(cores=1, instances=1):
        repository = ModelRepository([folder], max_batch=1, instances=instances)
        repository.load_all()
        core = RuntimeCore(repository)
        core._dispatcher.close()
        core._dispatcher = Dispatcher(core._model_of, None, cores)
        for model in repository.loaded():
            model.queue._clock = Clock()
            model.queue.times.add(1, RUN_S)
        opened.append(core)
        return core

    yield make
    for core in opened:
        core.close()


class Answers:
    """Who was answered, in order, and by which thread."""

    def __init__(self):
        self.order, self.threads = [], []
        self._arrived = threading.Semaphore(0)

    def of(self, name):
        def done(result):
            assert isinstance(result, InferResponse)
            self.order.append(name)
            self.threads.append(threading.current_thread())
            self._arrived.release()

        return done

    def wait(self, count):
        for _ in range(count):
            assert self._arrived.acquire(timeout=LIMIT_S)


def submit(core, answers, names, model="scale"):
    for name in names:
        core.submit(InferRequest(model, [Tensor("x", X)]), answers.of(name))


def test_one_core_runs_what_is_short_where_it_came_and_looks_up_between(make_core):
    core, answers = make_core(), Answers()
    submit(core, answers, range(8))
    assert core.step()  # more is to run
    begun = len(answers.order)
    assert 0 < begun < 8
    submit(core, answers, [8, 9])  # came meanwhile
    steps = 1 + next(count for count in itertools.count(1) if not core.step())
    assert steps > 2
    assert answers.order == list(range(10))
    assert set(answers.threads) == {threading.current_thread()}
    assert not core._dispatcher._workers._threads
    assert not core.step()


class Held:
    """An answer that keeps the worker which brings it until the block ends."""

    def __init__(self):
        self.thread, self._came, self._go_on = None, threading.Event(), threading.Event()

    def __call__(self, result):
        self.thread = threading.current_thread()
        self._came.set()
        assert self._go_on.wait(LIMIT_S)

    def __enter__(self):
        assert self._came.wait(LIMIT_S)

    def __exit__(self, *_):
        self._go_on.set()


def test_on_several_cores_one_alone_is_left_to_a_worker(make_core):
    core, answers = make_core(cores=2), Answers()
    submit(core, answers, [0])
    assert not core.step()
    answers.wait(1)
    assert threading.current_thread() not in answers.threads


def test_what_the_workers_cannot_begin_runs_where_it_came(make_core):
    core, answers, held = make_core(cores=2, instances=2), Answers(), Held()
    core.submit(InferRequest("scale", [Tensor("x", X)]), held)
    assert not core.step()
    with held:  # the worker has its core, and the other core is this thread's
        submit(core, answers, range(4))
        while core.step():
            pass
        assert answers.order == list(range(4))
        assert set(answers.threads) == {threading.current_thread()}
    assert held.thread is not threading.current_thread()


def test_what_finds_no_instance_waits_for_the_next_step_too(make_core):
    core, answers, held = make_core(cores=2, instances=2), Answers(), Held()
    queue = core._repository.get("scale").queue
    core.submit(InferRequest("scale", [Tensor("x", X)]), held)
    assert not core.step()
    with held:
        with queue.lease(), queue.lease():
            submit(core, answers, range(4))
            assert not core.step()  # to come back at once would be in vain
            assert not answers.order
            assert core._dispatcher._kept
        while core.step():
            pass
        answers.wait(4)
    assert sorted(answers.order) == list(range(4))


@pytest.mark.parametrize("run_s", [1.0, 0.0], ids=["long", "unknown"])
def test_on_several_cores_what_is_long_waits_for_a_worker(make_core, run_s):
    core, answers, held = make_core(cores=2, instances=2), Answers(), Held()
    core.submit(InferRequest("scale", [Tensor("x", X)]), held)
    assert not core.step()
    with held:
        times = core._repository.get("scale").queue.times = BatchTimes(1)
        if run_s:
            times.add(1, run_s)
        submit(core, answers, range(3))
        assert not core.step()
        answers.wait(3)  # another worker has the core that nobody lent
    assert not {threading.current_thread(), held.thread} & set(answers.threads)


def test_what_is_long_is_left_to_the_workers(make_core):
    core, answers = make_core(), Answers()
    queue = core._repository.get("scale").queue
    for _ in range(200):
        queue.times.add(1, 1.0)
    submit(core, answers, range(3))
    while core.step():
        pass
    answers.wait(3)
    assert answers.order == [0, 1, 2]
    assert threading.current_thread() not in answers.threads


def test_who_does_not_come_back_hands_it_over(make_core):
    core, answers = make_core(), Answers()
    submit(core, answers, range(8))
    assert core.step()
    core.turn()
    answers.wait(8)
    assert sorted(answers.order) == list(range(8))


def test_models_take_turns_in_steps(make_core):
    core, answers = make_core(), Answers()
    submit(core, answers, [("scale", index) for index in range(6)])
    assert core.step()
    submit(core, answers, [("other", index) for index in range(6)], "other")
    while core.step():
        pass
    assert len(answers.order) == 12
    # Neither waits for all of the other: each of them has answers in the first half.
    assert {model for model, _ in answers.order[:6]} == {"scale", "other"}
    for model in ("scale", "other"):
        assert [index for name, index in answers.order if name == model] == list(range(6))


def test_the_model_that_used_the_least_goes_first():
    class Model:
        def __init__(self, used_s):
            self.queue = InstanceQueue("m", [0], 9)
            self.queue.share.used(used_s)

    kept, behind, ahead = KeptModels(), Model(1.0), Model(2.0)
    kept.add(ahead)
    kept.add(behind)
    assert kept.next(0.0) is behind
    assert kept.next(0.0) is ahead
    assert not kept
    late = Model(0.0)
    kept.add(late)  # it was idle: no burst for what it did not use
    assert late.queue.share.virtual_s == 2.0
    kept.drop(late)
    assert kept.next(0.0) is None


def waiting_queue(count):
    queue = InstanceQueue("m", [0], 99)
    assert queue.start([Job(InferRequest("m", []), lambda _: None) for _ in range(count)], 0.0) == (None, [])
    return queue


def test_workers_take_back_what_nobody_went_on_with():
    ran, done = [], threading.Semaphore(0)

    def run(queue, batch):
        ran.extend(batch.jobs)
        queue.finish(batch)
        done.release(len(batch.jobs))

    workers = Workers(1, lambda _: 1, run, lambda _: None, lambda _queue, _batch: True)
    queue = waiting_queue(5)
    workers.wake(queue)
    for _ in range(5):
        assert done.acquire(timeout=LIMIT_S)
    workers.close()
    assert len(set(ran)) == len(ran) == 5


def test_workers_leave_what_was_lent_and_taken():
    taken, ran = threading.Event(), []

    def run(queue, batch):
        ran.extend(batch.jobs)
        queue.finish(batch)

    def lend(queue, _batch):
        lent.append(queue.take()[0])
        taken.set()
        return True

    lent = []
    workers = Workers(1, lambda _: 1, run, lambda _: None, lend)
    queue = waiting_queue(2)
    workers.wake(queue)
    assert taken.wait(LIMIT_S)
    workers.close()  # waits for what runs
    assert len(ran) == 1
    assert len(lent) == 1
    assert lent[0].jobs[0] not in ran
