"""Sequences of a stateful model through the router: two real servers, Triton's own clients."""

import contextlib

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from edgekit.errors import RequestError, UnavailableError
from edgekit.protocol import connect, serve
from edgekit.router import Router, RouterCore, serve_router
from edgekit.runtime import serve_bundles
from examples import live_voice
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

pytestmark = pytest.mark.slow
ANY = ("127.0.0.1", 0)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def inputs(library, x):
    tensor = library.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


@contextlib.contextmanager
def bundle_servers(path):
    """An edge server and one of the cloud, with the same bundle."""
    with serve_bundles([path], ANY, ANY) as edge, serve_bundles([path], ANY, ANY) as cloud:
        yield edge, cloud


@pytest.fixture
def tiers(tmp_path):
    write_cell(tmp_path / "cell")
    with bundle_servers(tmp_path / "cell") as both:
        yield both


@pytest.mark.parametrize("transport", LIBRARIES)
def test_interleaved_sequences_stay_where_their_states_are(tiers, transport):
    edge, cloud = tiers
    library = LIBRARIES[transport]
    xs = {number: values(6, seed=number) for number in (1, 2, 3)}
    found = {number: [] for number in xs}
    with serve_router(f"http://127.0.0.1:{edge.http_port}", [f"http://127.0.0.1:{cloud.http_port}"], 5000.0, ANY, ANY) as router:
        port = router.http_port if transport == "http" else router.grpc_port
        with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
            for index in range(6):
                for number, sent in xs.items():
                    control = {"sequence_id": number, "sequence_start": index == 0, "sequence_end": index == 5}
                    found[number].append(client.infer("cell", inputs(library, sent[index]), **control).as_numpy("y"))
    for number, sent in xs.items():
        np.testing.assert_allclose(np.stack(found[number]), told_apart(cell_model(), sent), **CLOSE)


@pytest.mark.parametrize("transport", LIBRARIES)
def test_a_bundle_in_the_routers_process_keeps_states_and_hands_them_over(tmp_path, transport):
    """With no server on the device; the second half of each sequence is the cloud's, and the last request the device's again."""
    bundle, library = write_cell(tmp_path / "cell"), LIBRARIES[transport]
    xs = {number: values(6, seed=number) for number in (1, 2, 3)}
    found = {number: [] for number in xs}
    with (
        serve_bundles([bundle.path], ANY, ANY) as cloud,
        Router(bundle.path, f"http://127.0.0.1:{cloud.http_port}", sla_ms=60_000) as router,
        serve(RouterCore(router), ANY, ANY) as server,
        library.InferenceServerClient(f"127.0.0.1:{server.http_port if transport == 'http' else server.grpc_port}") as client,
    ):
        told = client.get_model_metadata("cell")
        assert [tensor["name"] for tensor in told["inputs"]] == ["x"] if transport == "http" else [t.name for t in told.inputs] == ["x"]
        for index in range(6):
            for number, sent in xs.items():
                answer = client.infer("cell", inputs(library, sent[index]), **control(number, index, 5))
                found[number].append(answer.as_numpy("y"))
            if index == 2:
                break_device(router)
                assert open_sequences(cloud) == 0
            elif index == 4:
                assert open_sequences(cloud) == 3
                recover_device(router)
                break_cloud(router)
        assert open_sequences(cloud) == 0
        with pytest.raises(InferenceServerException, match=r"no sequence 1 is open \(never begun, ended, or idle for 60 s\)"):
            client.infer("cell", inputs(library, xs[1][0]), sequence_id=1)
    for number, sent in xs.items():
        np.testing.assert_allclose(np.stack(found[number]), told_apart(cell_model(), sent), **CLOSE)


def break_device(router):
    """Its breaker opens, and it still answers."""

    def fail(pilot, now):
        while pilot._device.breaker.closed:
            pilot._device.breaker.failed(now)

    router._driver.read(fail)


def recover_device(router):
    router._driver.read(lambda pilot, now: pilot._device.recovered(now))


def break_cloud(router):
    """As seen from 1,000 s later, so that no check finds it well while the test runs."""
    router._driver.read(lambda pilot, now: pilot.checked(0, False, 0.01, now + 1000.0))


def open_sequences(server):
    """How many are open on a server, as its statistics say."""
    client = connect(f"http://127.0.0.1:{server.http_port}")
    try:
        stats = client.statistics()[0].get("sequence_stats", {})
    finally:
        client.close()
    return stats.get("begin", 0) - stats.get("end", 0)


def control(number, index, last):
    return {"sequence_id": number, "sequence_start": index == 0, "sequence_end": index == last}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_voice_that_is_moved_twice_is_heard_bit_for_bit_as_one_that_stays(tmp_path, scheme):
    bundle = live_voice.build(tmp_path)
    sound = np.random.default_rng(3).normal(0, 0.1, 512 * 12).astype(np.float32)
    windows = list(live_voice.windows(sound))
    with bundle_servers(bundle.path) as (edge, cloud):
        urls = [f"{scheme}://127.0.0.1:{server.http_port if scheme == 'http' else server.grpc_port}" for server in (edge, cloud)]
        with Router(urls[0], urls[1], sla_ms=60_000, model="silero-vad") as router:
            found, tiers, reasons = {1: [], 2: []}, [], []
            for index, window in enumerate(windows):
                for number, answers in found.items():
                    result = router.route({"input": window}, parameters=control(number, index, len(windows) - 1))
                    answers.append(result.outputs["output"])
                    tiers.append(result.tier)
                    reasons.append(result.reason)
                assert (open_sequences(edge), open_sequences(cloud)) in {(2, 0), (0, 2), (0, 0)}  # both sequences, each in one place
                if index == 3:
                    break_device(router)
                if index == 7:
                    recover_device(router)
                    break_cloud(router)
    with (
        bundle_servers(bundle.path) as (edge, _),
        Router(f"http://127.0.0.1:{edge.http_port}", sla_ms=60_000, model="silero-vad") as router,
    ):
        expected = [
            router.route({"input": window}, parameters=control(1, index, len(windows) - 1)).outputs["output"]
            for index, window in enumerate(windows)
        ]
    assert reasons.count("moved") == 4
    assert tiers == ["edge"] * 8 + ["cloud"] * 8 + ["edge"] * 8
    for answers in found.values():
        np.testing.assert_array_equal(answers, expected)


def test_a_state_that_cannot_be_had_is_told_once_and_the_sequence_begins_again(tmp_path):
    write_cell(tmp_path / "cell")
    xs = values(4)
    with bundle_servers(tmp_path / "cell") as (edge, cloud):
        urls = [f"http://127.0.0.1:{server.http_port}" for server in (edge, cloud)]
        with Router(urls[0], urls[1], sla_ms=60_000, model="cell") as router:
            router.route({"x": xs[0]}, parameters=control(5, 0, 9))
            edge.stop(0.0)
            break_device(router)
            with pytest.raises(
                UnavailableError, match=r"sequence '5' of model 'cell': its state is lost: http.*; begin it again, with sequence_start"
            ):
                router.route({"x": xs[1]}, parameters=control(5, 1, 9))
            with pytest.raises(RequestError, match="no sequence 5 is open"):
                router.route({"x": xs[1]}, parameters=control(5, 1, 9))
            again = [router.route({"x": x}, parameters=control(5, index, 3)).outputs["y"] for index, x in enumerate(xs)]
    np.testing.assert_allclose(np.stack(again), told_apart(cell_model(), xs), **CLOSE)


def test_another_bundle_refuses_the_state(tmp_path):
    write_cell(tmp_path / "one" / "cell", seed=0)
    write_cell(tmp_path / "other" / "cell", seed=1)
    x = values(1)[0]
    with contextlib.ExitStack() as ends:
        servers = [ends.enter_context(serve_bundles([tmp_path / which / "cell"], ANY, None)) for which in ("one", "other")]
        edge, cloud = (f"http://127.0.0.1:{server.http_port}" for server in servers)
        with Router(edge, cloud, sla_ms=60_000, model="cell") as router:
            first = router.route({"x": x}, parameters=control(5, 0, 9)).outputs["y"]
            break_device(router)
            with pytest.raises(RequestError, match=r"states n, s of a bundle with digest .*the state begins anew"):
                router.route({"x": x}, parameters=control(5, 1, 9))
            recover_device(router)
            break_cloud(router)
            second = router.route({"x": x}, parameters=control(5, 1, 9)).outputs["y"]  # the router still had it
    np.testing.assert_allclose(np.stack([first, second]), told_apart(cell_model(), [x, x]), **CLOSE)
