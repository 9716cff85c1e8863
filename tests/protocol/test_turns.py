"""When a transport lets its core run: one request at once, several when the loop has looked once more."""

import numpy as np
import pytest

from edgekit.protocol import InferRequest, Limits, Tensor
from edgekit.protocol._access import Access
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._grpc_call import INFER, Call
from edgekit.protocol._grpc_codec import encode_request as encode_grpc
from edgekit.protocol._grpc_dispatch import Dispatcher
from edgekit.protocol._grpc_wire import Message, read_head
from edgekit.protocol._http_application import Application
from edgekit.protocol._http_codec import encode_request as encode_http
from edgekit.protocol._http_connection import Connection
from edgekit.protocol._http_exchange import ConnectionLimits


def a_request():
    return InferRequest("echo", [Tensor("x", np.ones((1, 4), np.float32))])


class Loop:
    """Callbacks in order; `look` runs those that were there before it, as an event loop does between two looks at its sockets."""

    def __init__(self):
        self.ready = []

    def call_soon(self, work, *arguments):
        self.ready.append((work, arguments))

    def look(self):
        ready, self.ready = self.ready, []
        for work, arguments in ready:
            work(*arguments)


class Wire:
    """The far end of a connection of either kind."""

    local = False

    def __init__(self):
        self.answers = 0

    def write(self, data):
        self.answers += data.startswith(b"HTTP/1.1 200")

    def send(self, call, parts):
        self.answers += 1

    def finish(self, call, trailers=()):
        call.close()

    def get_extra_info(self, name):
        return None

    def set_write_buffer_limits(self, high):
        pass

    def is_clogged(self):
        return False

    def flush(self):
        pass


@pytest.fixture(params=["http", "grpc"])
def asked(request, submitting_core):
    """A loop, and a function that brings a request on a connection of its own."""
    loop = Loop()
    if request.param == "http":
        application = Application(submitting_core, Limits(), ConnectionLimits(), 64, Access(), Extensions())
        application.start(loop)
        message = encode_http(a_request())
        fields = "".join(f"{name}: {value}\r\n" for name, value in message.headers().items())
        head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {len(message.body)}\r\n\r\n"

        def ask():
            wire, connection = Wire(), Connection(application)
            connection.connection_made(wire)
            connection.data_received(head.encode() + message.body)
            return wire

        yield loop, ask
        application.shut_down()
    else:
        dispatcher = Dispatcher(loop, submitting_core, Limits(), 64, Extensions())
        raw = encode_grpc(a_request()).SerializeToString()
        fields = {":method": "POST", ":scheme": "http", ":path": "/inference.GRPCInferenceService/ModelInfer", ":authority": "h"}
        head = read_head(
            [(name.encode(), value.encode()) for name, value in {**fields, "content-type": "application/grpc", "te": "trailers"}.items()]
        )

        def ask():
            wire = Wire()
            dispatcher.start(Call(wire, 1, INFER, head, 1 << 20, 0.0), Message(memoryview(raw)))
            return wire

        yield loop, ask
        dispatcher.close()


def test_one_request_runs_at_once(asked, submitting_core):
    loop, ask = asked
    for _ in range(3):
        wire = ask()
        loop.look()
        assert wire.answers == 1
    assert submitting_core.turns == [1, 1, 1]


def test_what_comes_while_several_are_read_runs_with_them(asked, submitting_core):
    loop, ask = asked
    wires = [ask(), ask()]
    loop.look()
    assert submitting_core.turns == []
    wires += [ask(), ask(), ask()]
    loop.look()
    assert submitting_core.turns == [5]  # it looks once, however much comes
    assert [wire.answers for wire in wires] == [1] * 5
    wires = [ask()]
    loop.look()
    assert submitting_core.turns == [5, 1]
