"""A gRPC connection without a socket or a loop: bytes in, bytes out, the turn of the loop by hand. And the frames to feed it."""

from __future__ import annotations

import ngh2
import numpy as np

from edgekit.errors import NotFoundError
from edgekit.protocol import InferRequest, InferResponse, Limits, Tensor
from edgekit.protocol._access import Access
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._grpc_codec import encode_request
from edgekit.protocol._grpc_connection import GrpcConnection
from edgekit.protocol._grpc_dispatch import Dispatcher
from edgekit.protocol._grpc_owner import ConnectionOwner
from edgekit.protocol._grpc_wire import framed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
READY = "/inference.GRPCInferenceService/ServerReady"
LIVE = "/inference.GRPCInferenceService/ServerLive"


class Loop:
    """The two calls of an event loop that a dispatcher makes."""

    def __init__(self):
        self.planned = []

    def call_soon(self, work):
        self.planned.append(work)

    call_soon_threadsafe = call_soon

    def turn(self):
        while self.planned:
            self.planned.pop(0)()


class Wire:
    """The transport: what was written, and how it was closed."""

    def __init__(self):
        self.sent = b""
        self.closed = ""
        self.buffered = 0

    def write(self, data):
        self.sent += data

    def close(self):
        self.closed = "close"

    def abort(self):
        self.closed = "abort"

    def get_write_buffer_size(self):
        return self.buffered

    def set_write_buffer_limits(self, **limits):
        del limits

    def get_extra_info(self, name):
        del name

    def take(self):
        taken, self.sent = self.sent, b""
        return taken


class HoldingCore:
    """A `SubmittingCore`: model ``echo`` is answered in the turn, ``held`` when the test says so; every other is unknown."""

    def __init__(self):
        self.inbox = []
        self.held = []
        self.cancelled = []
        self.turns = []  # how many requests each brought

    def live(self):
        return True

    def ready(self):
        return True

    def submit(self, request, done):
        entry = (request, done)
        self.inbox.append(entry)
        return Ticket(self, request)

    def turn(self):
        inbox, self.inbox = self.inbox, []
        self.turns.append(len(inbox))
        for request, done in inbox:
            if request.model_name == "held":
                self.held.append((request, done))
            elif request.model_name == "echo":
                done(answer_to(request))
            elif request.model_name == "bug":
                done(ZeroDivisionError("secret detail"))
            else:
                done(NotFoundError(f"model {request.model_name!r}", "no such model"))


class Ticket:
    def __init__(self, core, request):
        self._core = core
        self._request = request

    def cancel(self):
        self._core.cancelled.append(self._request.id)


def answer_to(request):
    outputs = [Tensor(tensor.name, tensor.data) for tensor in request.inputs]
    return InferResponse(request.model_name, "1", outputs, request.id, {"edgekit_decision": "local\r\nx-evil: 1"})


class Peer:
    """A connection of a server, and the client's end of it.

    Attributes:
        core, owner, connection, wire: of the server.
    """

    def __init__(self, core=None, limits=None, access=None, owner=None):
        self.core = core or HoldingCore()
        self.loop = Loop()
        if owner is None:
            dispatcher = Dispatcher(self.loop, self.core, limits or Limits(), 4, Extensions())
            owner = ConnectionOwner(dispatcher, access or Access(), 10)
        self.owner = owner
        self.connection = GrpcConnection(owner)
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def feed(self, *frames):
        """Give bytes to the server and let it have its turn."""
        self.connection.data_received(b"".join(frames))
        self.loop.turn()

    def greet(self):
        """Preface and settings from the client, raw."""
        self.feed(PREFACE, frame(SETTINGS))
        return self

    def close(self):
        self.connection.connection_lost(None)
        self.owner.dispatcher.close()


class Client:
    """The other end by ngh2's client, for exchanges that keep to the protocol."""

    def __init__(self, peer, window=None):
        self.peer = peer
        self.engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=window is None))
        self.engine.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: window} if window is not None else None)
        self.messages = {}
        self.headers = {}
        self.ended = {}
        self.resets = {}
        self.goaways = []
        self.pump()

    def pump(self):
        """Carry bytes both ways until nothing moves."""
        while True:
            self.peer.loop.turn()
            out = self.engine.data_to_send()
            if out:
                self.peer.feed(out)
            back = self.peer.wire.take()
            if not out and not back:
                return
            self.engine.receive_data(back)
            for event in self.engine.events():
                self._note(event)

    def _note(self, event):
        if isinstance(event, (ngh2.ResponseReceived, ngh2.TrailersReceived)):
            self.headers.setdefault(event.stream_id, {}).update(dict(event.headers))
        elif isinstance(event, ngh2.DataReceived):
            self.messages[event.stream_id] = self.messages.get(event.stream_id, b"") + event.data
        elif isinstance(event, ngh2.StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, ngh2.StreamClosed):
            self.ended[event.stream_id] = event.error_code
        elif isinstance(event, ngh2.GoAwayReceived):
            self.goaways.append((event.last_stream_id, event.error_code))

    def call(self, path=INFER, *messages, end=True, pump=True, **extra):
        """Begin a call; returns the stream."""
        stream_id = self.engine.send_request(request_headers(path, extra))
        body = b"".join(framed(len(message)) + message for message in messages)
        if body or end:
            self.engine.send_data(stream_id, body, end_stream=end)
        if pump:
            self.pump()
        return stream_id

    def send(self, stream_id, *messages, end=False):
        self.engine.send_data(stream_id, b"".join(framed(len(message)) + message for message in messages), end_stream=end)
        self.pump()

    def reset(self, stream_id):
        self.engine.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
        self.pump()

    def status(self, stream_id):
        """``(grpc-status, grpc-message)``."""
        found = self.headers[stream_id]
        return int(found[b"grpc-status"]), found.get(b"grpc-message", b"").decode()


def request_headers(path, extra=()):
    base = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "te": "trailers",
        "content-type": "application/grpc",
        **{key.replace("_", "-"): value for key, value in dict(extra).items()},
    }
    return [(name.encode(), value.encode()) for name, value in base.items()]


def frame(kind, flags=0, stream_id=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def header_block(path=INFER, extra=()):
    """HPACK without a table or Huffman (RFC 7541, 6.2.2), so that every block stands alone."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in request_headers(path, extra))


def _string(text):
    octets = b""
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    length -= 127
    while length > 127:
        octets += bytes([length & 127 | 128])
        length >>= 7
    return b"\x7f" + octets + bytes([length]) + text


def frames_of(sent):
    """``[(type, flags, stream, payload)]`` of what a server sent."""
    found = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return found


def infer_message(model="echo", size=4, **fields):
    return encode_request(InferRequest(model, [Tensor("x", np.arange(size, dtype=np.float32))], **fields)).SerializeToString()
