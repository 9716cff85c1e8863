"""The Jetson plan kit and the RTX engine. NVIDIA's own parser and builder run here where TensorRT-RTX is installed; no GPU does."""

import hashlib

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import GoldenSample
from edgekit.converters._verify import judge, run_artifact
from edgekit.converters.tensorrt import EMITTERS
from edgekit.converters.tensorrt._builder import known_capabilities
from edgekit.converters.tensorrt._kit import shape_ranges
from edgekit.errors import BuildError, EnvironmentMissingError, ShapeRequiredError, UnsupportedOperatorsError
from edgekit.runtime import _tensorrt_build
from edgekit.runtime._tensorrt_plan import Attempt, Recipe

pytestmark = pytest.mark.slow

PRECISIONS = ["fp16", pytest.param("fp32", marks=pytest.mark.slow)]  # each build is a process
JETSON, RTX = EMITTERS["tensorrt"], EMITTERS["tensorrt-rtx"]


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")


@pytest.fixture
def without_rtx(monkeypatch):
    monkeypatch.setitem(_tensorrt_build.PACKAGES, "tensorrt-rtx", ("no_such_package",))


def save(path, nodes, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def files(job):
    return {path.name: path.read_bytes() for path in job.directory.iterdir()}


def test_the_kit_holds_what_the_device_needs(job_for, tiny_conv):
    job = job_for(tiny_conv)
    emitted = JETSON.emit(job)
    assert set(files(job)) == {"model.onnx", "recipe.json", "fallback.onnx"}
    assert (emitted.artifact.engine, emitted.artifact.path, emitted.artifact.precision) == ("tensorrt", "model.onnx", "fp16")
    assert (emitted.fallback.engine, emitted.fallback.path, emitted.fallback.precision) == ("onnxruntime", "fallback.onnx", "fp32")
    recipe = msgspec.json.decode(files(job)["recipe.json"], type=Recipe)
    assert recipe.onnx_sha256 == hashlib.sha256(files(job)["model.onnx"]).hexdigest()
    assert recipe.workspace_bytes == job.profile.workspace_bytes > 0
    assert recipe.dla == "none"
    assert recipe.shapes == {}
    assert [generation.network_flags for generation in recipe.generations] == [("EXPLICIT_BATCH",), ("STRONGLY_TYPED",), ()]
    assert [generation.builder_flags for generation in recipe.generations] == [("FP16",), (), ()]
    model = onnx.load_from_string(files(job)["model.onnx"])
    assert model.opset_import[0].version <= job.claim.opset_max
    assert model.ir_version <= 8  # what TensorRT 8.6's onnx (1.12) reads
    assert {TensorProto.FLOAT16} == {tensor.data_type for tensor in model.graph.initializer}


def test_float32_needs_one_file_and_no_tf32(job_for, tiny_conv):
    job = job_for(tiny_conv, precision="fp32")
    emitted = JETSON.emit(job)
    assert set(files(job)) == {"model.onnx", "recipe.json"}
    assert emitted.fallback.path == "model.onnx"
    assert msgspec.json.decode(files(job)["recipe.json"], type=Recipe).clear_flags == ("TF32",)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_equal_jobs_give_equal_bytes(job_for, tiny_conv, precision):
    first, second = (job_for(tiny_conv, precision=precision) for _ in range(2))
    for job in (first, second):
        JETSON.emit(job)
    assert files(first) == files(second)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nvidias_parser_and_builder_take_the_file(rtx, job_for, tiny_conv, precision):
    job = job_for(tiny_conv, precision=precision)
    proof = JETSON.prove(job, JETSON.emit(job))
    assert proof.verified == "parser"
    assert proof.engine == f"TensorRT-RTX {rtx.__version__} (tensorrt_rtx_bindings)"
    assert "not the TensorRT of a Jetson" in proof.notes[1]
    assert "through onnxruntime" in proof.notes[0]
    assert len(proof.left_to_device) == 3
    judge("the lowered graph", job.samples, proof.outputs, job.source.signature, precision)


def test_without_tensorrt_rtx_nothing_is_claimed(without_rtx, job_for, tiny_conv):
    job = job_for(tiny_conv)
    proof = JETSON.prove(job, JETSON.emit(job))
    assert proof.verified == "deferred"
    assert proof.engine.startswith("onnxruntime")
    assert "NVIDIA's parser did not read model.onnx" in proof.notes[1]
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'edgekit-ml\[tensorrt\]'"):
        RTX.emit(job_for(tiny_conv, "rtx-pc"))


def test_a_refusal_of_the_parser_names_the_node(rtx, job_for, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["t"], "first"), helper.make_node("Det", ["t"], ["y"], "determinant")]
    path = save(tmp_path / "det.onnx", nodes, [("x", TensorProto.FLOAT, (2, 6, 6))], [("y", TensorProto.FLOAT, (2,))])
    with pytest.raises(
        UnsupportedOperatorsError, match=r"NVIDIA's parser \(tensorrt_rtx_bindings .*Det at 'determinant'.*6 rows"
    ) as caught:
        JETSON.emit(job_for(path, precision="fp32"))
    assert [name for name, *_ in caught.value.nodes] == ["determinant"]


def boxes(path):
    constants = [("n", np.array([2])), ("t", np.array([0.5], np.float32))]
    tensors = [helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array)) for name, array in constants]
    nodes = [*tensors, helper.make_node("NonMaxSuppression", ["x", "s", "n", "t"], ["y"], "suppression")]
    inputs = [("x", TensorProto.FLOAT, (1, 6, 4)), ("s", TensorProto.FLOAT, (1, 1, 6))]
    return save(path, nodes, inputs, [("y", TensorProto.INT64, ("boxes", 3))])


def test_what_only_the_jetsons_tensorrt_has_is_parsed_for_it_and_refused_for_rtx(rtx, job_for, tmp_path):
    path = boxes(tmp_path / "boxes.onnx")
    job = job_for(path, precision="fp32")
    proof = JETSON.prove(job, JETSON.emit(job))
    assert proof.verified == "parser"
    assert "built nothing of it, because it has no NonMaxSuppression" in proof.notes[1]
    with pytest.raises(UnsupportedOperatorsError, match=r"NonMaxSuppression at 'suppression'.*no implementation to build"):
        RTX.emit(job_for(path, "rtx-pc", "fp32"))


def test_what_the_parser_refuses_is_lowered(rtx, job_for, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["t"], "first"), helper.make_node("Det", ["t"], ["y"], "determinant")]
    path = save(tmp_path / "det.onnx", nodes, [("x", TensorProto.FLOAT, (2, 3, 3))], [("y", TensorProto.FLOAT, (2,))])
    job = job_for(path, precision="fp32")
    emitted = JETSON.emit(job)
    assert emitted.report["lowered"] == ["Det"]
    assert JETSON.prove(job, emitted).verified == "parser"


def scaled(path):
    """A quantisation as `DynamicQuantizeLinear` writes it: uint8, and a scale that the values decide."""
    tensors = [helper.make_node("Constant", [], ["zero"], value=onnx.numpy_helper.from_array(np.array(128, np.uint8)))]
    tensors += [helper.make_node("ReduceMax", ["x"], ["scale"], "largest", keepdims=0)]
    nodes = [*tensors, helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise")]
    nodes += [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "back")]
    return save(path, nodes, [("x", TensorProto.FLOAT, (2, 3))], [("y", TensorProto.FLOAT, (2, 3))])


def gaps(path):
    pool = helper.make_node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 0, 1], dilations=[1, 2])
    return save(path, [pool], [("x", TensorProto.FLOAT, (1, 2, 9, 9))], [("y", TensorProto.FLOAT, (1, 2, 4, 4))])


@pytest.mark.parametrize(("make", "operators"), [(scaled, ["DequantizeLinear", "QuantizeLinear"]), (gaps, ["MaxPool"])])
def test_what_tensorrt_reads_and_gets_wrong_is_lowered(rtx, job_for, tmp_path, make, operators):
    job = job_for(make(tmp_path / "model.onnx"), precision="fp32")
    emitted = JETSON.emit(job)
    assert emitted.report["lowered"] == operators
    proof = JETSON.prove(job, emitted)
    assert proof.verified == "parser"
    judge("lowered", job.samples, proof.outputs, job.source.signature, "fp32")


def test_a_builder_that_does_not_end_is_one_line(rtx, job_for, tiny_conv, tmp_path):
    job = job_for(tiny_conv)
    JETSON.emit(job)
    recipe = job.directory / "recipe.json"
    with pytest.raises(BuildError, match=r"builder: did not end within 0 s .*repeat it with: .*_tensorrt_child"):
        _tensorrt_build.build_engine("tensorrt_rtx_bindings", recipe, tmp_path / "e", [Attempt(0, 3)], timeout_s=0.05)


def test_a_crash_of_the_builder_is_one_line_that_repeats_it(rtx, job_for, tiny_conv, monkeypatch):
    job = job_for(tiny_conv)
    emitted = JETSON.emit(job)
    monkeypatch.setattr(_tensorrt_build, "_run", lambda *_: (-11, ""))
    with pytest.raises(
        BuildError, match=r"was ended by SIGSEGV \(1 try.*repeat it with: .*--recipe .*failed-builds.*recipe\.json"
    ) as caught:
        JETSON.prove(job, emitted)
    assert "\n" not in str(caught.value)


def test_dynamic_inputs_get_the_sizes_of_the_samples(rtx, job_for, tiny_mlp):
    job = job_for(tiny_mlp, static=False)
    emitted = JETSON.emit(job)
    (found,) = msgspec.json.decode(files(job)["recipe.json"], type=Recipe).shapes.values()
    sizes = [sample.inputs["x"].shape[0] for sample in job.samples]
    assert (found.min, found.opt, found.max) == ((min(sizes), 8), (sizes[0], 8), (max(sizes), 8))
    assert JETSON.prove(job, emitted).verified == "parser"
    with pytest.raises(ShapeRequiredError, match="--shape x="):
        shape_ranges(job.source.signature, [])


def test_types_that_tensorrt_has_not_are_carried_by_others(rtx, job_for, tmp_path):
    nodes = [helper.make_node("Neg", ["x"], ["y"], "neg"), helper.make_node("Add", ["n", "n"], ["twice"], "double")]
    ends = (
        [("x", TensorProto.DOUBLE, (2,)), ("n", TensorProto.UINT16, (2,))],
        [("y", TensorProto.DOUBLE, (2,)), ("twice", TensorProto.UINT16, (2,))],
    )
    job = job_for(save(tmp_path / "double.onnx", nodes, *ends), precision="fp32")
    emitted = JETSON.emit(job)
    assert [binding.native_dtype for binding in emitted.artifact.inputs] == ["float32", "int32"]
    assert any("float64: float32 stands for it" in note for note in emitted.notes)
    artifact = msgspec.structs.replace(emitted.artifact, engine="onnxruntime", options={})
    sample = GoldenSample({"x": np.array([1.5, -2.0]), "n": np.array([40_000, 3], np.uint16)}, {})
    outputs, _ = run_artifact(job.directory, artifact, job.source.signature, [sample])
    assert outputs[0]["y"].tolist() == [-1.5, 2.0]
    assert outputs[0]["twice"].tolist() == [14_464, 6]  # 80,000 wraps round


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rtx_engine_is_built_and_its_limits_are_said(rtx, job_for, tiny_conv, precision):
    job = job_for(tiny_conv, "rtx-pc", precision)
    emitted = RTX.emit(job)
    engine = files(job)["model.engine"]
    assert len(engine) == emitted.report["engine_bytes"] > 1000
    assert emitted.report["engine_reproduced"] is True
    assert emitted.artifact.path == "model.engine"
    assert emitted.artifact.options["compute_capabilities"] == "8.0,8.6,8.9,12.0"
    assert emitted.tools["tensorrt-rtx"] == rtx.__version__
    proof = RTX.prove(job, emitted)
    assert proof.verified in ("parser", "host")  # host where a GPU is
    if proof.verified == "parser":
        assert "it did not run" in proof.notes[1]
    judge("rtx", job.samples, proof.outputs, job.source.signature, precision)


def test_capabilities_are_asked_by_name(rtx):
    assert known_capabilities(rtx, ["8.6", "8.7", "11.0", "12.0"]) == ("8.6", "12.0")
    assert known_capabilities(object(), ["8.6"]) == ()


REAL = {"ppocr-det": {"x": (1, 3, 480, 640)}, "ppocr-rec": {"x": (1, 3, 48, 320)}, "ppocr-cls": {"x": (1, 3, 48, 192)}, "magika": {"bytes": (1, 2048)}, "silero-vad": {}}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", REAL)
def test_real_models(rtx, job_for, real_model, name, precision):
    job = job_for(real_model(name), "jetson-orin", precision, shapes=REAL[name])
    proof = JETSON.prove(job, JETSON.emit(job))
    assert proof.verified == "parser"
    judge(name, job.samples, proof.outputs, job.source.signature, precision)
    job = job_for(real_model(name), "rtx-pc", precision, shapes=REAL[name])
    emitted = RTX.emit(job)
    # NVIDIA's builder gives the same bytes mostly, not always: where it does not, the bundle says so.
    assert bool(emitted.notes) is not emitted.report["engine_reproduced"]
    assert emitted.report["engine_bytes"] > 1000
