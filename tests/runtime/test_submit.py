"""`RuntimeCore.submit` and `turn`: requests without a thread for each."""

import threading
import time

import numpy as np
import pytest

from edgekit.errors import DeadlineError, EngineError, NotFoundError, RequestError
from edgekit.protocol import InferRequest, InferResponse, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from tests.runtime.serving_bundles import gather_model, write_scale, write_serving_bundle

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("submitted")
    write_scale(root / "scale", scale=2.0)
    write_serving_bundle(root / "gather", gather_model(), "gather", "1", {"index": np.array([0, 2])})
    return root


@pytest.fixture
def core(folder):
    repository = ModelRepository([folder])
    repository.load_all()
    opened = RuntimeCore(repository)
    yield opened
    opened.close()


class Answers:
    """What ``done`` heard, by name."""

    def __init__(self):
        self.heard = {}
        self._arrived = threading.Semaphore(0)

    def of(self, name):
        def done(result):
            self.heard.setdefault(name, []).append(result)
            self._arrived.release()

        return done

    def wait(self, count):
        for _ in range(count):
            assert self._arrived.acquire(timeout=10)
        heard = self.heard.copy()  # threads may still add to it
        assert all(len(results) == 1 for results in heard.values())
        return {name: results[0] for name, results in heard.items()}


def test_all_of_a_turn_is_answered(core):
    answers = Answers()
    for index in range(20):
        core.submit(InferRequest("scale", [Tensor("x", X + index)], id=str(index)), answers.of(index))
    core.turn()
    for index, response in answers.wait(20).items():
        assert isinstance(response, InferResponse)
        assert response.id == str(index)
        np.testing.assert_array_equal(response.outputs[0].data, (X + index) * 2)


def test_errors_are_answers(core):
    answers = Answers()
    core.submit(InferRequest("nope", [Tensor("x", X)]), answers.of("unknown"))
    core.submit(InferRequest("scale", [Tensor("x", X[:, :3])]), answers.of("shape"))
    core.submit(InferRequest("gather", [Tensor("index", np.array([7]))]), answers.of("engine"))
    core.submit(InferRequest("gather", [Tensor("index", np.array([1]))]), answers.of("well"))
    core.turn()
    heard = answers.wait(4)
    assert isinstance(heard["unknown"], NotFoundError)
    assert isinstance(heard["shape"], RequestError)
    assert isinstance(heard["engine"], EngineError)
    np.testing.assert_array_equal(heard["well"].outputs[0].data, [20.0])


def wait_for_proof(core, name="scale"):
    """Requests run together once it is proven that they may."""
    model = core._repository.get(name)
    answers, sent = Answers(), 0
    while model.plan.proof.state is None:
        assert sent < 4000
        for index in range(4):
            core.submit(InferRequest(name, [Tensor("x", X[:1] + index)]), answers.of(sent + index))
        core.turn()
        sent += 4
        answers.wait(4)
    assert model.plan.proof.state
    return model


def test_what_arrived_in_one_turn_runs_in_one_call(core):
    model = wait_for_proof(core)
    before = core.statistics("scale")[0]
    answers = Answers()
    model.queue.times.limit = 8
    for index in range(8):
        core.submit(InferRequest("scale", [Tensor("x", X[:1] + index)], id=str(index)), answers.of(index))
    core.turn()
    for index, response in answers.wait(8).items():
        np.testing.assert_array_equal(response.outputs[0].data, (X[:1] + index) * 2)
        np.testing.assert_array_equal(response.outputs[1].data, (X[:1] + index).sum(1, keepdims=True))
        assert response.id == str(index)
    after = core.statistics("scale")[0]
    assert after["inference_count"] - before["inference_count"] == 8
    assert after["execution_count"] - before["execution_count"] == 1
    eight = next(batch for batch in after["batch_stats"] if batch["batch_size"] == 8)
    assert eight["compute_infer"]["count"] == 1
    assert eight["compute_infer"]["ns"] > 0
    runs = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert sum(size * count for size, count in runs.items()) == after["inference_count"]
    assert sum(runs.values()) == after["execution_count"]


def test_what_collects_while_the_model_is_busy_goes_together_in_a_worker(core):
    model = wait_for_proof(core)
    threads, answers = [], Answers()

    def noting(name):
        heard = answers.of(name)
        return lambda result: (threads.append(threading.current_thread().name), heard(result))

    with model.queue.lease():
        for index in range(4):
            core.submit(InferRequest("scale", [Tensor("x", X[:1] + index)]), noting(index))
            core.turn()
        assert (core.queue_depth("scale"), core.in_flight("scale")) == (4, 1)
        assert answers.heard == {}
    answers.wait(4)
    assert len(set(threads)) == 1
    assert threads[0].startswith("edgekit-worker")


def test_priorities_and_deadlines_in_the_queue(core):
    model = wait_for_proof(core)
    order, answers = [], Answers()

    def noting(name):
        heard = answers.of(name)
        return lambda result: (order.append(name), heard(result))

    now_s = time.monotonic()
    cases = {
        "plain": {},
        "late": {"deadline_s": now_s + 60},
        "early": {"deadline_s": now_s + 50},
        "urgent": {"parameters": {"priority": 1}},
        "least": {"parameters": {"priority": 9}},
    }
    with model.queue.lease():
        for name, others in cases.items():  # of different sizes in rows, so that none runs with another
            model.queue.times.limit = 1
            core.submit(InferRequest("scale", [Tensor("x", X)], **others), noting(name))
        core.submit(InferRequest("scale", [Tensor("x", X)], parameters={"priority": "x"}), noting("bad"))
        core.turn()
        core.submit(InferRequest("scale", [Tensor("x", X)], deadline_s=now_s - 1), noting("expired"))
        core.turn()
    heard = answers.wait(7)
    assert order == ["bad", "expired", "urgent", "early", "late", "plain", "least"]
    assert isinstance(heard["bad"], RequestError)
    assert isinstance(heard["expired"], DeadlineError)


def test_a_deadline_that_passes_in_the_queue_is_told_while_the_model_is_busy(core):
    model = wait_for_proof(core)
    answers = Answers()
    with model.queue.lease():
        core.submit(InferRequest("scale", [Tensor("x", X)], deadline_s=time.monotonic() + 0.03), answers.of("hurried"))
        core.turn()
        assert isinstance(answers.wait(1)["hurried"], DeadlineError)
        assert core.queue_depth("scale") == 0


def test_a_queued_request_is_cancelled(core):
    model = wait_for_proof(core)
    answers = Answers()
    with model.queue.lease():
        ticket = core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("dropped"))
        core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("kept"))
        core.turn()
        ticket.cancel()
        assert core.queue_depth("scale") == 1
    assert list(answers.wait(1)) == ["kept"]


def test_what_waits_is_answered_before_a_model_goes(core):
    model = wait_for_proof(core)
    answers = Answers()
    unloading = threading.Thread(target=core.repository_unload, args=("scale", {}))
    with model.queue.lease():
        core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("waiting"))
        core.turn()
        unloading.start()
        while core._repository.loaded("scale"):
            pass
        core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("after"))
        core.turn()
    heard = answers.wait(2)
    unloading.join(5)
    assert isinstance(heard["waiting"], InferResponse)
    assert isinstance(heard["after"], NotFoundError)


def test_many_threads_submit_and_ask_at_once(core):
    answers, count = Answers(), 40
    failures = []

    def send(base):
        for index in range(count):
            name = base + index
            core.submit(InferRequest("scale", [Tensor("x", X[: 1 + index % 2] + name)], id=str(name)), answers.of(name))
            core.turn()

    def ask(base):
        for index in range(count):
            x = X + base + index
            answer = core.infer(InferRequest("scale", [Tensor("x", x)]))
            if not np.array_equal(answer.outputs[0].data, x * 2):
                failures.append(base + index)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index, work in enumerate([send, ask] * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    heard = answers.wait(3 * count)
    assert failures == []
    assert len(heard) == 3 * count
    for name, response in heard.items():
        assert isinstance(response, InferResponse)
        np.testing.assert_array_equal(response.outputs[0].data, (X[: len(response.outputs[0].data)] + name) * 2)
    assert (core.queue_depth("scale"), core.in_flight("scale")) == (0, 0)


def test_observers_hear_of_every_request(folder):
    repository = ModelRepository([folder])
    repository.load_all()
    singly, together = [], []

    class Observer:
        def __call__(self, model, version, engine, queue_s, compute_s, outcome):
            singly.append((model, outcome))

        def together(self, model, version, engine, queue_s, compute_s):
            together.append((model, len(queue_s)))
            assert all(waited_s >= 0 for waited_s in queue_s)

    core = RuntimeCore(repository, Observer())
    core.infer(InferRequest("scale", [Tensor("x", X)]))
    for tensor in (Tensor("x", X[:, :3]), Tensor("z", X)):
        with pytest.raises(RequestError):
            core.infer(InferRequest("scale", [tensor]))
    with pytest.raises(EngineError):
        core.infer(InferRequest("gather", [Tensor("index", np.array([7]))]))
    core.close()
    assert together == [("scale", 1)]
    assert singly == [("scale", "rejected"), ("scale", "rejected"), ("gather", "error")]


def test_what_nobody_expected_is_this_requests_answer_only(core, caplog):
    answers = Answers()
    core.submit(InferRequest("scale", [Tensor("x", None)]), answers.of("no array"))
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("well"))
    core.turn()
    heard = answers.wait(2)
    assert "model scale: ended in an unexpected AttributeError" in str(heard["no array"])
    assert isinstance(heard["well"], InferResponse)
    assert "unexpected error" in caplog.text


def test_a_callback_that_fails_costs_the_others_nothing(core, caplog):
    answers = Answers()
    core.submit(InferRequest("scale", [Tensor("x", X)]), lambda _: 1 / 0)
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("well"))
    core.turn()
    assert isinstance(answers.wait(1)["well"], InferResponse)
    assert "callback failed" in caplog.text


def test_who_asks_for_an_answer_does_not_serve_others_for_ever(core, monkeypatch):
    """What arrives while a caller's thread runs its own request is left to the workers."""
    engine = core._repository.get("scale")._sessions[0].engine
    run, threads, answers = engine.run, [], Answers()

    def noting(result):
        threads.append(threading.current_thread())
        answers.of(len(threads))(result)

    def busy(inputs):
        monkeypatch.setattr(engine, "run", run)
        for _ in range(3):
            core.submit(InferRequest("scale", [Tensor("x", X)]), noting)
        core.turn()
        return run(inputs)

    monkeypatch.setattr(engine, "run", busy)
    core.infer(InferRequest("scale", [Tensor("x", X)]))
    answers.wait(3)
    assert threading.current_thread() not in threads


def test_no_thread_outlives_the_core(folder):
    before = set(threading.enumerate())
    repository = ModelRepository([folder])
    repository.load_all()
    core, answers = RuntimeCore(repository), Answers()
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("first"))  # nothing is known about it: goes to a worker
    core.turn()
    answers.wait(1)
    core.close()
    assert set(threading.enumerate()) <= before


def test_what_was_cancelled_before_its_turn_is_not_run(core):
    answers = Answers()
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("dropped")).cancel()
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("kept"))
    core.turn()
    assert list(answers.wait(1)) == ["kept"]
    assert core.statistics("scale")[0]["inference_count"] == 1
