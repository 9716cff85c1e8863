"""Sequences of a stateful model through the router: two real servers, Triton's own clients."""

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from edgekit.router import serve_router
from edgekit.runtime import serve_bundles
from tests.runtime.stateful_bundles import cell_model, told_apart, values, write_cell

pytestmark = pytest.mark.slow
ANY = ("127.0.0.1", 0)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def inputs(library, x):
    tensor = library.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


@pytest.fixture
def tiers(tmp_path):
    write_cell(tmp_path / "cell")
    with serve_bundles([tmp_path / "cell"], ANY, None) as edge, serve_bundles([tmp_path / "cell"], ANY, None) as cloud:
        yield edge, cloud


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


def test_a_bundle_in_the_routers_process_has_no_states(tmp_path):
    bundle = write_cell(tmp_path / "cell")
    said = r"sequence_id: given, and the router keeps no states of 'cell'.*start edgekit serve"
    with (
        serve_router(bundle.path, None, 5000.0, ANY, None) as router,
        tritonclient.http.InferenceServerClient(f"127.0.0.1:{router.http_port}") as client,
        pytest.raises(InferenceServerException, match=said),
    ):
        client.infer("cell", inputs(tritonclient.http, values(1)[0]), sequence_id=7, sequence_start=True)
