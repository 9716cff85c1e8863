"""The repository that Triton will read, checked without Triton: by its own config schema."""

import pytest
from affine_bundles import write_affine_bundle
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from edgekit.bundle import Bundle, write_bundle
from edgekit.cloud.triton import ModelConfig, TensorConfig, plan_model, render, write_repository
from edgekit.errors import BundleError, UsageError


def parse(text):
    """Triton's own protobuf message, from another package: unknown fields and bad enums fail."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_cpu_repository_is_the_python_back_end(affine_bundle, tmp_path):
    write_repository([affine_bundle.path], tmp_path / "repo", "cpu", threads=2)
    folder = tmp_path / "repo/affine"
    config = parse((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("affine", "python", 16)
    assert [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in config.input] == [("x", "TYPE_FP32", [4])]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.parameters["threads"].string_value == "2"
    assert (folder / "1/model.onnx").read_bytes() == (affine_bundle.directory / "model.onnx").read_bytes()
    compile((folder / "1/model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_nothing_bounds_tritons_queue_which_would_poll_it_every_half_second(affine_bundle, target):
    """What turns prefetching off in Triton's batcher, and with it most wake-ups (ADR 0030): a default timeout, its override, a size, priorities."""
    config = parse(render(plan_model(affine_bundle, target).config))
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.dynamic_batching.priority_levels
    assert not config.dynamic_batching.priority_queue_policy


def test_gpu_repository_of_an_onnx_bundle_is_the_onnxruntime_back_end(affine_bundle, tmp_path):
    write_repository([affine_bundle.path], tmp_path / "repo", "gpu", instances=2)
    config = parse((tmp_path / "repo/affine/config.pbtxt").read_text())
    assert config.backend == "onnxruntime"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.instance_group[0].count == 2
    assert not (tmp_path / "repo/affine/1/model.py").exists()


def test_gpu_repository_of_a_tensorrt_bundle_brings_the_command_that_builds_its_plan(tmp_path):
    bundle = write_affine_bundle(tmp_path / "b", engine="tensorrt")
    with pytest.raises(BundleError, match="no ONNX form"):
        plan_model(bundle, "cpu")
    write_tensorrt_with_fallback(bundle)
    bundle = Bundle.open(bundle.path)
    model = plan_model(bundle, "gpu", max_batch=8)
    assert model.config.backend == "tensorrt"
    assert "--optShapes=x:4x4" in model.plan_command
    assert "--maxShapes=x:8x4" in model.plan_command
    write_repository([bundle.path], tmp_path / "repo", "gpu")
    assert "trtexec" in (tmp_path / "repo/affine/1/build_plan.sh").read_text()


def write_tensorrt_with_fallback(bundle):
    """The same bundle with an ONNX Runtime fallback on the same file."""
    import msgspec

    manifest = bundle.manifest
    fallback = msgspec.structs.replace(manifest.artifact, engine="onnxruntime")
    write_bundle(bundle.path, msgspec.structs.replace(manifest, fallback=fallback), bundle.directory, bundle.golden(), bundle.report())


def test_a_fixed_first_dimension_is_not_a_batch(tmp_path):
    bundle = write_affine_bundle(tmp_path / "b", batch=1)
    config = plan_model(bundle, "cpu").config
    assert config.max_batch_size == 0
    assert not config.dynamic_batching
    assert config.inputs[0].dims == (1, 4)
    assert not parse(render(config)).HasField("dynamic_batching")


def test_two_versions_stand_side_by_side(tmp_path):
    paths = [write_affine_bundle(tmp_path / f"b{v}", version=v).path for v in ("1", "2")]
    write_repository(paths, tmp_path / "repo")
    assert sorted(p.name for p in (tmp_path / "repo/affine").iterdir()) == ["1", "2", "config.pbtxt"]


def test_names_are_quoted():
    config = ModelConfig('a"b\\c', "python", (TensorConfig('x"', "TYPE_FP32", (1,)),), ())
    assert parse(render(config)).name == 'a"b\\c'
    assert parse(render(config)).input[0].name == 'x"'


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig("m", "python", (), (), dynamic_batching=True), "batch dimension"),
        (lambda: ModelConfig("m", "python", (), (), instance_count=0), "instances"),
    ],
)
def test_bad_configurations_are_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_bad_input_leaves_nothing(affine_bundle, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    cases = [
        ([], tmp_path / "r1", "no bundle"),
        ([affine_bundle.path, affine_bundle.path], tmp_path / "r2", "again"),
        ([affine_bundle.path], other, "holds other files"),
        ([write_affine_bundle(tmp_path / "bv", version="v7").path], tmp_path / "r3", "version"),
    ]
    for bundles, output, says in cases:
        with pytest.raises(UsageError, match=says):
            write_repository(bundles, output)
    assert [p.name for p in other.iterdir()] == ["notes.txt"]
    assert not any((tmp_path / f"r{i}").exists() for i in (1, 2, 3))
