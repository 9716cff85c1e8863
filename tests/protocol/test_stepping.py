"""Transports over a core that leaves work to their own thread: they come back until it is done, and look at what came in between."""

import contextlib
import threading

import numpy as np
import pytest

from edgekit.protocol import InferRequest, InferResponse, Tensor, connect, serve
from tests.protocol.conftest import SubmittingEcho
from tests.protocol.waiting import until


class SteppingEcho(SubmittingEcho):
    """Answers one request a step. While a thread has model ``held`` nothing is answered: its answer brings the transport back for what was left."""

    def __init__(self):
        super().__init__()
        self.steps = self.last_turns = self.holding = 0
        self._kept = []

    def step(self):
        self.steps += 1
        inbox, self._inbox = self._inbox, []
        for ticket in inbox:
            if ticket.request.model_name == "held":
                self.holding += 1
                self.threads.append(threading.Thread(target=self._answer_held, args=(ticket,)))
                self.threads[-1].start()
            else:
                self._kept.append(ticket)
        if self._kept and not self.holding:
            self._answer(self._kept.pop(0))
        return bool(self._kept) and not self.holding

    def _answer_held(self, ticket):
        self.entered.release()
        self.release.wait()
        self.holding -= 1
        ticket.done(InferResponse("held", "1", list(ticket.request.inputs), id=ticket.request.id))

    def turn(self):
        self.last_turns += 1


@pytest.fixture
def stepping_core():
    core = SteppingEcho()
    yield core
    core.release.set()
    for thread in core.threads:
        thread.join(10)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_transport_comes_back_until_all_is_done(stepping_core, transport):
    address = ("127.0.0.1", 0)
    with serve(stepping_core, address if transport == "http" else None, address if transport == "grpc" else None) as server:
        port = server.http_port if transport == "http" else server.grpc_port
        answers, held = {}, []

        def ask(number):
            with contextlib.closing(connect(f"{transport}://127.0.0.1:{port}")) as client:
                array = np.full((1, 4), number, np.float32)
                answers[number] = client.infer(InferRequest("echo", [Tensor("x", array)]), 20.0)

        def ask_held():
            with contextlib.closing(connect(f"{transport}://127.0.0.1:{port}")) as client:
                held.append(client.infer(InferRequest("held", [Tensor("x", np.zeros((1, 4), np.float32))]), 20.0))

        first = threading.Thread(target=ask_held)
        first.start()
        assert stepping_core.entered.acquire(timeout=10)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(stepping_core._kept) == 6)  # all have come, and the transport has nothing to do
        stepping_core.release.set()
        for thread in [first, *threads]:
            thread.join(20)
        assert sorted(answers) == list(range(6))
        for number, answer in answers.items():
            assert isinstance(answer, InferResponse)
            np.testing.assert_array_equal(answer.outputs[0].data, np.full((1, 4), number, np.float32))
        assert len(held) == 1
    assert stepping_core.steps >= 7
    assert stepping_core.last_turns == 1  # whoever ends hands over what it leaves
