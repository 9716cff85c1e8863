"""Sequences on a server that is stopped while they go on: nobody sees an error, and every number is what one server would have said."""

import threading

import numpy as np
import pytest

from edgekit.errors import UnavailableError
from edgekit.protocol import InferRequest, Tensor, connect
from edgekit.router import Router
from edgekit.runtime import serve_bundles
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

pytestmark = pytest.mark.slow
ANY = ("127.0.0.1", 0)


@pytest.fixture
def servers(tmp_path):
    """An edge server and one of the cloud, with the same bundle."""
    write_cell(tmp_path / "cell")
    with serve_bundles([tmp_path / "cell"], ANY, ANY) as edge, serve_bundles([tmp_path / "cell"], ANY, ANY) as cloud:
        yield edge, cloud


def stopping(server, grace_s=60.0):
    """A stop that is under way; it may wait for half of that time."""
    thread = threading.Thread(target=server.stop, args=(grace_s,))
    thread.start()
    return thread


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_sequence_leaves_a_server_that_stops_and_the_server_waits_for_that(servers, scheme):
    edge, _ = servers
    urls = [f"{scheme}://127.0.0.1:{server.http_port if scheme == 'http' else server.grpc_port}" for server in servers]
    xs, found, tiers = values(8), [], []

    def send(start=False):
        result = router.route({"x": xs[len(found) % 8]}, parameters={"sequence_id": 7, "sequence_start": start})
        found.append(result.outputs["y"])
        tiers.append(result.tier)

    with Router(urls[0], urls[1], sla_ms=60_000, model="cell") as router:
        send(start=True)
        thread = stopping(edge)
        while tiers[-1] == "edge" and len(found) < 100_000:
            send()
        thread.join(30.0)
        assert not thread.is_alive()  # as soon as nothing of it was left there
        send()
        assert router.route({"x": xs[0]}, parameters={"sequence_id": 8, "sequence_start": True}).tier == "cloud"
    assert tiers[-2:] == ["cloud", "cloud"]
    expected = told_apart(cell_model(), np.stack([xs[index % 8] for index in range(len(found))]))
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-5, atol=1e-6)


def test_a_client_that_cannot_move_its_sequence_holds_nothing_up(servers):
    edge, _ = servers
    client = connect(f"http://127.0.0.1:{edge.http_port}")
    try:
        client.infer(InferRequest("cell", [Tensor("x", values(1)[0])], parameters={"sequence_id": 7, "sequence_start": True}), 10.0)
    finally:
        client.close()
    thread = stopping(edge, 600.0)
    thread.join(60.0)
    assert not thread.is_alive()


def test_a_server_that_stops_begins_nothing_and_says_so(servers):
    """Whoever asks it itself; `/v2/health/ready` tells the rest."""
    edge, _ = servers
    client = connect(f"http://127.0.0.1:{edge.http_port}")
    x = [Tensor("x", values(1)[0])]
    held = {"sequence_id": 7, "sequence_moves": True}
    try:
        client.infer(InferRequest("cell", x, parameters={**held, "sequence_start": True}), 10.0)
        thread = stopping(edge)
        while client.ready():
            pass
        with pytest.raises(UnavailableError, match="the server stops"):
            client.infer(InferRequest("cell", x, parameters={"sequence_id": 8, "sequence_start": True}), 10.0)
        assert client.infer(InferRequest("cell", x, parameters=held), 10.0).parameters["sequence_stopping"] is True
        client.infer(InferRequest("cell", x, parameters={**held, "sequence_end": True}), 10.0)
        thread.join(30.0)
        assert not thread.is_alive()
    finally:
        client.close()
