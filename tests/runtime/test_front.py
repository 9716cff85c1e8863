"""Versions at work: splits, canaries, shadows, rollbacks, lazy loading and quotas, on real ONNX Runtime sessions."""

import itertools
import json
import shutil
import threading
import time

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit.errors import DeadlineError, EngineError, IntegrityError, NotFoundError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferRequest, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore
from edgekit.runtime._control import ModelCommand, apply_command
from edgekit.runtime._front import VersionedCore
from edgekit.runtime._rollout import Counts
from edgekit.runtime._store import FolderStore
from edgekit.runtime._trial import split_position
from tests.runtime.serving_bundles import _model, write_scale, write_serving_bundle

X = np.ones((1, 4), np.float32)
QUICK = {"min_requests": 50, "min_step_s": 0.0, "max_error_rate": 0.1, "max_slow_rate": 0.1}


class Serving:
    """A repository in a folder, its core and its front, without transports or threads of their own."""

    def __init__(self, folder, **options):
        self.events = []
        self.store = FolderStore(folder)
        self.repository = ModelRepository(FolderStore(folder), on_event=self.events.append, **options)
        self.core = RuntimeCore(self.repository)
        self.front = VersionedCore(self.core, self.repository)

    def start(self):
        self.repository.load_all(strict=False)
        return self

    def ask(self, value=1.0, version="", **request):
        found = self.front.infer(InferRequest("scale", [Tensor("x", X * np.float32(value))], version, **request))
        return float(found.outputs[0].data[0, 0]), found.model_version

    def check(self):
        self.front._rollouts.check()

    def kinds(self):
        return [event.kind for event in self.events if event.kind != "load"]

    def close(self):
        self.front.close()
        self.core.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    for version in ("1", "2", "3"):
        write_scale(root / version, version=version, scale=float(version))
    write_scale(root / "2 near", version="2", scale=1.00001)
    for version, rows in (("1", 3), ("2", 2)):
        write_serving_bundle(root / f"table {version}", table(rows), "table", version, {"index": np.zeros(1, np.int64)})
    return root


def table(rows):
    """``y = table[index]``: an index that only the bigger table has fails in the engine of the smaller."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        "table",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [rows], [float(row) for row in range(rows)])],
    )
    return _model(graph)


@pytest.fixture
def serving(tmp_path, bundles):
    """``scale`` 1 (stable) and 2."""
    store = FolderStore(tmp_path / "repository")
    store.install(bundles / "1", ["stable"])
    store.install(bundles / "2")
    opened = Serving(tmp_path / "repository").start()
    yield opened
    opened.close()


def test_names_and_labels(serving):
    assert serving.ask() == (1.0, "1")
    assert serving.ask(version="2") == (2.0, "2")
    assert serving.ask(version="stable") == (1.0, "1")
    serving.front.repository_load("scale", {"version": "2", "label": "stable"})
    assert serving.ask() == (2.0, "2")
    assert serving.ask(version="1") == (1.0, "1")
    assert serving.front.model_config("scale")["parameters"]["labels"] == {"string_value": "stable=2"}
    assert serving.kinds() == ["swap"]
    serving.front.repository_load("scale", {"rollout": "rollback"})
    assert serving.ask() == (1.0, "1")
    with pytest.raises(NotFoundError, match=r"no version 'nope'; expected one of .*1"):
        serving.ask(version="nope")
    with pytest.raises(UsageError, match="no rollout is under way to promote"):
        serving.front.repository_load("scale", {"rollout": "promote"})


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"colour": "red"}, "parameter 'colour': not supported; expected one of version, label"),
        ({"config": "{}", "file:1/model.edgekit": "UEs="}, "parameter 'config': not supported; .*; put bundles into the repository"),
        ({"file:1/model.edgekit": "UEs="}, "parameter 'file:1/model.edgekit': not supported; .*; put bundles into the repository"),
        ({"share": "much"}, "parameters of the load request"),
        ({"label": "stable"}, "no version given"),
        ({"version": "9"}, "no version '9'"),
        ({"rollout": "blue", "version": "2"}, "rollout: 'blue'"),
        ({"rollout": "canary", "version": "1"}, "version 1 is what answers now"),
        ({"rollout": "canary", "version": "2", "risk": "2"}, "risk: 2; expected a share"),
    ],
)
def test_what_an_operator_cannot_ask(serving, parameters, line):
    before = serving.store.state()
    with pytest.raises((RequestError, UsageError), match=line):
        serving.front.repository_load("scale", parameters)
    assert serving.store.state() == before
    assert serving.ask() == (1.0, "1")


def test_a_split_is_even_deterministic_and_per_rollout(serving):
    serving.front.repository_load("scale", {"rollout": "split", "version": "2", "share": "0.3"})
    by_key = {key: serving.ask(parameters={"split_key": key})[1] for key in map(str, range(600))}
    assert {key: serving.ask(id=key)[1] for key in by_key} == by_key  # the id is as good as the parameter
    sequences = {serving.ask(id=str(turn), parameters={"sequence_id": 7})[1] for turn in range(30)}
    assert len(sequences) == 1  # a sequence stays with its version
    assert 0.24 < sum(version == "2" for version in by_key.values()) / 600 < 0.36
    assert serving.ask(version="2") == (2.0, "2")  # a named version takes no part
    unnamed = [serving.ask()[1] for _ in range(300)]
    assert 60 < unnamed.count("2") < 125
    other = {key: split_position(key, "scale\x003") < 0.3 for key in by_key}
    assert other != {key: version == "2" for key, version in by_key.items()}


def test_positions_are_uniform():
    positions = sorted(split_position(str(key), "salt") for key in range(2000))
    assert max(abs(position - index / 2000) for index, position in enumerate(positions)) < 0.044  # Kolmogorov-Smirnov, 0.1 %


def test_a_canary_that_fails_goes_back(tmp_path, bundles):
    store = FolderStore(tmp_path / "repository")
    store.install(bundles / "table 1")
    store.install(bundles / "table 2")
    serving = Serving(tmp_path / "repository").start()
    serving.front.repository_load("table", {"rollout": "canary", "version": "2", "share": 0.5})

    def ask(key):
        return serving.front.infer(InferRequest("table", [Tensor("index", np.array([2]))], id=key)).outputs[0].data[0]

    failures = 0
    for key in range(200):
        try:
            assert ask(str(key)) == 2.0
        except EngineError:
            failures += 1
        serving.check()
        if "rollback" in serving.kinds():
            break
    assert 15 <= failures <= 25  # at the first look
    assert [ask(str(key)) for key in range(20)] == [2.0] * 20
    state = store.state().models["table"]
    assert (state.labels, state.rollout, state.last.result) == ({"stable": "1"}, None, "rolled_back")
    assert f"{failures} of {failures} requests to version 2 failed" in state.last.reason
    assert serving.events[-1].reason == state.last.reason
    told = json.loads(serving.front.model_config("table")["parameters"]["rollout"]["string_value"])
    assert told["last"]["candidate"] == "2"
    serving.close()


def test_a_canary_that_is_slow_goes_back(serving):
    """Times are told, not waited for."""
    serving.front.repository_load("scale", {"rollout": "canary", "version": "2", "slo_ms": 5, "share": 0.5})
    trial = serving.repository.trials["scale"]
    answer = serving.front.infer(InferRequest("scale", [Tensor("x", X)], "2"))
    for _ in range(30):
        trial.record("1", answer, 0.004)
        trial.record("2", answer, 0.006)
    serving.check()
    assert serving.store.state().models["scale"].last.reason.startswith("30 of 30 requests to version 2 were slower than 5 ms or refused")
    assert serving.ask() == (1.0, "1")


def test_what_counts_for_whom(serving):
    serving.front.repository_load("scale", {"rollout": "split", "version": "2", "slo_ms": 5})
    trial = serving.repository.trials["scale"]
    answer = serving.front.infer(InferRequest("scale", [Tensor("x", X)], "2"))
    before = trial.seen().candidate
    told = [
        (answer, 0.001),
        (answer, 0.006),
        (EngineError("m", "x"), 0.0),
        (RuntimeError("bug"), 0.0),
        (DeadlineError("m", "x"), 0.0),
        (OverloadedError("m", "x"), 0.0),
        (RequestError("m", "the client's fault"), 0.0),
    ]
    for outcome, seconds in told:
        trial.record("2", outcome, seconds)
    assert trial.seen().candidate == Counts(before.requests + 6, before.errors + 2, before.slow + 3)


def test_a_good_canary_becomes_stable(serving):
    serving.front.repository_load("scale", {"rollout": "canary", "version": "2", **QUICK})
    shares = set()
    for key in itertools.count():
        trial = serving.repository.trials.get("scale")
        if trial is None:
            break
        shares.add(trial.rollout.share)
        serving.ask(id=str(key))
        serving.check()
    assert shares == {0.05, 0.25, 0.5, 1.0}
    assert serving.ask() == (2.0, "2")
    state = serving.store.state().models["scale"]
    assert (state.labels, state.previous, state.last.result) == ({"stable": "2"}, "1", "promoted")
    assert serving.kinds() == ["advance", "advance", "advance", "swap", "promote"]


def test_a_rollout_goes_on_after_a_restart(serving, tmp_path):
    serving.front.repository_load("scale", {"rollout": "canary", "version": "2", **QUICK})
    trial = serving.repository.trials["scale"]
    answer = serving.front.infer(InferRequest("scale", [Tensor("x", X)], "2"))
    for _ in range(200):
        trial.record("2", answer, 0.0)
    serving.check()
    assert serving.repository.trials["scale"] is trial  # it recognises its own step
    again = Serving(tmp_path / "repository").start()
    assert again.repository.trials["scale"].rollout.share == trial.rollout.share == 0.25
    assert again.repository.trials["scale"].seen().candidate == Counts()
    again.close()


def test_counts_go_on_after_a_kill(serving, tmp_path):
    serving.front.repository_load("scale", {"rollout": "canary", "version": "2", **QUICK, "min_requests": 100})
    trial = serving.repository.trials["scale"]
    answer = serving.front.infer(InferRequest("scale", [Tensor("x", X)], "2"))
    clock = time.time()
    serving.front._rollouts._clock = lambda: clock

    def later(requests, after_s):
        nonlocal clock
        clock += after_s
        for _ in range(requests):
            trial.record("2", answer, 0.0)
            trial.record("1", answer, 0.0)
        serving.check()

    later(30, 5.0)
    assert serving.store.state().models["scale"].progress is None  # not so often
    later(30, 10.0)
    later(5, 5.0)  # lost with the process
    again = Serving(tmp_path / "repository").start()  # what a killed process left is what lies there
    resumed = again.repository.trials["scale"]
    assert resumed.seen() == (Counts(60), Counts(60), "")
    assert (resumed.rollout.looks, resumed.rollout.next_look) == (2, 80)
    for _ in range(60):
        resumed.record("2", answer, 0.0)
    again.check()
    assert again.kinds() == ["advance"]  # after 120 requests in two processes
    assert again.store.state().models["scale"].progress is None
    again.close()


def test_counts_are_written_down_at_the_end(serving):
    serving.front.repository_load("scale", {"rollout": "split", "version": "2", **QUICK})
    serving.repository.trials["scale"].record("2", DeadlineError("model scale", "late"), 0.0)
    serving.front.close()
    assert serving.store.state().models["scale"].progress.candidate == Counts(1, 0, 1)
    serving.front.repository_load("scale", {"rollout": "stop"})
    assert serving.store.state().models["scale"].progress is None


def test_shadows_change_no_answer_and_measure_agreement(tmp_path, bundles):
    for candidate, agrees in (("2 near", True), ("2", False)):
        store = FolderStore(tmp_path / candidate)
        store.install(bundles / "1")
        store.install(bundles / candidate)
        serving = Serving(tmp_path / candidate).start()
        serving.front.repository_load("scale", {"rollout": "shadow", "version": "2"})
        shadow = None
        for value in range(1, 30):
            assert serving.ask(value) == (float(value), "1")
            (shadow,) = serving.front._rollouts._shadows.values()
            shadow._waiting.join()
        told = json.loads(serving.front.model_config("scale")["parameters"]["rollout"]["string_value"])["now"]
        assert told["agreement"]["compared"] == 29
        assert told["agreement"]["agreed"] == (29 if agrees else 0)
        assert told["counts"]["candidate"]["requests"] == 29
        assert ("max_rel" in told["agreement"]["worst"]) is not agrees
        serving.ask(parameters={"sequence_id": 5})
        shadow._waiting.join()
        assert shadow.agreement.compared == 29
        serving.front.repository_load("scale", {"rollout": "stop"})
        serving.check()
        assert not serving.front._rollouts._shadows
        serving.close()


def test_a_shadow_takes_copies_and_drops_what_it_cannot_hold(serving):
    """The client's arrays may change as soon as it has its answer, and a candidate that hangs must not hold memory."""
    serving.front.repository_load("scale", {"rollout": "shadow", "version": "2"})
    gate = threading.Event()
    asked = []

    def run(request):
        asked.append(request)
        gate.wait(10)
        return serving.core.infer(request)

    serving.front._rollouts._run = run
    array = X.copy()
    for _ in range(50):
        serving.front.infer(InferRequest("scale", [Tensor("x", array)]))
    array[:] = 7.0
    (shadow,) = serving.front._rollouts._shadows.values()
    gate.set()
    shadow._waiting.join()
    assert all(request.inputs[0].data[0, 0] == 1.0 and request.model_version == "2" for request in asked)
    assert shadow.agreement.compared == len(asked) <= 33
    assert shadow.agreement.dropped == 50 - len(asked)


def test_other_processes_changes_are_followed(serving, bundles):
    serving.store.install(bundles / "3", ["stable"])
    assert serving.ask() == (1.0, "1")
    serving.repository.follow()
    assert serving.ask() == (3.0, "3")
    serving.store.remove("scale", "1")
    serving.repository.follow()
    with pytest.raises(NotFoundError, match="no version '1'"):
        serving.ask(version="1")
    serving.repository.follow()
    assert serving.kinds() == ["swap"]


def test_a_candidate_that_cannot_be_loaded_goes_back(serving, bundles, caplog):
    serving.store.install(bundles / "3")
    entry = serving.store.state().models["scale"].versions["3"]
    (serving.store.folder / entry.folder / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="its content is not what was built"):
        serving.front.repository_load("scale", {"rollout": "canary", "version": "3"})
    serving.repository.follow()
    assert serving.ask() == (1.0, "1")
    other = Serving(serving.store.folder)  # as the command line would begin it
    command = ModelCommand(version="3", rollout="canary")
    other.repository.update("scale", lambda model: apply_command(command, "scale", model, list(model.versions), time.time()))
    serving.repository.follow()
    serving.check()
    assert "its content is not what was built" in serving.store.state().models["scale"].last.reason
    assert serving.ask() == (1.0, "1")
    assert "load_failed" in serving.kinds()
    other.close()


def test_without_the_stable_version_the_last_good_one_serves(serving, tmp_path, caplog):
    serving.front.repository_load("scale", {"version": "2", "label": "stable"})
    entry = serving.store.state().models["scale"].versions["2"]
    (serving.store.folder / entry.folder / "model.onnx").write_bytes(b"damaged")
    again = Serving(tmp_path / "repository").start()
    assert again.ask() == (1.0, "1")
    assert "version 2 stays out" in caplog.text
    again.close()


def test_what_was_removed_goes_on_until_something_else_can(serving, bundles, caplog):
    serving.store.install(bundles / "3", ["stable"])
    broken = serving.store.state().models["scale"].versions["3"]
    (serving.store.folder / broken.folder / "model.onnx").write_bytes(b"")
    for version in ("1", "2"):
        serving.store.remove("scale", version)
    serving.repository.follow()
    assert serving.ask() == (1.0, "1")  # what answered before
    assert "version 1, which was removed, goes on" in caplog.text
    with pytest.raises(NotFoundError):
        serving.ask(version="2")
    serving.store.install(bundles / "2", ["stable"])
    serving.repository.follow()
    assert serving.ask() == (2.0, "2")
    with pytest.raises(NotFoundError):
        serving.ask(version="1")


def test_lazy_loading(tmp_path, bundles):
    store = FolderStore(tmp_path / "repository")
    store.install(bundles / "1", ["stable"])
    store.install(bundles / "2")
    serving = Serving(tmp_path / "repository", lazy=True).start()
    assert serving.front.ready()
    assert not serving.repository.loaded()
    assert serving.ask(version="2") == (2.0, "2")
    assert [model.version for model in serving.repository.loaded()] == ["2"]
    assert serving.ask() == (1.0, "1")  # the default is the stable one, loaded or not
    serving.front.repository_unload("scale", {})
    with pytest.raises(NotFoundError, match="not loaded"):
        serving.ask()
    serving.front.repository_load("scale", {})
    assert serving.ask() == (1.0, "1")
    with pytest.raises(NotFoundError, match="no version '9'"):
        serving.ask(version="9")
    serving.close()


def test_lazy_repositories_warm_what_takes_over(tmp_path, bundles):
    """A model in use is swapped as elsewhere: the version that becomes the default, and a rollout's candidate, are loaded before they are asked."""
    store = FolderStore(tmp_path / "repository")
    store.install(bundles / "1", ["stable"])
    store.install(bundles / "2")
    serving = Serving(tmp_path / "repository", lazy=True).start()
    store.install(bundles / "3", ["stable"])
    serving.repository.follow()
    assert not serving.repository.loaded()  # nobody asked for any
    assert serving.ask() == (3.0, "3")
    store.install(bundles / "1", ["stable"])  # only the label moves
    serving.repository.follow()
    assert [model.version for model in serving.repository.loaded()] == ["1", "3"]
    serving.front.repository_load("scale", {"rollout": "canary", "version": "2"})
    assert [model.version for model in serving.repository.loaded()] == ["1", "2", "3"]
    serving.close()


def collected(serving, requests):
    answers = [None] * len(requests)
    done = threading.Semaphore(0)

    def keep(index):
        def tell(answer):
            assert answers[index] is None
            answers[index] = answer
            done.release()

        return tell

    tickets = [serving.front.submit(request, keep(index)) for index, request in enumerate(requests)]
    serving.front.turn()
    return answers, tickets, done


def test_submitted_requests_wait_for_the_load(tmp_path, bundles):
    FolderStore(tmp_path / "repository").install(bundles / "1")
    serving = Serving(tmp_path / "repository", lazy=True).start()
    loading = serving.repository._changing
    loading.acquire()  # a load that takes its time
    requests = [InferRequest("scale", [Tensor("x", X * np.float32(value))]) for value in range(5)]
    requests[3].deadline_s = time.monotonic() - 1
    answers, tickets, done = collected(serving, requests)
    serving.front._expire()
    assert isinstance(answers[3], DeadlineError)
    tickets[4].cancel()
    loading.release()
    for _ in range(4):
        assert done.acquire(timeout=10)
    assert [answer.outputs[0].data[0, 0] for answer in answers[:3]] == [0.0, 1.0, 2.0]
    assert answers[4] is None
    answers, _, done = collected(serving, requests[:1])  # loaded by now
    assert done.acquire(timeout=10)
    assert answers[0].model_version == "1"
    serving.close()


def test_the_memory_quota_unloads_what_was_not_used(tmp_path, bundles, monkeypatch):
    monkeypatch.setattr("edgekit.runtime._repository.resident_bytes", lambda: 0)  # then a version counts with its files' bytes
    store = FolderStore(tmp_path / "repository")
    for version in ("1", "2", "3"):
        store.install(bundles / version)
    size = max(one.bytes for one in store.state().models["scale"].versions.values())
    serving = Serving(tmp_path / "repository", lazy=True, memory_bytes=int(2.5 * size)).start()
    for version in ("1", "2", "1", "3"):
        assert serving.ask(version=version)[1] == version
    assert [model.version for model in serving.repository.loaded()] == ["1", "3"]
    assert [(event.kind, event.version) for event in serving.events if event.kind == "evict"] == [("evict", "2")]
    with serving.repository.get("scale", "1").queue.lease(None):
        assert serving.ask(version="2")[1] == "2"  # 1 is in use, so 3 goes
        assert [model.version for model in serving.repository.loaded()] == ["1", "2"]
    serving.close()
    started = Serving(tmp_path / "repository", memory_bytes=int(1.5 * size)).start()  # not all versions fit, so the default is there first
    assert [model.version for model in started.repository.loaded()] == ["3"]
    assert started.ask(version="1")[1] == "1"
    assert [model.version for model in started.repository.loaded()] == ["1"]
    started.front.repository_load("scale", {"version": "2"})  # evicts what is loaded, and does not bring it back closed
    assert [model.version for model in started.repository.loaded()] == ["2"]
    assert started.ask(version="2")[1] == "2"
    started.close()
    small = Serving(tmp_path / "repository", lazy=True, memory_bytes=size // 2).start()
    with pytest.raises(OverloadedError, match=r"needs about .* bytes of memory"):
        small.ask()
    small.close()


def test_answers_are_right_throughout_swaps_and_rollouts(serving, bundles):
    """Requests from several threads while versions come, go and change places: every one gets the answer of some version that was installed then."""
    stop = threading.Event()
    found, problems = set(), []

    def ask():
        while not stop.is_set():
            try:
                found.add(serving.ask())
            except Exception as exc:  # noqa: BLE001 - asserted below
                problems.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        serving.store.install(bundles / "3", ["stable"])
        serving.repository.follow()
        serving.front.repository_load("scale", {"rollout": "split", "version": "2"})
        serving.check()
        serving.front.repository_load("scale", {"rollout": "promote"})
        serving.store.install(bundles / "1", ["stable"])
        serving.store.remove("scale", "3")
        serving.repository.follow()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not problems
    assert found == {(1.0, "1"), (2.0, "2"), (3.0, "3")}
    shutil.rmtree(serving.store.folder)
    assert serving.ask()[0] in (1.0, 2.0)  # what is loaded answers without the disk
