"""An edge server that is a process of its own, and is killed: what a client of the router sees, and what the cloud."""

import queue
import subprocess
import sys

import numpy as np
import pytest
import tritonclient.grpc

from edgekit.errors import UnavailableError
from edgekit.protocol import connect
from edgekit.router import Router, serve_router
from edgekit.runtime import serve_bundles
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

pytestmark = pytest.mark.slow
ANY = ("127.0.0.1", 0)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
WAIT_S = 60.0


class Edge:
    """`edgekit serve` with one bundle, over HTTP."""

    def __init__(self, path):
        command = [sys.executable, "-m", "edgekit", "serve", str(path), "--http", "127.0.0.1:0", "--grpc", "off"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline().split('http ')[1].split(',')[0])}"  # printed when it is ready

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def tiers(tmp_path):
    """The edge, and a server of the cloud with the same bundle."""
    write_cell(tmp_path / "cell")
    with serve_bundles([tmp_path / "cell"], ANY, None) as cloud:
        edge = Edge(tmp_path / "cell")
        try:
            yield edge, f"http://127.0.0.1:{cloud.http_port}"
        finally:
            edge.kill()


class Stream:
    """One gRPC stream through the router; every message has one answer or one error."""

    def __init__(self, client):
        self.client, self.told = client, queue.Queue()
        client.start_stream(lambda result, error: self.told.put((result, error)))

    def send(self, xs, start):
        """Messages that do not wait for each other."""
        for index, x in enumerate(xs):
            tensor = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            self.client.async_stream_infer("cell", [tensor], sequence_id=5, sequence_start=start and index == 0)

    def take(self, count):
        return [self.told.get(timeout=WAIT_S) for _ in range(count)]


def test_a_stream_outlives_the_edge_server_every_message_is_answered_or_told_why_not(tiers):
    edge, cloud = tiers
    xs = values(40, seed=3)
    with (
        serve_router(edge.url, [cloud], 60_000.0, None, ANY, model="cell") as router,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{router.grpc_port}") as client,
    ):
        stream = Stream(client)
        stream.send(xs[:20], start=True)
        before = stream.take(20)
        edge.kill()
        stream.send(xs[20:30], start=False)
        lost = stream.take(10)
        stream.send(xs[30:], start=True)
        after = stream.take(10)
        client.stop_stream()
        assert stream.told.empty()
    for answers, sent in ((before, xs[:20]), (after, xs[30:])):
        assert [error for _, error in answers if error] == []
        np.testing.assert_allclose(np.stack([result.as_numpy("y") for result, _ in answers]), told_apart(cell_model(), sent), **CLOSE)
    for _, error in lost:
        assert "sequence_start" in str(error)  # what to do


@pytest.mark.parametrize("data", ["edge-only", "cloud-allowed"])
def test_the_first_requests_of_sequences_fall_back_where_the_policy_lets_them(tiers, tmp_path, data):
    edge, cloud = tiers
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[models.cell]\ndata = "{data}"\n')
    xs = values(3)
    with Router(edge.url, cloud, sla_ms=60_000, model="cell", policy=policy, budget_state=tmp_path / "budgets") as router:
        router.route({"x": xs[0]}, parameters={"sequence_id": 99, "sequence_start": True})
        edge.kill()
        for number in range(1, 9):  # on through an open breaker
            for index, x in enumerate(xs):
                parameters = {"sequence_id": number, "sequence_start": index == 0}
                if data == "cloud-allowed":
                    assert router.route({"x": x}, parameters=parameters).tier == "cloud"
                else:
                    with pytest.raises(UnavailableError, match="cannot be reached"):
                        router.route({"x": x}, parameters=parameters)
    client = connect(cloud)
    stats = client.statistics()[0]
    client.close()
    asked = stats["inference_stats"]["success"]["count"] + stats["inference_stats"]["fail"]["count"]
    assert (asked, stats.get("sequence_stats", {}).get("begin", 0)) == ((24, 8) if data == "cloud-allowed" else (0, 0))
