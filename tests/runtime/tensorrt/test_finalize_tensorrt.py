"""Finalize and load a Jetson bundle against the simulated TensorRT: order of calls, caching, retries and errors; no GPU is claimed."""

import json
import shlex
import signal
import subprocess

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BuildError, EngineError, EnvironmentMissingError, VerificationError
from edgekit.runtime import finalize, list_receipts, load
from edgekit.runtime._tensorrt_build import build_engine, cached_engine
from edgekit.runtime._tensorrt_plan import Attempt, Recipe

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow  # each build is a process
GENERATIONS = ["8.5", "10.3", "11", pytest.param("8.6", marks=SLOW), pytest.param("10.13", marks=SLOW)]


def header(cache):
    (plan,) = cache.glob("engines/*/engine.plan")
    return json.loads(plan.read_bytes().partition(b"\n")[0])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_builds_caches_proves_and_leaves_a_receipt(simulated, driver, jetson_bundle, tmp_path, generation):
    simulated(generation)
    before = len(list_receipts())
    receipt = finalize(jetson_bundle, cache_dir=tmp_path)
    assert receipt.built
    assert receipt.verified == "host"
    assert receipt.samples == len(Bundle.open(jetson_bundle).golden())
    assert receipt.engine["compute_capability"] == "8.7"
    assert set(receipt.metrics) == {"features", "scores"}
    assert any("aarch64" in sentence for sentence in receipt.contradictions)
    assert len(list_receipts()) == before + 1
    found = header(tmp_path)
    assert found["network_flags"] == {"8": 1, "1": 2 if generation != "11" else 0}[generation[0]]
    assert ("FP16" in found["flags"]) == generation.startswith("8")
    assert found["workspace"] == 4 * 2**30  # the profile's cap: half of the simulated free memory
    again = finalize(jetson_bundle, cache_dir=tmp_path)
    assert not again.built
    assert again.engine["built"] == "cache"
    assert driver.memory == {}


def test_retries_with_less_memory(simulated, jetson_bundle, tmp_path):
    simulated("10.3", largest_workspace=1024 * 2**20)
    finalize(jetson_bundle, cache_dir=tmp_path)
    assert header(tmp_path)["workspace"] == 1024 * 2**20
    assert header(tmp_path)["level"] == 1


@SLOW
def test_another_tensorrt_is_another_engine(simulated, jetson_bundle, tmp_path):
    for generation in ("10.3", "10.13"):
        simulated(generation)
        finalize(jetson_bundle, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("engines/*"))) == 2
    assert len(list(tmp_path.glob("timing/*.bin"))) == 2


def test_a_builder_that_crashes_is_one_line_and_a_fallback(simulated, jetson_bundle, tmp_path):
    simulated("10.3", die="SIGSEGV")
    with load(jetson_bundle, cache_dir=str(tmp_path)) as session:
        assert session.engine.name == "onnxruntime"
        assert "tensorrt builder: was ended by SIGSEGV (1 try, the last with 4294967296 bytes of workspace)" in session.fallback_reason
        assert "repeat it with: " in session.fallback_reason
    assert not list(tmp_path.glob("engines/*"))
    command = shlex.split(session.fallback_reason.partition("repeat it with: ")[2])
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"die": "SIGKILL"}, r"SIGKILL \(the system ran out of memory\) \(3 tries, the last with 1073741824 bytes"),
        pytest.param({"largest_workspace": 1}, r"gave no engine .*out of memory.*3 tries", marks=SLOW),
    ],
)
def test_want_of_memory_is_tried_again(simulated, jetson_bundle, tmp_path, trouble, said):
    simulated("10.3", **trouble)
    with pytest.raises(EngineError, match=said):
        finalize(jetson_bundle, cache_dir=tmp_path)
    assert not list(tmp_path.glob("engines/*"))


@SLOW
def test_a_hanging_builder_is_ended(simulated, jetson_bundle, tmp_path):
    simulated("10.3", hang=True)
    with pytest.raises(BuildError, match=r"did not end within 2 s"):
        build_engine("tensorrt", jetson_bundle / "recipe.json", tmp_path / "engine.plan", [Attempt(0, 3), Attempt(0, 1)], timeout_s=2)


def test_weakly_typed_builders_are_told_what_stays_float32(simulated, jetson_bundle, tmp_path):
    simulated("8.6", layers=True)
    recipe = msgspec.json.decode((jetson_bundle / "recipe.json").read_bytes(), type=Recipe)
    for name, data in (
        ("recipe.json", msgspec.json.encode(msgspec.structs.replace(recipe, float32_nodes=("pool",)))),
        ("model.onnx", (jetson_bundle / "model.onnx").read_bytes()),
    ):
        (tmp_path / name).write_bytes(data)
    build_engine("tensorrt", tmp_path / "recipe.json", tmp_path / "engine.plan", [Attempt(0, 3)])
    found = json.loads((tmp_path / "engine.plan").read_bytes().partition(b"\n")[0])
    assert found["pinned"] == ["pool"]
    assert "PREFER_PRECISION_CONSTRAINTS" in found["flags"]


def test_the_parsers_refusal_names_the_node(simulated, jetson_bundle, tmp_path):
    simulated("10.3", refuse=["GlobalAveragePool"])
    with pytest.raises(EngineError, match=r"GlobalAveragePool at 'pool' \(opset 17: no importer\)"):
        finalize(jetson_bundle, cache_dir=tmp_path)


def test_wrong_numbers_leave_a_receipt_that_says_so(simulated, jetson_bundle, tmp_path):
    simulated("10.3", scale=2)
    with pytest.raises(VerificationError, match=r"tensorrt: output .* limit .*do not serve it; the receipt is"):
        finalize(jetson_bundle, cache_dir=tmp_path)
    receipt = list_receipts()[-1]
    assert receipt.verified == "deferred"
    assert receipt.misses


def test_an_engine_of_another_tensorrt_is_dropped(simulated, jetson_bundle, tmp_path):
    simulated("10.3")
    finalize(jetson_bundle, cache_dir=tmp_path)
    simulated("10.3", foreign_engine=True)
    with pytest.raises(EngineError, match=r"not for TensorRT 10\.3\.0 on Simulated Orin \(8\.7\)"):
        finalize(jetson_bundle, cache_dir=tmp_path)
    assert not list(tmp_path.glob("engines/*"))


def test_no_gpu_says_what_is_missing(simulated, driver, jetson_bundle, tmp_path):
    simulated("10.3")
    driver.devices = 0
    with pytest.raises(
        EnvironmentMissingError, match=r"NVIDIA GPU: the driver sees no GPU.*until then .* uses its fallback for onnxruntime"
    ):
        finalize(jetson_bundle, cache_dir=tmp_path)


def test_no_driver_library():
    from edgekit.runtime._cuda import Cuda

    def load_nothing(name):
        raise OSError(name)

    with pytest.raises(EnvironmentMissingError, match="driver library"):
        Cuda(load_nothing)


def test_no_tensorrt_says_what_is_missing(jetson_bundle):
    with pytest.raises(
        EnvironmentMissingError, match=r"the package tensorrt is not installed.*JetPack.*uses its fallback for onnxruntime \(fp32\)"
    ):
        finalize(jetson_bundle)


def test_answers_are_those_of_the_graph(simulated, jetson_bundle, tmp_path):
    simulated("10.3")
    bundle = Bundle.open(jetson_bundle)
    with load(bundle, cache_dir=str(tmp_path)) as session:
        assert session.engine.name == "tensorrt"
        for sample in bundle.golden():
            for name, array in session.run(sample.inputs).items():
                assert array.dtype == np.float32
                np.testing.assert_allclose(array, sample.outputs[name], atol=5e-3)


@pytest.fixture
def ids_bundle(tiny_ids, tmp_path):
    from edgekit.converters import build

    return build(tiny_ids, device="jetson-orin", precision="fp32", output=tmp_path / "ids").path


@pytest.mark.parametrize("generation", ["8.6", pytest.param("10.3", marks=SLOW)])
def test_64_bit_integers_keep_their_dtype(simulated, ids_bundle, tmp_path, generation):
    simulated(generation)
    finalize(ids_bundle, cache_dir=tmp_path / "cache")
    with load(ids_bundle, cache_dir=str(tmp_path / "cache")) as session:
        assert session.engine.name == "tensorrt"
        answer = session.run({"ids": np.arange(6).reshape(1, 6), "mask": np.ones((1, 6), bool)})
        assert answer["last"].dtype == np.int64
        assert answer["last"].tolist() == [[5]]
        if generation == "8.6":
            with pytest.raises(EngineError, match="beyond 32 bits"):
                session.run({"ids": np.full((1, 6), 2**40), "mask": np.ones((1, 6), bool)})


def test_a_recipe_for_another_file_is_refused(simulated, jetson_bundle, tmp_path):
    from edgekit.errors import BundleError

    simulated("10.3")
    (tmp_path / "recipe.json").write_bytes((jetson_bundle / "recipe.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="not the file that it was written for"):
        cached_engine("tensorrt", tmp_path / "recipe.json", None, tmp_path)
