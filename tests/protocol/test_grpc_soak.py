"""Many clients at once that cancel, vanish, hurry, compress, stream and send noise: every answer is right or refused with the right code, and nothing is left over."""

import random
import socket
import threading

import grpc
import numpy as np
import pytest

from edgekit.errors import NotFoundError
from edgekit.protocol import InferRequest, InferResponse, Limits, Tensor, serve
from edgekit.protocol._grpc_codec import encode_request
from edgekit.protocol._grpc_messages import methods

pytestmark = pytest.mark.slow
CLIENTS, ROUNDS, CALLS = 6, 3, 25
EXPECTED = {"DEADLINE_EXCEEDED", "NOT_FOUND", "CANCELLED"}
NOISE = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(50)), bytes(range(100)), b"GET / HTTP/1.1\r\n\r\n"]


class LateCore:
    """A `SubmittingCore` that answers model ``late`` from another thread, after the turn."""

    def __init__(self):
        self._inbox = []
        self.timers = []

    def submit(self, request, done):
        self._inbox.append((request, done))
        return self

    def cancel(self):
        """Nothing to save."""

    def turn(self):
        inbox, self._inbox = self._inbox, []
        for request, done in inbox:
            answer = InferResponse(request.model_name, "1", [Tensor(tensor.name, tensor.data) for tensor in request.inputs], request.id)
            if request.model_name == "late":
                self.timers.append(threading.Timer(0.02, done, [answer]))
                self.timers[-1].start()
            else:
                done(answer if request.model_name == "echo" else NotFoundError("model", "no such model"))


def rpc(channel, name):
    method = methods()[name]
    make = channel.stream_stream if method.streaming else channel.unary_unary
    return make(method.path(name), method.request.SerializeToString, method.response.FromString)


def one_call(draw, channel, found):
    array = np.full(draw.choice([1, 768, 768, 20_000, 300_000]), draw.random(), np.float32)
    message = encode_request(InferRequest(draw.choice(["echo", "echo", "late", "nothing"]), [Tensor("x", array)], id=str(draw.random())))
    infer, stream = rpc(channel, "ModelInfer"), rpc(channel, "ModelStreamInfer")
    kind = draw.random()
    if kind < 0.6:
        compression = draw.choice([None, None, grpc.Compression.Gzip])
        answer = infer(message, timeout=draw.choice([20, 20, 0.01]), compression=compression)
        found.append((answer.id, answer.raw_output_contents[0]) == (message.id, array.tobytes()))
    elif kind < 0.75:
        call = infer.future(message, timeout=20)
        call.cancel()
    elif kind < 0.9:
        replies = list(stream(iter([message] * 10), timeout=20))
        found.append(len(replies) == 10 and {reply.infer_response.id for reply in replies} == {message.id})
    else:
        replies = stream(iter([message] * 20), timeout=20)
        next(replies)
        replies.cancel()


def run_client(seed, port, found, errors):
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(CALLS):
                try:
                    one_call(draw, channel, found)
                except grpc.RpcError as exc:
                    errors.append((exc.code().name, exc.details()))
        with socket.create_connection(("127.0.0.1", port)) as noisy:
            noisy.sendall(draw.choice(NOISE))


def test_many_clients_leave_nothing_behind():
    core, found, errors = LateCore(), [], []
    server = serve(core, None, ("127.0.0.1", 0), limits=Limits(body_bytes=8 << 20))
    transport = server._transports[0]
    clients = [threading.Thread(target=run_client, args=(seed, server.grpc_port, found, errors)) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for timer in core.timers:
        timer.join()
    server.stop(10.0)
    assert len(found) > CLIENTS * ROUNDS * CALLS / 4
    assert all(found)
    assert {code for code, _ in errors} <= EXPECTED, errors
    owner, dispatcher = transport._owner, transport._dispatcher
    assert (owner.connections, owner.open_calls, owner.held_bytes) == (set(), 0, 0)
    assert (dispatcher._in_flight, dispatcher._control_waiting) == (0, 0)
