"""Sequences of a bundle in the router's own process: what a server would do with them."""

import numpy as np
import pytest

from edgekit.errors import EngineError, OverloadedError, RequestError
from edgekit.router._kept_states import KeptStates
from edgekit.router._work import Work
from edgekit.runtime import load
from edgekit.runtime._sequence_table import SequenceLimits, read_control
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with load(write_cell(tmp_path_factory.mktemp("kept") / "cell")) as opened:
        yield opened


def run(kept, x=None, number=7, inputs=None, **flags):
    given = inputs if inputs is not None else {} if x is None else {"x": x}
    parameters = {"sequence_id": number, **flags}
    return kept.run(Work("cell", "", given, 0, 0.0, 0.0, parameters=parameters), read_control(parameters)).outputs


def take(kept, number=7):
    return kept.take(Work("cell", "", {}, 0, 0.0, 0.0, parameters={"sequence_id": number}))


def test_sequences_side_by_side_and_one_that_goes_on_elsewhere(session):
    kept, elsewhere = KeptStates(session), KeptStates(session)
    xs = {number: values(6, seed=number) for number in (1, 2)}
    found = {number: [run(kept, xs[number][0], number, sequence_start=True)] for number in xs}
    for index in (1, 2):
        for number, sent in xs.items():
            found[number].append(run(kept, sent[index], number))
    for number, sent in xs.items():
        state = take(kept, number)
        moved = {"x": sent[3], **{tensor.name: tensor.data for tensor in state.outputs}}
        found[number].append(run(elsewhere, None, number, moved, sequence_start=True, **state.parameters))
        found[number] += [run(elsewhere, sent[index], number, sequence_end=index == 5) for index in (4, 5)]
        answers = np.stack([outputs["y"] for outputs in found[number]])
        np.testing.assert_allclose(answers, told_apart(cell_model(), sent), **CLOSE)
        assert all(outputs.keys() == {"y"} for outputs in found[number])
    assert len(kept._table) == len(elsewhere._table) == kept._table.bytes == 0


def test_what_is_not_open_is_refused_and_says_what_to_do(session):
    now = [0.0]
    kept = KeptStates(session, clock=lambda: now[0])
    x = values(1)[0]
    line = r"model cell: no sequence 7 is open .*; expected sequence_start with the first request; send it with sequence_start"
    for ask in (lambda: run(kept, x), lambda: take(kept), lambda: run(kept, sequence_end=True)):
        with pytest.raises(RequestError, match=line):
            ask()
    run(kept, x, sequence_start=True)
    now[0] = 61.0
    with pytest.raises(RequestError, match=line):
        run(kept, x)
    run(kept, x, sequence_start=True)
    assert run(kept, sequence_end=True) == {}
    with pytest.raises(RequestError, match=line):
        run(kept, x)


def test_an_error_leaves_the_state_and_one_that_begins_again_forgets_it(session):
    kept = KeptStates(session)
    xs = values(3)
    first = run(kept, xs[0], sequence_start=True)["y"]
    for bad in ({"x": xs[1].astype(np.float64)}, {"x": xs[1], "s": np.zeros(1, np.float32)}):
        with pytest.raises(RequestError):
            run(kept, inputs=bad)
    answers = [first, run(kept, xs[1])["y"], run(kept, xs[2])["y"]]
    np.testing.assert_allclose(np.stack(answers), told_apart(cell_model(), xs), **CLOSE)
    np.testing.assert_array_equal(run(kept, xs[0], sequence_start=True)["y"], first)
    with pytest.raises(RequestError):
        run(kept, xs[0].astype(np.float64), sequence_start=True)
    with pytest.raises(RequestError, match="is open"):  # it did not begin
        run(kept, xs[1])


def test_limits_and_states_of_another_bundle(session):
    kept = KeptStates(session, SequenceLimits(sequences=1))
    x = values(1)[0]
    run(kept, x, 1, sequence_start=True)
    with pytest.raises(OverloadedError, match="at most 1"):
        run(kept, x, 2, sequence_start=True)
    with pytest.raises(RequestError, match=r"states none of a bundle with digest abc; expected states .*the state begins anew"):
        run(kept, x, 1, sequence_start=True, sequence_state_of="abc")
    run(kept, x, 1)  # it goes on
    small = KeptStates(session, SequenceLimits(state_bytes=1030))
    with pytest.raises(OverloadedError, match="at most 1030"):
        run(small, x, 1, sequence_start=True)
    assert len(small._table) == small._table.bytes == 0


class Gate:
    """A session whose run lets another one happen first."""

    def __init__(self, session):
        self.bundle, self.signature, self._run = session.bundle, session.signature, session.run
        self.first = None

    def run(self, inputs):
        first, self.first = self.first, None
        if isinstance(first, Exception):
            raise first
        if first is not None:
            first()
        return self._run(inputs)


def test_a_run_that_was_given_up_leaves_no_state(session):
    gate = Gate(session)
    kept = KeptStates(gate)
    xs = values(3)
    answers = [run(kept, xs[0], sequence_start=True)["y"]]
    gate.first = lambda: answers.append(run(kept, xs[1])["y"])  # its client has sent it again meanwhile
    run(kept, xs[1])
    gate.first = EngineError("edge", "broke")
    with pytest.raises(EngineError):
        run(kept, xs[2])
    answers.append(run(kept, xs[2])["y"])
    np.testing.assert_allclose(np.stack(answers), told_apart(cell_model(), xs), **CLOSE)
