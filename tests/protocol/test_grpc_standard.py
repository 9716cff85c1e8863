"""gRPC's standard services by the clients of their authors: health that is watched, and reflection."""

import threading

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from edgekit.protocol import Access, serve
from edgekit.protocol._grpc_messages import SERVICE
from edgekit.protocol._grpc_reflection import reflect
from tests.protocol.grpc_memory import Client, HoldingCore, Peer
from tests.protocol.waiting import until

WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (b"\0\0\0\0\2\x08" + bytes([number]) for number in (1, 2, 3))
ALL_SERVICES = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", SERVICE]


class ChangingCore(HoldingCore):
    """Ready as the test says."""

    is_ready = True

    def ready(self):
        if self.is_ready is None:
            raise ZeroDivisionError("a bug")
        return self.is_ready


@pytest.fixture
def peer():
    made = Peer(ChangingCore())
    yield made
    made.close()


@pytest.fixture
def client(peer):
    return Client(peer)


def check(peer, client, expected, call):
    peer.owner.dispatcher.health.check()
    until(lambda: client.pump() or client.messages.get(call, b"") == expected)


def test_a_watcher_is_told_every_change_once(peer, client):
    call = client.call(WATCH, b"")
    check(peer, client, SERVING, call)
    check(peer, client, SERVING, call)
    peer.core.is_ready = False
    check(peer, client, SERVING + NOT_SERVING, call)
    peer.core.is_ready = True
    check(peer, client, SERVING + NOT_SERVING + SERVING, call)
    peer.core.is_ready = None
    check(peer, client, SERVING + NOT_SERVING + SERVING + NOT_SERVING, call)
    assert call not in client.ended


def test_watchers_of_other_services_and_those_who_leave(peer, client):
    unknown = client.call(WATCH, b"\x0a\x04nope")
    assert client.messages[unknown] == SERVICE_UNKNOWN
    assert unknown not in client.ended
    named = client.call(WATCH, b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode())
    check(peer, client, SERVING, named)
    client.reset(named)
    peer.core.is_ready = False
    other = client.call(WATCH, b"")
    check(peer, client, NOT_SERVING, other)
    assert list(peer.owner.dispatcher.health._told) == [peer.connection._calls[other]]
    assert client.status(client.call(WATCH, b"\x0a\x04" + bytes(70_000)))[0] == 8


def test_watchers_hear_of_a_stop_before_they_are_sent_away(peer, client):
    call = client.call(WATCH, b"")
    check(peer, client, SERVING, call)
    peer.owner.draining = peer.owner.dispatcher.control.stopping = True
    peer.owner.dispatcher.health.tell(ready=False)
    peer.owner.dispatcher.health.tell(ready=True)  # of an answer that was under way
    peer.connection.begin_drain()
    client.pump()
    assert client.messages[call] == SERVING + NOT_SERVING
    peer.connection.end_drain()
    client.pump()
    assert client.status(call)[0] == 14


def reflection(**asked):
    return reflection_pb2.ServerReflectionRequest(**asked).SerializeToString()


def test_a_reflection_stream_is_answered_in_order_and_in_turns(peer, client):
    call = client.call(REFLECT, *[reflection(host=str(index), list_services="") for index in range(100)])
    data, hosts = client.messages[call], []
    while data:
        size = int.from_bytes(data[1:5], "big")
        reply = reflection_pb2.ServerReflectionResponse.FromString(data[5 : 5 + size])
        assert [service.name for service in reply.list_services_response.service] == ALL_SERVICES
        hosts.append(int(reply.valid_host))
        data = data[5 + size :]
    assert hosts == list(range(100))
    assert client.status(call) == (0, "")
    assert client.status(client.call(REFLECT, b"\xff"))[0] == 3
    assert client.status(client.call(REFLECT, bytes(70_000)))[0] == 8
    assert client.status(client.call(REFLECT, end=True)) == (0, "")
    assert peer.owner.held_bytes == 0


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"file_by_filename": "open_inference.proto"}, "file_descriptor_response"),
        ({"file_containing_symbol": f"{SERVICE}.ModelInfer"}, "file_descriptor_response"),
        ({"file_containing_symbol": "inference.ModelInferRequest.InferInputTensor"}, "file_descriptor_response"),
        ({"file_containing_symbol": "grpc.health.v1.Health"}, "file_descriptor_response"),
        ({"all_extension_numbers_of_type": "inference.ModelInferRequest"}, "all_extension_numbers_response"),
        ({"all_extension_numbers_of_type": "nope"}, "error_response"),
        ({"file_by_filename": "/etc/passwd"}, "error_response"),
        ({"file_containing_symbol": "inference.Nope"}, "error_response"),
        ({"file_containing_extension": {"containing_type": "x", "extension_number": 1}}, "error_response"),
        ({}, "error_response"),
    ],
)
def test_what_reflection_knows(asked, answer):
    reply = reflection_pb2.ServerReflectionResponse.FromString(reflect(reflection(**asked)))
    assert reply.WhichOneof("message_response") == answer
    assert reply.original_request.SerializeToString() == reflection(**asked)


@pytest.mark.slow
def test_a_client_that_knows_nothing_learns_the_protocol(submitting_core):
    with serve(submitting_core, None, ("127.0.0.1", 0)) as server, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert sorted(database.get_services()) == ALL_SERVICES
        service = DescriptorPool(database).FindServiceByName(SERVICE)
        method = service.FindMethodByName("ModelReady")
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        ready = channel.unary_unary(f"/{SERVICE}/ModelReady", request.SerializeToString, response.FromString)
        assert ready(request(name="echo"), timeout=20).ready


@pytest.mark.slow
def test_the_health_clients_of_grpc(submitting_core):
    server = serve(submitting_core, None, ("127.0.0.1", 0), access=Access(token="secret"))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert stub.Check(request, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request, timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(ProtoReflectionDescriptorDatabase(channel).get_services()))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        stopper = threading.Thread(target=server.stop, args=(20.0,))
        stopper.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stopper.join(30)
        assert not stopper.is_alive()
