"""States that the server keeps: in process, and behind the protocol; order, isolation, limits, time, and swaps."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgeKitError, NotFoundError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferRequest, RequestedOutput, Tensor
from edgekit.runtime import ModelRepository, RuntimeCore, SequenceLimits, load
from edgekit.runtime._sequence_table import SequenceTable, read_control
from edgekit.runtime._sequences import SequenceCore
from edgekit.runtime._states import States
from tests.runtime.serving_bundles import write_scale
from tests.runtime.stateful_bundles import WIDTH, cell_model, told_apart, values, write_cell, write_memory

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # rows side by side are summed in another order


@pytest.fixture(scope="module", params=["N", pytest.param(1, marks=pytest.mark.slow)], ids=["open", "fixed"])
def bundle(request, tmp_path_factory):
    """The cell, with an open batch (sequences may run together) and without."""
    return write_cell(tmp_path_factory.mktemp("cell") / "cell", rows=request.param)


@pytest.fixture
def serve_core(bundle):
    """Makes cores over the cell; closed at the end."""
    made = []

    def make(limits=None, paths=None, **options):
        repository = ModelRepository([bundle.path] if paths is None else paths, **options)
        core = RuntimeCore(repository)
        whole = SequenceCore(core, core, repository, limits)
        repository.load_all()
        made.append((whole, core))
        return whole, repository

    yield make
    for whole, core in made:
        whole.close()
        core.close()


@pytest.fixture(scope="module")
def shared_core(bundle):
    """A core for all examples of a property."""
    repository = ModelRepository([bundle.path])
    core = RuntimeCore(repository)
    whole = SequenceCore(core, core, repository)
    repository.load_all()
    yield whole
    whole.close()
    core.close()


def ask(x, sequence=7, *, start=False, end=False, outputs=(), state=None, model="cell", version=""):
    tensors = [Tensor("x", x)] if x is not None else []
    tensors += [Tensor(name, array) for name, array in (state or {}).items()]
    parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    return InferRequest(model, tensors, version, outputs=[RequestedOutput(name) for name in outputs], parameters=parameters)


def output(answer, name="y"):
    return {tensor.name: tensor.data for tensor in answer.outputs}[name]


class Answers:
    """Callbacks for `submit`, and their answers in order."""

    def __init__(self):
        self.found = {}
        self.order = []
        self._done = threading.Semaphore(0)

    def expect(self, key):
        def done(answer):
            self.found[key] = answer
            self.order.append(key)
            self._done.release()

        return done

    def wait(self, count):
        for _ in range(count):
            assert self._done.acquire(timeout=30)


# In process


def test_a_stream_in_this_process_is_the_model_with_its_state_handed_on(bundle):
    xs = values(6)
    with load(bundle) as session, session.stream() as stream:
        found = np.stack([stream.run({"x": x})["y"] for x in xs])
        assert set(stream.run({"x": xs[0]})) == {"y"}
    np.testing.assert_allclose(found, told_apart(cell_model(), xs), **CLOSE)


def test_a_stream_goes_on_from_anothers_state(bundle):
    xs = values(6)
    with load(bundle) as session:
        first = session.stream()
        for x in xs[:3]:
            first.run({"x": x})
        second = session.stream(state=first.state)
        found = np.stack([second.run({"x": x})["y"] for x in xs[3:]])
    np.testing.assert_allclose(found, told_apart(cell_model(), xs)[3:], **CLOSE)


def test_an_error_leaves_a_stream_as_it_was(bundle):
    xs = values(3)
    with load(bundle) as session:
        stream = session.stream()
        stream.run({"x": xs[0]})
        with pytest.raises(RequestError, match="float32"):
            stream.run({"x": xs[1].astype(np.float64)})
        with pytest.raises(RequestError, match="is kept by the stream"):
            stream.run({"x": xs[1], "s": xs[1]})
        found = stream.run({"x": xs[1]})["y"]
        with pytest.raises(RequestError, match="no such state"):
            session.stream(state={"x": xs[0]})
    np.testing.assert_allclose(found, told_apart(cell_model(), xs)[1], **CLOSE)


def test_a_model_without_states_has_no_streams(tmp_path):
    with load(write_scale(tmp_path / "scale")) as session, pytest.raises(RequestError, match="built with --state"):
        session.stream()


# Behind the protocol


def test_a_sequence_is_the_model_with_its_state_handed_on(serve_core):
    core, _ = serve_core()
    xs = values(5)
    found = [output(core.infer(ask(x, start=index == 0, end=index == 4))) for index, x in enumerate(xs)]
    np.testing.assert_allclose(np.stack(found), told_apart(cell_model(), xs), **CLOSE)
    with pytest.raises(RequestError, match=r"no sequence 7 is open.*sequence_start"):
        core.infer(ask(xs[0]))


def test_the_state_can_be_asked_for_and_brought_elsewhere(serve_core):
    here, _ = serve_core()
    there, _ = serve_core()
    xs = values(4)
    assert [tensor.name for tensor in here.infer(ask(xs[0], "call", start=True)).outputs] == ["y"]
    answer = here.infer(ask(xs[1], "call", end=True, outputs=["s_next", "n_next", "y"]))
    state = {"s": output(answer, "s_next"), "n": output(answer, "n_next")}
    found = [output(there.infer(ask(xs[2], "other", start=True, state=state))), output(there.infer(ask(xs[3], "other")))]
    np.testing.assert_allclose(np.stack(found), told_apart(cell_model(), xs)[2:], **CLOSE)
    with pytest.raises(RequestError, match="is kept by the server"):
        there.infer(ask(xs[3], "other", state=state))


def test_outputs_that_are_asked_for_come_without_the_state(serve_core):
    core, _ = serve_core()
    xs = values(2)
    answers = [core.infer(ask(x, start=index == 0, outputs=["y"])) for index, x in enumerate(xs)]
    assert [[tensor.name for tensor in answer.outputs] for answer in answers] == [["y"], ["y"]]
    np.testing.assert_allclose(output(answers[1]), told_apart(cell_model(), xs)[1], **CLOSE)


def test_without_a_sequence_the_caller_keeps_the_state(serve_core):
    core, _ = serve_core()
    x = values(1)[0]
    request = InferRequest("cell", [Tensor("x", x), Tensor("s", np.zeros((1, WIDTH), np.float32)), Tensor("n", np.array([[4]]))])
    assert output(core.infer(request), "n_next") == 5
    with pytest.raises(RequestError, match=r"input .s.: missing; expected .*sequence_id"):
        core.infer(InferRequest("cell", [Tensor("x", x)]))
    for nothing in (0, ""):  # as Triton's clients say that there is none
        with pytest.raises(RequestError, match="input 's': missing"):
            core.infer(ask(x, nothing, start=True))


def test_a_start_begins_again(serve_core):
    core, _ = serve_core()
    xs = values(2)
    core.infer(ask(xs[1], start=True))
    found = [output(core.infer(ask(x, start=index == 0))) for index, x in enumerate(xs)]
    np.testing.assert_allclose(np.stack(found), told_apart(cell_model(), xs), **CLOSE)
    (row,) = core.statistics("cell")
    assert row["sequence_stats"] == {"begin": 2, "end": 0, "expire": 0, "drain": 0}


def test_an_error_leaves_the_state_as_it_was(serve_core):
    core, _ = serve_core()
    xs = values(3)
    core.infer(ask(xs[0], start=True))
    with pytest.raises(RequestError, match="float64"):
        core.infer(ask(xs[1].astype(np.float64)))
    np.testing.assert_allclose(output(core.infer(ask(xs[1]))), told_apart(cell_model(), xs)[1], **CLOSE)


def test_an_answer_without_its_state_is_an_error_and_the_sequence_goes_on(serve_core, monkeypatch):
    """An engine that breaks its word costs this answer, and no client waits for ever."""
    core, _ = serve_core()
    xs = values(2)
    core.infer(ask(xs[0], start=True))

    class Broken(States):
        def after(self, outputs):
            raise KeyError("s_next")

    model = core._repository.get("cell")
    with monkeypatch.context() as patch:
        patch.setattr(model, "states", Broken(model.signature))
        with pytest.raises(KeyError):
            core.infer(ask(xs[1]))
    np.testing.assert_allclose(output(core.infer(ask(xs[1], end=True))), told_apart(cell_model(), xs)[1], **CLOSE)


def test_a_start_that_fails_opens_nothing(serve_core):
    core, _ = serve_core(SequenceLimits(sequences=1))
    with pytest.raises(RequestError):
        core.infer(ask(values(1)[0].astype(np.float64), 1, start=True))
    with pytest.raises(RequestError, match="no sequence 1 is open"):
        core.infer(ask(values(1)[0], 1))
    core.infer(ask(values(1)[0], 2, start=True))


def test_an_end_without_inputs_only_ends(serve_core):
    core, _ = serve_core(SequenceLimits(sequences=1))
    core.infer(ask(values(1)[0], 1, start=True))
    assert core.infer(ask(None, 1, end=True)).outputs == []
    core.infer(ask(values(1)[0], 2, start=True))


def export(core, sequence=7):
    """Ends a sequence and takes its states."""
    return core.infer(InferRequest("cell", [], parameters={"sequence_id": sequence, "sequence_export": True}))


def moved(answer, x, digest=None, sequence=8):
    """The first request elsewhere."""
    told = ask(x, sequence, start=True, state={tensor.name: tensor.data for tensor in answer.outputs})
    told.parameters["sequence_state_of"] = digest or answer.parameters["sequence_state_of"]
    return told


def test_an_exported_sequence_goes_on_elsewhere_bit_for_bit_and_is_in_one_place(serve_core):
    (one, _), (other, _) = serve_core(), serve_core()
    xs = values(6)
    expected = [output(one.infer(ask(x, 1, start=index == 0))) for index, x in enumerate(xs)]
    for index, x in enumerate(xs[:3]):
        one.infer(ask(x, start=index == 0))
    taken = export(one)
    assert {tensor.name for tensor in taken.outputs} == {"s", "n"}
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        one.infer(ask(xs[3]))
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        export(one)
    answers = [other.infer(moved(taken, xs[3]))] + [other.infer(ask(x, 8)) for x in xs[4:]]
    np.testing.assert_array_equal([output(answer) for answer in answers], expected[3:])
    assert len(one._table) == 1
    assert len(other._table) == 1


def test_what_cannot_be_exported_or_taken_over(serve_core):
    core, _ = serve_core()
    xs = values(2)
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        export(core)
    core.infer(ask(xs[0], start=True))
    with pytest.raises(RequestError, match="sequence_export': given with sequence_start"):
        core.infer(InferRequest("cell", [], parameters={"sequence_id": 7, "sequence_export": True, "sequence_start": True}))
    taken = export(core)
    with pytest.raises(RequestError, match=r"digest 123; expected states n, s of [0-9a-f]{64}"):
        core.infer(moved(taken, xs[1], "123"))
    taken.outputs.pop()
    with pytest.raises(RequestError, match="states s of a bundle"):
        core.infer(moved(taken, xs[1]))
    assert len(core._table) == 0


def test_metadata_and_configuration_show_states_as_states(serve_core):
    core, _ = serve_core()
    metadata, config = core.model_metadata("cell"), core.model_config("cell")
    assert [tensor.name for tensor in (*metadata.inputs, *metadata.outputs)] == ["x", "y"]
    assert [tensor["name"] for tensor in (*config["input"], *config["output"])] == ["x", "y"]
    batching = config["sequence_batching"]
    assert batching["max_sequence_idle_microseconds"] == 60_000_000
    states = [(state["input_name"], state["output_name"], state["data_type"], state["dims"]) for state in batching["state"]]
    assert states == [("s", "s_next", "TYPE_FP32", [1, 3]), ("n", "n_next", "TYPE_INT64", [1, 1])]
    assert "sequence" in core.server_metadata().extensions


def test_a_model_without_states_ignores_sequences(serve_core, tmp_path):
    write_scale(tmp_path / "scale")
    for lazy in (False, True):
        core, _ = serve_core(paths=[tmp_path], lazy=lazy)
        if lazy:
            core._repository.ensure("scale")
        x = np.ones((1, 4), np.float32)
        for start in (False, True):
            request = InferRequest("scale", [Tensor("x", x)], parameters={"sequence_id": 3, "sequence_start": start})
            np.testing.assert_array_equal(output(core.infer(request)), 2 * x)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"sequence_id": 1.5}, "a whole number"),
        ({"sequence_id": True}, "a whole number"),
        ({"sequence_id": -1}, "below 2\\^64"),
        ({"sequence_id": 1 << 64}, "below 2\\^64"),
        ({"sequence_id": "x" * 129}, "128 characters"),
        ({"sequence_id": 1, "sequence_start": 1}, "true or false"),
        ({"sequence_id": 1, "sequence_end": "yes"}, "true or false"),
    ],
)
def test_parameters_that_cannot_be(parameters, expected, serve_core):
    with pytest.raises(RequestError, match=expected):
        read_control(parameters)
    core, _ = serve_core()
    with pytest.raises(RequestError, match=expected):
        core.infer(InferRequest("cell", [Tensor("x", values(1)[0])], parameters=parameters))


@pytest.mark.parametrize("limits", [{"sequences": 0}, {"state_bytes": 0}, {"waiting": 0}, {"idle_s": 0.0}, {"drain_s": float("inf")}])
def test_limits_that_cannot_be(limits):
    with pytest.raises(UsageError):
        SequenceLimits(**limits)


# Order and isolation


def test_requests_of_one_sequence_keep_their_order_when_they_come_at_once(serve_core):
    core, _ = serve_core()
    xs, answers = values(20), Answers()
    for index, x in enumerate(xs):
        core.submit(ask(x, start=index == 0, end=index == 19), answers.expect(index))
    core.turn()
    answers.wait(20)
    assert answers.order == list(range(20))
    np.testing.assert_allclose(np.stack([output(answers.found[index]) for index in range(20)]), told_apart(cell_model(), xs), **CLOSE)


@settings(max_examples=20)
@given(data=st.data())
def test_interleaved_sequences_do_not_mix(data, shared_core):
    """Any interleaving, in any turns: each sequence answers what the model answers to it alone."""
    core = shared_core
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    plan = data.draw(st.permutations([which for which, length in enumerate(lengths) for _ in range(length)]))
    turns = data.draw(st.lists(st.booleans(), min_size=len(plan), max_size=len(plan)))
    xs = [values(length, seed=which) for which, length in enumerate(lengths)]
    sent, answers = [0] * len(lengths), Answers()
    for which, turn in zip(plan, turns, strict=True):
        index = sent[which]
        sent[which] += 1
        last = index == lengths[which] - 1
        core.submit(ask(xs[which][index], f"s{which}", start=index == 0, end=last), answers.expect((which, index)))
        if turn:
            core.turn()
    core.turn()
    answers.wait(len(plan))
    for which, length in enumerate(lengths):
        found = np.stack([output(answers.found[which, index]) for index in range(length)])
        np.testing.assert_allclose(found, told_apart(cell_model(), xs[which]), **CLOSE)
    assert len(core._table) == 0


def test_sequences_of_several_threads_run_together(serve_core):
    core, _ = serve_core()
    xs = [values(12, seed=which) for which in range(6)]
    found = [[] for _ in xs]

    def talk(which):
        for index, x in enumerate(xs[which]):
            found[which].append(output(core.infer(ask(x, which + 1, start=index == 0, end=index == 11))))

    threads = [threading.Thread(target=talk, args=(which,)) for which in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for which in range(6):
        np.testing.assert_allclose(np.stack(found[which]), told_apart(cell_model(), xs[which]), **CLOSE)


def test_a_request_that_waits_can_be_withdrawn(serve_core):
    core, _ = serve_core()
    xs, answers = values(3), Answers()
    core.submit(ask(xs[0], start=True), answers.expect(0))
    core.submit(ask(xs[1]), answers.expect(1)).cancel()
    core.submit(ask(xs[2]), answers.expect(2))
    core.turn()
    answers.wait(2)
    assert answers.order == [0, 2]
    np.testing.assert_allclose(output(answers.found[2]), told_apart(cell_model(), xs[[0, 2]])[1], **CLOSE)


# Limits and time


def test_too_many_sequences_are_refused_and_none_is_cut_off(serve_core):
    core, _ = serve_core(SequenceLimits(sequences=2))
    xs = values(2)
    core.infer(ask(xs[0], 1, start=True))
    core.infer(ask(xs[0], 2, start=True))
    with pytest.raises(OverloadedError, match="2 are open; expected at most 2"):
        core.infer(ask(xs[0], 3, start=True))
    np.testing.assert_allclose(output(core.infer(ask(xs[1], 1, end=True))), told_apart(cell_model(), xs)[1], **CLOSE)
    core.infer(ask(xs[0], 3, start=True))


def test_states_are_bounded_in_bytes(serve_core):
    core, _ = serve_core(SequenceLimits(state_bytes=2 * 1024 + 30))
    core.infer(ask(values(1)[0], 1, start=True))
    with pytest.raises(OverloadedError, match="bytes with this one"):
        core.infer(ask(values(1)[0], 2, start=True))
    core.infer(ask(None, 1, end=True))
    core.infer(ask(values(1)[0], 2, start=True))


def test_a_state_may_grow_within_the_limit(serve_core, tmp_path):
    """It begins with nothing at all; each request adds 8 bytes. Beyond the limit the sequence ends, and what it took is free."""
    core, _ = serve_core(SequenceLimits(state_bytes=1024 + 5 * 8), paths=[write_memory(tmp_path / "memory").path])
    x = np.ones((1, 1, 2), np.float32)
    for index in range(5):
        assert output(core.infer(ask(x, start=index == 0, model="memory")), "total").tolist() == [[[index + 1, index + 1]]]
    with pytest.raises(OverloadedError, match="at most 1064"):
        core.infer(ask(x, model="memory"))
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        core.infer(ask(x, model="memory"))
    assert core._table.bytes == 0
    core.infer(ask(x, start=True, model="memory"))


def test_too_many_waiting_requests_are_refused(serve_core):
    core, _ = serve_core(SequenceLimits(waiting=2))
    answers = Answers()
    for index in range(4):
        core.submit(ask(values(1)[0], start=index == 0), answers.expect(index))
    assert isinstance(answers.found[3], OverloadedError)
    core.turn()
    answers.wait(4)
    assert answers.order == [3, 0, 1, 2]


class Retired:
    """What the table asks of a model."""

    class holds:
        retired_s = float("inf")


def test_the_table_ends_what_is_idle_and_only_that():
    table = SequenceTable(SequenceLimits(idle_s=10.0))
    busy, first, second = (table.begin(("m", "", index)) for index in (1, 2, 3))
    table.idle(first, 100.0)
    table.idle(second, 104.0)
    assert (table.expire(109.9), table.next_expiry_s()) == ([], 110.0)
    assert table.expire(110.0) == [first]
    table.busy(second)
    assert (table.expire(1e9), table.next_expiry_s(), len(table)) == ([], None, 2)
    table.end(busy)
    table.end(second)
    assert (len(table), table.bytes) == (0, 0)


def test_the_table_drains_replaced_versions():
    table = SequenceTable(SequenceLimits(idle_s=100.0, drain_s=5.0))
    old, new = table.begin(("m", "", 1)), table.begin(("m", "", 2))
    old.model, new.model = Retired(), Retired()
    old.model.holds = type("holds", (), {"retired_s": 50.0})
    table.idle(old, 52.0)
    table.idle(new, 52.0)
    assert table.drain(54.9) == []
    assert table.drain(55.0) == [old]
    assert len(table) == 1


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["begin", "idle", "busy", "end", "resize", "expire"]), st.integers(0, 5), st.integers(0, 3000)),
        max_size=60,
    )
)
def test_the_table_counts_right(steps):
    """Bytes and count are those of what is open, whatever happens; neither passes its limit."""
    limits = SequenceLimits(sequences=3, state_bytes=5000, idle_s=7.0)
    table, now_s, idle = SequenceTable(limits), 0.0, {}
    for what, which, size in steps:
        now_s += 1.0
        sequence = table.get(("m", "", which))
        if what == "begin" and sequence is None:
            try:
                table.begin(("m", "", which))
            except OverloadedError:
                assert len(table) == 3
        elif what == "expire":
            gone = {one.key for one in table.expire(now_s)}
            assert gone == {key for key, since_s in idle.items() if now_s - since_s >= 7.0}
            idle = {key: since_s for key, since_s in idle.items() if key not in gone}
        elif sequence is None:
            continue
        elif what == "resize":
            try:
                table.resize(sequence, size)
            except OverloadedError:
                assert size + 1024 > sequence.bytes
        elif what == "end":
            table.end(sequence)
            idle.pop(sequence.key, None)
        elif what == "idle":
            table.busy(sequence)
            table.idle(sequence, now_s)
            idle[sequence.key] = now_s
        else:
            table.busy(sequence)
            idle.pop(sequence.key, None)
        assert table.bytes == sum(one.bytes for one in table.all())
        assert len(table) <= 3
        assert all(one.key in idle or one.key not in table._idle for one in table.all())


def test_an_idle_sequence_ends_by_itself(serve_core):
    core, _ = serve_core(SequenceLimits(idle_s=1e-6))
    core.infer(ask(values(1)[0], start=True))
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        core.infer(ask(values(1)[0]))
    (row,) = core.statistics("cell")
    assert row["sequence_stats"]["expire"] == 1


# Swaps


def test_a_sequence_stays_on_the_version_that_it_began_on(serve_core, tmp_path):
    """The version is replaced by other weights under the same name: who is on it goes on with it, who begins gets the new one."""
    write_cell(tmp_path / "cell", seed=0)
    core, repository = serve_core(paths=[tmp_path])
    xs = values(3)
    found = [output(core.infer(ask(xs[0], "old", start=True)))]
    old = repository.get("cell")
    write_cell(tmp_path / "new", seed=5).path.rename(tmp_path / "renamed")
    replace(tmp_path / "cell", tmp_path / "renamed")
    core.repository_load("cell", {})
    assert repository.get("cell") is not old
    assert not old.holds.closed
    found.append(output(core.infer(ask(xs[1], "old"))))
    fresh = output(core.infer(ask(xs[0], "new", start=True)))
    found.append(output(core.infer(ask(xs[2], "old", end=True))))
    np.testing.assert_allclose(np.stack(found), told_apart(cell_model(seed=0), xs), **CLOSE)
    np.testing.assert_allclose(fresh, told_apart(cell_model(seed=5), xs[:1])[0], **CLOSE)
    core.close()  # its thread closes what nobody is on
    assert old.holds.closed


def test_a_sequence_on_a_replaced_version_is_given_only_so_long(serve_core, tmp_path):
    write_cell(tmp_path / "cell", seed=0)
    core, repository = serve_core(SequenceLimits(drain_s=1e-6), paths=[tmp_path])
    core.infer(ask(values(1)[0], start=True))
    old = repository.get("cell")
    replace(tmp_path / "cell", write_cell(tmp_path / "new", seed=5).path)
    core.repository_load("cell", {})
    with pytest.raises(EdgeKitError, match=r"was unloaded while the sequence ran|no sequence 7 is open"):
        core.infer(ask(values(1)[0]))
    core.infer(ask(values(1)[0], start=True))
    core.close()
    assert old.holds.closed


def test_unloading_ends_sequences(serve_core):
    core, _ = serve_core()
    core.infer(ask(values(1)[0], start=True))
    core.repository_unload("cell", {})
    with pytest.raises(NotFoundError, match=r"was unloaded while the sequence ran.*sequence_start"):
        core.infer(ask(values(1)[0]))
    core.repository_load("cell", {})
    with pytest.raises(RequestError, match="no sequence 7 is open"):
        core.infer(ask(values(1)[0]))
    core.infer(ask(values(1)[0], start=True))


def test_a_closed_core_refuses_sequences(serve_core):
    core, _ = serve_core()
    core.infer(ask(values(1)[0], start=True))
    core.close()
    with pytest.raises(EdgeKitError, match="the server stops"):
        core.infer(ask(values(1)[0]))


def replace(target, source):
    """One bundle's folder in the place of another's."""
    import shutil

    shutil.rmtree(target)
    source.rename(target)
