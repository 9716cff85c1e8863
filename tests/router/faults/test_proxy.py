"""The bad network between real sockets, and what our clients make of it."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from edgekit.errors import DeadlineError, EdgeKitError, UnavailableError
from edgekit.protocol import InferRequest, Tensor, connect, serve
from edgekit.router.faults import DOWN, Direction, FaultProxy, Faults, State

SILENT = Faults(state=State.SILENT)
QUIET_S = 0.1  # how long nothing is seen on a silent link


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def receive(connection, count):
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def dialled(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def assert_quiet(connection):
    connection.settimeout(QUIET_S)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)


@pytest.mark.parametrize(
    "direction",
    [Direction(), Direction(delay_s=0.02, jitter_s=0.01), Direction(slice_bytes=1000), Direction(loss=0.01, stall_s=0.01)],
    ids=["well", "late", "sliced", "lossy"],
)
def test_every_byte_arrives_in_order_and_no_sooner_than_it_may(echo, direction):
    sent = np.random.default_rng(0).bytes(300_000)
    with FaultProxy(echo, Faults.both(direction)) as proxy, dialled(proxy) as connection:
        begin = time.monotonic()
        writer = threading.Thread(target=connection.sendall, args=(sent,))
        writer.start()
        assert receive(connection, len(sent)) == sent
        assert time.monotonic() - begin >= 2 * direction.delay_s
        writer.join()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # the end of the stream is carried too
        counts = proxy.counts
    assert (counts.connections, counts.up_bytes, counts.down_bytes, counts.resets) == (1, len(sent), len(sent), 0)


def test_a_narrow_link_takes_its_time(echo):
    with FaultProxy(echo, Faults(down=Direction(bytes_per_s=1e6))) as proxy, dialled(proxy) as connection:
        begin = time.monotonic()
        connection.sendall(bytes(100_000))
        receive(connection, 100_000)
        assert time.monotonic() - begin >= 0.1


def test_a_silent_link_keeps_what_it_holds_until_it_is_up_again(echo):
    with FaultProxy(echo) as proxy, dialled(proxy) as connection:
        connection.sendall(b"one")
        assert receive(connection, 3) == b"one"
        proxy.set(SILENT)
        with dialled(proxy) as later:
            later.sendall(b"new")
            connection.sendall(b"two")
            assert_quiet(connection)
            assert_quiet(later)
            proxy.set(Faults())
            assert receive(connection, 3) == b"two"
            assert receive(later, 3) == b"new"


def test_half_open_hears_nothing_though_the_server_does(echo):
    with FaultProxy(echo, Faults(down=Direction(silent=True))) as proxy, dialled(proxy) as connection:
        connection.sendall(b"one")
        assert_quiet(connection)
        assert proxy.counts.up_bytes == 3
        proxy.set(Faults())
        assert receive(connection, 3) == b"one"


def test_a_link_that_is_down_refuses_and_resets_and_comes_back_on_its_port(echo):
    with FaultProxy(echo) as proxy, dialled(proxy) as connection:
        connection.sendall(b"one")
        receive(connection, 3)
        port = proxy.port
        proxy.set(DOWN)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            dialled(proxy)
        proxy.set(Faults())
        assert proxy.port == port
        with dialled(proxy) as again:
            again.sendall(b"two")
            assert receive(again, 3) == b"two"
        assert proxy.counts.resets == 1


def test_down_from_the_beginning(echo):
    with FaultProxy(echo, DOWN) as proxy, pytest.raises(ConnectionRefusedError):
        dialled(proxy)


def test_a_connection_is_reset_once_it_has_carried_its_share(echo):
    with FaultProxy(echo, Faults(reset_after_bytes=10)) as proxy, dialled(proxy) as connection:
        connection.sendall(b"four")
        assert receive(connection, 4) == b"four"
        connection.sendall(b"more")
        with pytest.raises(ConnectionResetError):
            receive(connection, 4 + 1)
        assert proxy.counts.resets == 1


def test_an_end_of_stream_can_be_held_back(echo):
    with FaultProxy(echo, Faults(down=Direction(close_delay_s=3600))) as proxy, dialled(proxy) as connection:
        connection.sendall(b"one")
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection, 3) == b"one"
        assert_quiet(connection)  # the echo has hung up by now


def test_a_closed_proxy_leaves_no_thread(echo):
    proxy = FaultProxy(echo)
    with dialled(proxy):
        proxy.close()
        proxy.close()
    assert "edgekit-faults" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def server(scripts, scripted_core):
    running = serve(scripted_core(scripts[0]), http=("127.0.0.1", 0), grpc=("127.0.0.1", 0))
    yield running
    running.stop()


def request(array):
    return InferRequest("m", [Tensor("x", array)])


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize(
    "faults",
    [
        Faults.both(Direction(delay_s=0.01, jitter_s=0.01)),
        Faults.both(Direction(slice_bytes=7)),
        Faults.both(Direction(bytes_per_s=2e6)),
        Faults.both(Direction(loss=0.2, stall_s=0.01)),
    ],
    ids=["late", "sliced", "narrow", "lossy"],
)
def test_our_clients_answer_right_over_a_bad_network(server, transport, faults):
    port = server.http_port if transport == "http" else server.grpc_port
    array = np.random.default_rng(1).standard_normal((100, 8)).astype(np.float32)
    with FaultProxy(port, faults, seed=3) as proxy, contextlib.closing(connect(f"{transport}://127.0.0.1:{proxy.port}")) as client:
        for _ in range(3):
            (tensor,) = client.infer(request(array), 30.0).outputs
            np.testing.assert_array_equal(tensor.data, array * 2)


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (SILENT, DeadlineError),
        (Faults(down=Direction(silent=True)), DeadlineError),
        (Faults(down=Direction(slice_bytes=1, slice_delay_s=0.1)), DeadlineError),
        (DOWN, UnavailableError),
        (Faults(reset_after_bytes=1), UnavailableError),
    ],
    ids=["silent", "half-open", "trickle", "down", "reset"],
)
def test_our_clients_tell_what_happened_and_work_again_afterwards(server, transport, faults, error):
    port = server.http_port if transport == "http" else server.grpc_port
    array = np.ones((1, 8), np.float32)
    with FaultProxy(port) as proxy, contextlib.closing(connect(f"{transport}://127.0.0.1:{proxy.port}")) as client:
        client.infer(request(array), 10.0)
        proxy.set(faults)
        with pytest.raises(error):
            client.infer(request(array), 0.3)
        proxy.set(Faults())
        proxy.reset()
        until = time.monotonic() + 30
        while True:  # a connection that was under way may still have to find out
            try:
                assert client.infer(request(array), 10.0).outputs
                break
            except EdgeKitError:
                assert time.monotonic() < until
