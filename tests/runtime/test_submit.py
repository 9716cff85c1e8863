"""`RuntimeCore.submit` and `turn`: requests without a thread for each."""

import threading

import numpy as np
import pytest

from edgekit.errors import EngineError, NotFoundError, RequestError
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
        assert all(len(results) == 1 for results in self.heard.values())
        return {name: results[0] for name, results in self.heard.items()}


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


def test_what_was_cancelled_before_its_turn_is_not_run(core):
    answers = Answers()
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("dropped")).cancel()
    core.submit(InferRequest("scale", [Tensor("x", X)]), answers.of("kept"))
    core.turn()
    assert list(answers.wait(1)) == ["kept"]
    assert core.statistics("scale")[0]["inference_count"] == 1
