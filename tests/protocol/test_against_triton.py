"""Our clients against a real Triton. Skips where no Triton is installed; `make test` installs it."""

import numpy as np
import pytest

from edgekit.cloud.triton import TritonServer, find_environment, write_repository
from edgekit.errors import EnvironmentMissingError, NotFoundError, RequestError
from edgekit.protocol import InferRequest, RequestedOutput, Tensor, connect
from tests.protocol.test_client_loop import in_loop
from tests.protocol.test_grpc_client_loop import answer_of, opened
from tests.runtime.serving_bundles import write_scale

try:
    find_environment()
    MISSING = ""
except EnvironmentMissingError as error:
    MISSING = str(error)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")
    write_repository([write_scale(root / "scale", scale=3.0).path], root / "repository", "cpu")
    with TritonServer(root / "repository") as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(request, triton):
    connected = connect(f"{request.param}://127.0.0.1:{triton.http_port if request.param == 'http' else triton.grpc_port}")
    yield connected
    connected.close()


def test_health_and_metadata(client):
    assert client.ready()
    assert client.model_ready("scale")
    assert not client.model_ready("nope")
    metadata = client.model_metadata("scale")
    assert (metadata.name, metadata.versions, metadata.inputs[0].datatype) == ("scale", ["1"], "FP32")


def test_infer_and_statistics(client):
    before = client.statistics("scale", "1")[0]["inference_stats"]["success"]["count"]
    response = client.infer(InferRequest("scale", [Tensor("x", X)], id="9", outputs=[RequestedOutput("y")]), 10.0)
    assert response.id == "9"
    assert [tensor.name for tensor in response.outputs] == ["y"]
    np.testing.assert_array_equal(response.outputs[0].data, X * 3)
    flights = [client.start(InferRequest("scale", [Tensor("x", X + index)]), 10.0) for index in range(8)]
    for index, flight in enumerate(flights):
        answers = {tensor.name: tensor.data for tensor in flight.result(10.0).outputs}
        np.testing.assert_array_equal(answers["y"], (X + index) * 3)
    assert client.statistics("scale", "1")[0]["inference_stats"]["success"]["count"] == before + 9


def test_in_a_loop_too(triton):
    client = connect(f"grpc://127.0.0.1:{triton.grpc_port}")

    async def scenario():
        await opened(client)
        for value in (X, np.arange(64, dtype=np.float32).reshape(-1, 4)):
            response, here = await answer_of(client, InferRequest("scale", [Tensor("x", value)], id="9", outputs=[RequestedOutput("y")]))
            assert (response.id, here) == ("9", True)
            np.testing.assert_array_equal(response.outputs[0].data, value * 3)
        with pytest.raises((NotFoundError, RequestError), match="nope"):
            await answer_of(client, InferRequest("nope", [Tensor("x", X)]))

    in_loop(scenario)
    client.close()


def test_refusals(client):
    with pytest.raises((NotFoundError, RequestError), match="nope"):
        client.infer(InferRequest("nope", [Tensor("x", X)]), 10.0)
    with pytest.raises(RequestError, match="x"):
        client.infer(InferRequest("scale", [Tensor("x", X.astype(np.float64))]), 10.0)
