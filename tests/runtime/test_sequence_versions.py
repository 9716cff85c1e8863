"""Sequences where versions are chosen for requests: rollouts, shadows, lazy loading, quotas, labels."""

import threading

import numpy as np
import pytest

from edgekit.errors import OverloadedError
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from edgekit.runtime._front import VersionedCore
from edgekit.runtime._sequences import SequenceCore
from edgekit.runtime._store import FolderStore
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell
from tests.runtime.test_sequences import CLOSE, ask, output


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two versions of the cell with other weights, and another model."""
    root = tmp_path_factory.mktemp("cells")
    return [write_cell(root / version, version=version, seed=int(version)).path for version in ("1", "2")] + [
        write_cell(root / "other", name="other").path
    ]


class Serving:
    """Cores as `serve_bundles` stacks them."""

    def __init__(self, folder, bundles, **options):
        store = FolderStore(folder)
        for bundle in bundles:
            store.install(bundle)
        self.repository = ModelRepository(FolderStore(folder), **options)
        self.core = RuntimeCore(self.repository)
        self.front = VersionedCore(self.core, self.repository, self.core.infer)
        self.whole = SequenceCore(self.front, self.core, self.repository)
        self.repository.load_all(strict=False)

    def talk(self, sequence, xs, **request):
        """Answers and versions of a whole sequence."""
        found = [self.whole.infer(ask(x, sequence, start=index == 0, end=index == len(xs) - 1, **request)) for index, x in enumerate(xs)]
        return np.stack([output(answer) for answer in found]), {answer.model_version for answer in found}

    def close(self):
        self.whole.close()
        self.front.close()
        self.core.close()


@pytest.fixture
def serving(tmp_path, bundles):
    made = Serving(tmp_path / "repository", bundles)
    yield made
    made.close()


def test_a_split_sends_a_whole_sequence_to_one_version(serving):
    serving.whole.repository_load("cell", {"rollout": "split", "version": "2", "share": "0.5"})
    seen = set()
    for sequence in range(1, 13):
        xs = values(4, seed=sequence)
        found, versions = serving.talk(f"call {sequence}", xs)
        (version,) = versions
        seen.add(version)
        np.testing.assert_allclose(found, told_apart(cell_model(seed=int(version)), xs), **CLOSE)
    assert seen == {"1", "2"}


def test_a_promotion_moves_no_open_sequence(serving):
    xs = values(4)
    serving.whole.repository_load("cell", {"version": "1", "label": "stable"})
    first = [output(serving.whole.infer(ask(x, start=index == 0))) for index, x in enumerate(xs[:2])]
    serving.whole.repository_load("cell", {"version": "2", "label": "stable"})
    assert serving.talk("new", xs)[1] == {"2"}
    rest = [output(serving.whole.infer(ask(x))) for x in xs[2:]]
    np.testing.assert_allclose(np.stack(first + rest), told_apart(cell_model(seed=1), xs), **CLOSE)


def test_a_shadow_gets_no_sequences(serving):
    serving.whole.repository_load("cell", {"rollout": "shadow", "version": "2"})
    xs = values(5)
    found, versions = serving.talk("call", xs)
    assert versions == {"1"}
    np.testing.assert_allclose(found, told_apart(cell_model(seed=1), xs), **CLOSE)
    assert not serving.front._rollouts._shadows


def test_a_version_can_be_named_by_label(serving):
    serving.whole.repository_load("cell", {"version": "2", "label": "next"})
    xs = values(3)
    found, versions = serving.talk("call", xs, version="next")
    assert versions == {"2"}
    np.testing.assert_allclose(found, told_apart(cell_model(seed=2), xs), **CLOSE)


def test_sequences_keep_their_version_in_memory(tmp_path, bundles):
    """With room for one model, a live sequence's is not unloaded for another; afterwards it is."""
    serving = Serving(tmp_path / "repository", [bundles[0], bundles[2]], lazy=True, memory_bytes=1)
    try:
        serving.repository._memory_bytes = 0
        answers, done = [], threading.Semaphore(0)

        def told(answer):
            answers.append(answer)
            done.release()

        serving.whole.submit(ask(values(1)[0], start=True), told)  # loads it first
        assert done.acquire(timeout=30)
        assert output(answers[0]).shape == (1, 3)
        serving.repository._memory_bytes = serving.repository.loaded("cell")[0].memory_bytes + 1
        other = InferRequest("other", [Tensor("x", values(1)[0])], parameters={"sequence_id": 5, "sequence_start": True})
        with pytest.raises(OverloadedError, match="bytes of memory"):
            serving.repository.ensure("other")
        serving.whole.infer(ask(values(1)[0], end=True))
        serving.repository._memory_bytes *= 1000
        assert serving.whole.infer(other).model_name == "other"
    finally:
        serving.close()
