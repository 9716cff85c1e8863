"""A real Triton on a repository of ours, asked by tritonclient. Skips where no Triton is installed; `make test` installs it."""

import os
import socket
import threading

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from affine_bundles import write_affine_bundle

from edgekit.cloud.triton import TritonServer, find_environment, write_repository
from edgekit.errors import BindError, EngineError, EnvironmentMissingError, UsageError

try:
    find_environment()
    MISSING = ""
except EnvironmentMissingError as error:
    MISSING = str(error)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")
    paths = [
        write_affine_bundle(root / "b1").path,
        write_affine_bundle(root / "b2", version="2", scale=3.0).path,
        write_affine_bundle(root / "b3", name="fixed", batch=1).path,
    ]
    write_repository(paths, root / "repo", "cpu")
    with TritonServer(root / "repo") as server:
        yield server


def expected(x, scale):
    return scale * x + x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("model", "version", "scale", "rows"), [("affine", "1", 2.0, 3), ("affine", "2", 3.0, 2), ("fixed", "1", 2.0, 1)])
def test_http_and_grpc_answer_the_models_numbers(triton, model, version, scale, rows):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    for module, port in ((triton_http, triton.http_port), (triton_grpc, triton.grpc_port)):
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        tensor = module.InferInput("x", [rows, 4], "FP32")
        tensor.set_data_from_numpy(x)
        result = client.infer(model, [tensor], model_version=version).as_numpy("y")
        np.testing.assert_allclose(result, expected(x, scale), rtol=1e-5)
        client.close()


def test_a_dynamic_batch_gives_each_request_its_own_rows(triton):
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(rows, 4)).astype(np.float32) for rows in rng.integers(1, 4, size=40)]
    results = [None] * len(inputs)

    def ask(indices):
        client = triton_grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}")
        for index in indices:
            tensor = triton_grpc.InferInput("x", list(inputs[index].shape), "FP32")
            tensor.set_data_from_numpy(inputs[index])
            results[index] = client.infer("affine", [tensor], model_version="1").as_numpy("y")
        client.close()

    threads = [threading.Thread(target=ask, args=(range(start, len(inputs), 8),)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_allclose(y, expected(x, 2.0), rtol=1e-5)


def test_a_failing_batch_is_an_error_for_its_client_and_the_server_lives_on(triton):
    client = triton_http.InferenceServerClient(f"127.0.0.1:{triton.http_port}")
    tensor = triton_http.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(Exception, match="shape"):
        client.infer("affine", [tensor])
    assert client.is_server_ready()
    client.close()


def test_a_port_in_use_is_named_before_anything_starts(triton):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BindError, match="--http"):
        TritonServer(triton.repository, http_port=taken.getsockname()[1])


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no model"):
        TritonServer(tmp_path)


def test_a_repository_that_triton_refuses_is_one_line_and_leaves_no_process(tmp_path):
    write_repository([write_affine_bundle(tmp_path / "b").path], tmp_path / "repo")
    config = tmp_path / "repo/affine/config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_FP32", "TYPE_FP33"))
    with pytest.raises(EngineError) as caught:
        TritonServer(tmp_path / "repo")
    assert "\n" not in str(caught.value)


def test_stop_leaves_no_process(tmp_path):
    write_repository([write_affine_bundle(tmp_path / "b").path], tmp_path / "repo")
    server = TritonServer(tmp_path / "repo")
    group = server.pid
    server.stop()
    server.stop()
    assert not server.running()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
