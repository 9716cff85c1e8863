"""Finding, loading and unloading bundles."""

import shutil
import threading

import numpy as np
import pytest

from edgekit.errors import BundleError, IntegrityError, NotFoundError, UsageError
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from edgekit.runtime._found import find_bundles, version_key
from tests.runtime.serving_bundles import scale_model, write_scale, write_serving_bundle

X = np.ones((1, 4), np.float32)


@pytest.fixture
def folder(tmp_path):
    """``scale`` in versions 2 (a directory) and 10 (an archive), ``other`` two folders down."""
    root = tmp_path / "models"
    root.mkdir()
    write_scale(root / "two", version="2", scale=2.0)
    write_scale(root / "ten.edgekit", version="10", scale=10.0)
    write_scale(root / "deep" / "er" / "bundle", name="other", version="1", scale=7.0)
    (root / "README.txt").write_text("not a bundle")
    (root / ".hidden").mkdir()
    shutil.copytree(root / "two", root / ".hidden" / "two")
    return root


@pytest.fixture
def repository(folder):
    opened = ModelRepository([folder])
    opened.load_all()
    yield opened
    opened.close()


def rows(repository):
    return [(entry.name, entry.version, entry.state) for entry in repository.index()]


def answer(core, name="scale", version=""):
    return float(core.infer(InferRequest(name, [Tensor("x", X)], version)).outputs[0].data[0, 0])


def test_versions_sort_as_numbers():
    assert sorted(["10", "9", "1.10", "1.9", "beta", "2"], key=version_key) == ["beta", "1.9", "1.10", "2", "9", "10"]


def test_find(folder):
    found = find_bundles([folder])
    assert [(item.name, item.version, item.problem) for item in found] == [("other", "1", ""), ("scale", "2", ""), ("scale", "10", "")]
    assert [item.name for item in find_bundles([folder / "two"])] == ["scale"]
    assert len(find_bundles([folder, folder / "two"])) == 3  # the same bundle twice is one


def test_the_highest_version_answers_unless_one_is_named(repository):
    core = RuntimeCore(repository)
    assert core.ready()
    assert answer(core) == 10.0
    assert answer(core, version="2") == 2.0
    assert answer(core, "other") == 7.0
    assert core.model_metadata("scale").versions == ["2", "10"]
    assert core.model_metadata("scale", "2").versions == ["2"]


def test_unload_and_load(repository):
    core = RuntimeCore(repository)
    core.repository_unload("scale", {})
    assert rows(repository) == [("other", "1", "READY"), ("scale", "2", "UNAVAILABLE"), ("scale", "10", "UNAVAILABLE")]
    assert [entry.name for entry in core.repository_index(ready_only=True)] == ["other"]
    with pytest.raises(NotFoundError, match="model 'scale': not loaded"):
        answer(core)
    with pytest.raises(NotFoundError):
        core.model_ready("scale")
    core.repository_unload("scale", {"unload_dependents": False})  # once more changes nothing
    core.repository_load("scale", {})
    assert answer(core) == 10.0
    assert core.ready()


def test_load_takes_what_lies_on_disk_now(repository, folder):
    core = RuntimeCore(repository)
    write_scale(folder / "eleven", version="11", scale=11.0)
    assert ("scale", "11", "UNAVAILABLE") in rows(repository)
    assert answer(core) == 10.0
    repository.load("scale")
    assert answer(core) == 11.0
    shutil.rmtree(folder / "two")
    repository.load("scale")
    with pytest.raises(NotFoundError, match="no version '2'; expected one of 10, 11"):
        answer(core, version="2")
    write_scale(folder / "new", name="new", scale=3.0)
    repository.load("new")
    assert answer(core, "new") == 3.0


def test_a_load_that_fails_leaves_what_was_loaded(repository, folder):
    core = RuntimeCore(repository)
    bundle = write_scale(folder / "eleven", version="11", scale=11.0)
    weights = bundle.directory / "model.onnx"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="its content is not what was built"):
        repository.load("scale")
    assert answer(core) == 10.0
    entry = next(entry for entry in repository.index() if entry.version == "11")
    assert entry.state == "UNAVAILABLE"
    assert "its content is not what was built" in entry.reason


def test_unload_waits_for_requests_under_way(repository):
    model = repository.get("scale", "10")
    unloading = threading.Thread(target=repository.unload, args=("scale",))
    with model.queue.lease(None) as lease:
        unloading.start()
        while True:
            try:
                repository.get("scale")
            except NotFoundError:
                break
        assert unloading.is_alive()
        assert lease.instance.run({"x": X})["y"][0, 0] == 10.0  # the engine is still open
    unloading.join(5)
    assert not unloading.is_alive()


def test_requests_get_answers_throughout_swaps(repository, folder):
    core = RuntimeCore(repository)
    answers = []
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(answer(core))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        write_scale(folder / "eleven", version="11", scale=11.0)
        repository.load("scale")
        shutil.rmtree(folder / "eleven")
        shutil.rmtree(folder / ".eleven.files")
        repository.load("scale")
    stop.set()
    for thread in threads:
        thread.join(10)
    assert len(answers) > 4
    assert set(answers) == {10.0, 11.0}


def test_a_load_keeps_what_did_not_change(repository, folder):
    before = {model.version: model for model in repository.loaded("scale")}
    write_scale(folder / "eleven", version="11", scale=11.0)
    repository.load("scale")
    after = {model.version: model for model in repository.loaded("scale")}
    assert all(after[version] is model for version, model in before.items())
    shutil.rmtree(folder / "two")
    write_scale(folder / "two b", version="2", scale=2.5)
    repository.load("scale")
    assert repository.get("scale", "2") is not before["2"]
    assert repository.get("scale", "10") is before["10"]
    assert answer(RuntimeCore(repository), version="2") == 2.5


def test_unknown_names(repository):
    for change in (repository.load, repository.unload, repository.get):
        with pytest.raises(NotFoundError, match="model 'nope'"):
            change("nope")


def test_nothing_there(tmp_path):
    with pytest.raises(BundleError, match="no such file or directory"):
        ModelRepository([tmp_path / "missing"])
    with pytest.raises(UsageError, match="no bundle in this folder"):
        ModelRepository([tmp_path])


def test_a_file_that_is_no_bundle(tmp_path):
    path = tmp_path / "model.edgekit"
    path.write_bytes(b"nothing")
    repository = ModelRepository([path])
    with pytest.raises(BundleError, match="not a bundle that can be read"):
        repository.load_all()
    assert [(entry.name, entry.state) for entry in repository.index()] == [("model", "UNAVAILABLE")]


def test_the_same_version_twice(tmp_path):
    write_scale(tmp_path / "a")
    write_scale(tmp_path / "b")
    with pytest.raises(UsageError, match=r"model scale version 1: found twice, in .*/a and .*/b"):
        ModelRepository([tmp_path])


def test_not_ready_before_anything_is_loaded(folder):
    repository = ModelRepository([folder])
    assert not RuntimeCore(repository).ready()
    assert {state for _, _, state in rows(repository)} == {"UNAVAILABLE"}


def test_a_bundle_without_golden_samples_is_served_cold(tmp_path, caplog):
    write_serving_bundle(tmp_path / "cold", scale_model(2.0), "cold", "1", {})
    repository = ModelRepository([tmp_path])
    repository.load_all()
    assert "no golden sample" in caplog.text
    assert answer(RuntimeCore(repository), "cold") == 2.0
    repository.close()
