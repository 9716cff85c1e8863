"""Sequences over the wire: Triton's own clients, unmodified, over HTTP, gRPC and gRPC streams."""

import asyncio
import queue
import time

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from edgekit.runtime import CacheOptions, SequenceLimits, serve_bundles
from edgekit.telemetry import Meter
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

pytestmark = pytest.mark.slow
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_cell(folder / "cell")
    limits = SequenceLimits(sequences=8)
    with serve_bundles([folder], ("127.0.0.1", 0), ("127.0.0.1", 0), cache=CacheOptions(1 << 20), sequences=limits) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    library = LIBRARIES[request.param]
    port = server.http_port if request.param == "http" else server.grpc_port
    with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield library, client


def inputs(library, x):
    tensor = library.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def test_two_interleaved_sequences(triton):
    """One id is a number, the other text, both as Triton's clients take them; equal inputs are not answered from the result cache."""
    library, client = triton
    xs = {7: values(5, seed=1), "call-9": values(5, seed=1), (1 << 63) - 1: values(5, seed=2)}
    found = {sequence: [] for sequence in xs}
    for index in range(5):
        for sequence, sent in xs.items():
            answer = client.infer(
                "cell",
                inputs(library, sent[index]),
                sequence_id=sequence,
                sequence_start=index == 0,
                sequence_end=index == 4,
                request_id="a",
            )
            found[sequence].append(answer.as_numpy("y"))
            assert answer.as_numpy("s_next") is None
    for sequence, sent in xs.items():
        np.testing.assert_allclose(np.stack(found[sequence]), told_apart(cell_model(), sent), **CLOSE)


def test_errors_say_what_to_do(triton):
    library, client = triton
    x = values(1)[0]
    with pytest.raises(InferenceServerException, match=r"no sequence 4 is open.*sequence_start: true"):
        client.infer("cell", inputs(library, x), sequence_id=4)
    with pytest.raises(InferenceServerException, match=r"input 's': missing.*sequence_id"):
        client.infer("cell", inputs(library, x))
    for index in range(8):
        client.infer("cell", inputs(library, x), sequence_id=100 + index, sequence_start=True)
    with pytest.raises(InferenceServerException, match="8 are open; expected at most 8") as caught:
        client.infer("cell", inputs(library, x), sequence_id=200, sequence_start=True)
    assert caught.value.status() in ("503", "StatusCode.RESOURCE_EXHAUSTED")
    for index in range(8):
        client.infer("cell", [], sequence_id=100 + index, sequence_end=True)
    client.infer("cell", inputs(library, x), sequence_id=200, sequence_start=True, sequence_end=True)


def test_configuration_and_statistics(triton):
    library, client = triton
    config = client.get_model_config("cell")
    if library is tritonclient.grpc:
        batching = config.config.sequence_batching
        assert batching.max_sequence_idle_microseconds == 60_000_000
        assert batching.oldest.max_candidate_sequences == 8
        state = batching.state[0]
        assert (state.input_name, state.output_name, list(state.dims), state.initial_state[0].zero_data) == ("s", "s_next", [1, 3], True)
    else:
        assert config["sequence_batching"]["state"][0]["initial_state"][0]["zero_data"] is True
        client.infer("cell", inputs(library, values(1)[0]), sequence_id=5, sequence_start=True, sequence_end=True)
        stats = client.get_inference_statistics("cell")["model_stats"][0]["sequence_stats"]
        assert stats["begin"] >= stats["end"] >= 1
        assert [tensor["name"] for tensor in client.get_model_metadata("cell")["inputs"]] == ["x"]


def test_two_sequences_over_one_stream(server):
    """All requests are sent before an answer is read; each sequence is answered in its order, with its own state."""
    xs = {1: values(30, seed=3), 2: values(30, seed=4)}
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(30):
            for sequence, sent in xs.items():
                client.async_stream_infer(
                    "cell",
                    inputs(tritonclient.grpc, sent[index]),
                    request_id=f"{sequence} {index}",
                    sequence_id=sequence,
                    sequence_start=index == 0,
                    sequence_end=index == 29,
                )
        found = {}
        for _ in range(60):
            result, error = answers.get(timeout=30)
            assert error is None, error
            found[result.get_response().id] = result.as_numpy("y")
        client.stop_stream()
    for sequence, sent in xs.items():
        got = np.stack([found[f"{sequence} {index}"] for index in range(30)])
        np.testing.assert_allclose(got, told_apart(cell_model(), sent), **CLOSE)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_clients_that_are_asyncio(server, transport):
    library = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[transport]
    port = server.http_port if transport == "http" else server.grpc_port
    xs = [values(6, seed=10 + which) for which in range(4)]

    async def talk(client, which):
        found = []
        for index, x in enumerate(xs[which]):
            answer = await client.infer(
                "cell", inputs(LIBRARIES[transport], x), sequence_id=300 + which, sequence_start=index == 0, sequence_end=index == 5
            )
            found.append(answer.as_numpy("y"))
        return np.stack(found)

    async def main():
        async with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return await asyncio.gather(*(talk(client, which) for which in range(4)))

    for sent, found in zip(xs, asyncio.run(main()), strict=True):
        np.testing.assert_allclose(found, told_apart(cell_model(), sent), **CLOSE)


def test_telemetry_counts_sequences(tmp_path):
    from edgekit.runtime import ModelRepository, RuntimeCore
    from edgekit.runtime._sequences import SequenceCore
    from tests.runtime.test_sequences import ask

    write_cell(tmp_path / "cell")
    meter = Meter()
    repository = ModelRepository([tmp_path])
    core = RuntimeCore(repository)
    whole = SequenceCore(core, core, repository, SequenceLimits(sequences=1), meter)
    repository.load_all()
    whole.infer(ask(values(1)[0], 1, start=True))
    answers = []
    for model in ("cell", "a name that a stranger made up"):
        whole.submit(ask(values(1)[0], 2, start=True, model=model), answers.append)
    whole.infer(ask(values(1)[0], 1, end=True))
    points = meter.collect(time.time_ns())
    assert "stranger" not in str(points)
    whole.close()
    core.close()
    assert {"edgekit.sequence.changes", "edgekit.sequence.open", "edgekit.sequence.bytes"} <= {point.name for point in points}
    assert {"begin", "refuse"} <= {point.attributes.get("edgekit.change") for point in points}
    assert [type(answer).__name__ for answer in answers] == ["OverloadedError"] * 2
