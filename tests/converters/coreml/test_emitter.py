"""The emitter as a whole: bindings, refusals, determinism, structure, float16 islands, and the five real models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import TensorBinding
from edgekit.converters._emitter import EmitJob
from edgekit.converters._emitters import emitter_for
from edgekit.converters._source import graph_from_onnx
from edgekit.converters.coreml import EMITTERS, ops
from edgekit.device_profiles import EngineClaim
from edgekit.errors import ModelError, UnknownNameError, UnsupportedOperatorsError

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def node(op: str, inputs: list[str], outputs: list[str], **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, f"{op} of {outputs[0]}", **attrs)


def package_bytes(package: Path) -> dict[str, bytes]:
    return {str(path.relative_to(package)): path.read_bytes() for path in sorted(package.rglob("*")) if path.is_file()}


def features(package: Path) -> tuple[list[tuple[str, int, tuple[int, ...]]], list[tuple[str, int, tuple[int, ...]]]]:
    """(name, ArrayDataType, shape) of inputs and outputs in the saved specification."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())

    def listed(items):
        return [(item.name, item.type.multiArrayType.dataType, tuple(item.type.multiArrayType.shape)) for item in items]

    return listed(model.description.input), listed(model.description.output)


FLOAT32, INT32 = 65568, 131104  # Core ML's ArrayFeatureType.ArrayDataType


def test_registered_and_documented():
    assert emitter_for("coreml") is EMITTERS["coreml"]
    rules = [rule for registration in ops.registrations() for rule in registration.constraints]
    assert rules
    assert all((rule.__doc__ or "").strip() for rule in rules)


# --- names, dtypes, order ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_names_become_identifiers_and_float32_stays_at_the_signature(make, emit, precision):
    inputs = {"1/x:0": normal(2, 3), "bool": normal(2, 3), "a b": normal(2, 3), "a-b": normal(2, 3), "_z": normal(2, 3)}
    names = list(inputs)
    nodes = [node("Sum", names, ["out/put:0"]), node("Mul", names[:2], ["out.put:0"])]
    done = emit(make(nodes, inputs, {}, ["out/put:0", "out.put:0"]), inputs, precision=precision)
    artifact = done.emitted.artifact
    assert [binding.name for binding in artifact.inputs] == names
    assert [binding.native_name for binding in artifact.inputs] == ["t1_x_0", "bool_2", "a_b", "a_b_2", "t_z"]
    assert [binding.native_name for binding in artifact.outputs] == ["out_put_0", "out_put_0_2"]
    given, made = features(done.package)
    assert given == [(binding.native_name, FLOAT32, (2, 3)) for binding in artifact.inputs]
    assert [entry[:2] for entry in made] == [(binding.native_name, FLOAT32) for binding in artifact.outputs]
    actual = done.run()
    for name, want in done.expected.items():
        np.testing.assert_allclose(
            actual[name], want, rtol=1e-5 if precision == "fp32" else 1e-2, atol=1e-2 if precision == "fp16" else 1e-6
        )


@pytest.mark.parametrize(
    ("array", "native"),
    [
        (np.array([[1, -2]], np.int64), "int32"),
        (np.array([[1, 200]], np.uint8), "int32"),
        (np.array([[True, False]]), "int32"),
        (np.array([[1.5, -2.5]], np.float16), "float16"),
        (np.array([[1.5, -2.5]], np.float32), "float32"),
        (np.array(3.5, np.float32), "float32"),
        (np.array(-7, np.int64), "int32"),
    ],
    ids=["int64", "uint8", "bool", "float16", "float32", "scalar", "int64 scalar"],
)
def test_dtypes_and_ranks_that_core_ml_lacks_are_mapped_back(make, emit, array, native):
    done = emit(make([node("Identity", ["x"], ["y"])], {"x": array}, {}, ["y"]), {"x": array})
    assert done.emitted.artifact.inputs == (TensorBinding("x", "x", native),)
    actual = done.run()["y"]
    assert (actual.dtype, actual.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(actual, array)


def test_boolean_results_constants_and_passed_inputs_can_be_outputs(make, emit):
    inputs = {"x": normal(2, 3)}
    constants = {"limit": np.zeros(1, np.float32), "fixed": normal(3)}
    nodes = [node("Greater", ["x", "limit"], ["positive"]), node("Not", ["positive"], ["negative"])]
    done = emit(make(nodes, inputs, constants, ["positive", "negative", "fixed", "x"]), inputs)
    actual = done.run()
    assert list(actual) == ["positive", "negative", "fixed", "x"]
    for name, want in done.expected.items():
        assert actual[name].dtype == want.dtype
        np.testing.assert_array_equal(actual[name], want)


def test_one_result_in_two_outputs(make, emit):
    inputs = {"x": normal(2, 3)}
    nodes = [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"]), node("Identity", ["a"], ["c"])]
    done = emit(make(nodes, inputs, {}, ["a", "b", "c"]), inputs)
    actual = done.run()
    for name, want in done.expected.items():
        np.testing.assert_array_equal(actual[name], want)


def test_parts_without_elements_are_left_out(make, emit):
    """An exporter slices a part off even where the part is empty."""
    inputs = {"x": normal(2, 3)}
    constants = {"sizes": np.int64([3, 0]), "end": np.int64([0]), "axis": np.int64([1])}
    nodes = [
        node("Split", ["x", "sizes"], ["all", "none"], axis=1),
        node("Relu", ["none"], ["still"]),
        node("Slice", ["x", "end", "end", "axis"], ["nothing"]),
        node("Concat", ["still", "all", "nothing"], ["y"], axis=1),
    ]
    done = emit(make(nodes, inputs, constants, ["y"]), inputs)
    assert set(operators(done)) <= {"identity", "slice_by_index"}
    np.testing.assert_array_equal(done.run()["y"], inputs["x"])


# --- refusals ------------------------------------------------------------------------------------------------------------------------------


def refused(make, emit, nodes, inputs, constants, outputs, opset=17) -> dict[str, str]:
    """Reason by node name."""
    with pytest.raises(UnsupportedOperatorsError) as caught:
        emit(make(nodes, inputs, constants, outputs, opset), inputs)
    assert "\n" not in str(caught.value)
    return {name: reason for name, _, _, reason in caught.value.nodes}


def test_every_refused_node_is_listed_with_its_reason(make, emit):
    inputs = {"x": normal(1, 2, 4, 4), "n": np.array([7, -7], np.int64), "u": np.array([1, 2], np.uint32)}
    constants = {"wide": np.array([2**40], np.int64), "half": np.array([0.5], np.float32)}
    nodes = [
        node("Add", ["n", "wide"], ["w"]),
        node("Pow", ["n", "half"], ["q"]),
        node("MaxPool", ["x"], ["p", "places"], kernel_shape=[17, 17], pads=[8, 8, 8, 8]),
        node("Sub", ["u", "u"], ["d"]),
        node("Max", ["d", "u"], ["e"]),
        node("Relu", ["x"], ["fine"]),
    ]
    reasons = refused(make, emit, nodes, inputs, constants, ["w", "q", "p", "places", "e", "fine"])
    assert {name: reason.split(";")[0] for name, reason in reasons.items()} == {
        "Add of w": "constant 'wide' has values outside int32, Core ML's only wide integer",
        "Pow of q": "exponents 0.5 to 0.5 of an integer base",
        "MaxPool of p": "289 elements in a window with Indices",
        "Sub of d": "uint32 arithmetic inside the graph",
    }


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "reason"),
    [
        ("Pow", (np.int32([2, 3]), np.int64([70, 1])), {}, "exponents 1 to 70 of an integer base"),
        ("ReduceSumSquare", (normal(2, 3), np.zeros(0, np.int64)), {"noop_with_empty_axes": 1}, "noop_with_empty_axes"),
        ("LRN", (normal(1, 4, 3, 3),), {"size": 2}, "size 2"),
    ],
    ids=["large exponent", "nothing reduced", "even size"],
)
def test_refused_for_a_reason(make, signature_of, op, operands, attrs, reason):
    names = ["x", *(f"k{index}" for index in range(1, len(operands)))]
    model = make([node(op, names, ["y"], **attrs)], {"x": operands[0]}, dict(zip(names[1:], operands[1:], strict=True)), ["y"], 18)
    graph = graph_from_onnx(model, signature_of(model))
    assert ops.refusal(graph.nodes[0], graph) == reason


def test_shapes_that_are_computed_at_run_time_are_refused(make, emit):
    inputs = {"x": normal(2, 3), "pads": np.array([0, 1, 0, 1], np.int64)}
    graph_input = make([node("Relu", ["x"], ["y"])], inputs, {}, ["y"])
    graph_input.graph.node.append(node("Pad", ["x", "pads"], ["z"]))
    graph_input.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 5]))
    with pytest.raises(UnsupportedOperatorsError, match="input 'pads' is computed at run time; it must be a constant"):
        emit(graph_input, inputs)


def test_interfaces_that_core_ml_cannot_have(make, emit):
    inputs = {"words": np.zeros(2, np.complex64), "x": normal(2), "none": normal(0, 3)}
    with pytest.raises(ModelError, match="input 'words' is complex64; input 'none' has no elements; expected float, bool or integer"):
        emit(make([node("Relu", ["x"], ["y"])], inputs, {}, ["y"]), inputs)


@pytest.mark.parametrize("target", ["iOS15", "iOS99", "Android"])
def test_unknown_or_old_deployment_target(make, emit, target):
    with pytest.raises(UnknownNameError, match="deployment target"):
        emit(make([node("Relu", ["x"], ["y"])], {"x": normal(2)}, {}, ["y"]), {"x": normal(2)}, target=target)


@pytest.mark.parametrize(("target", "version"), [("", 7), ("iOS16", 7), ("macOS14", 8), ("iOS17", 8), ("iOS18", 9)])
def test_deployment_target_sets_the_specification_version(make, emit, target, version):
    done = emit(make([node("Relu", ["x"], ["y"])], {"x": normal(2)}, {}, ["y"]), {"x": normal(2)}, target=target)
    assert done.emitted.report["specification_version"] == version
    np.testing.assert_array_equal(done.run()["y"], done.expected["y"])


# --- structure -----------------------------------------------------------------------------------------------------------------------------


def operators(done) -> dict[str, int]:
    return dict(done.emitted.report["operators"])


def test_one_operator_for_one_node(make, emit):
    inputs = {"x": normal(1, 3, 8, 8)}
    constants = {
        "w": normal(4, 3, 3, 3),
        "g": normal(4),
        "b": normal(4),
        "m": normal(4),
        "v": np.abs(normal(4)) + 0.5,
        "zero": np.float32(0),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        node("Clip", ["n", "zero"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
    ]
    done = emit(make(nodes, inputs, constants, ["p"]), inputs)
    assert operators(done) == {"conv": 1, "relu": 1, "reduce_mean": 1}  # BatchNormalization went into the convolution
    np.testing.assert_allclose(done.run()["p"], done.expected["p"], rtol=1e-4, atol=1e-5)


def test_layout_needs_no_transposes_and_reshapes_merge(make, emit):
    inputs = {"x": normal(1, 2, 3, 4)}
    constants = {"up": np.array([1, 1, 2, 2], np.float32), "flat": np.array([1, -1], np.int64), "axis": np.array([0], np.int64)}
    nodes = [
        node("Resize", ["x", "", "up"], ["r"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Reshape", ["r", "flat"], ["f"]),
        node("Squeeze", ["f", "axis"], ["s"]),
        node("Identity", ["s"], ["same"]),
        node("Unsqueeze", ["same", "axis"], ["y"]),
    ]
    done = emit(make(nodes, inputs, constants, ["y"]), inputs)
    assert operators(done) == {"upsample_nearest_neighbor": 1, "reshape": 1}
    np.testing.assert_array_equal(done.run()["y"], done.expected["y"])


def test_gemm_is_one_linear_and_lstm_one_lstm(make, emit):
    inputs = {"x": normal(3, 4), "s": normal(5, 1, 4)}
    constants = {"w": normal(4, 6), "b": normal(6), "lw": normal(1, 12, 4), "lr": normal(1, 12, 3)}
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0), node("LSTM", ["s", "lw", "lr"], ["z"], hidden_size=3)]
    done = emit(make(nodes, inputs, constants, ["y", "z"]), inputs)
    assert {name: count for name, count in operators(done).items() if name != "reshape"} == {"linear": 1, "lstm": 1}
    actual = done.run()
    for name, want in done.expected.items():
        np.testing.assert_allclose(actual[name], want, rtol=1e-4, atol=1e-5)


# --- float16 -------------------------------------------------------------------------------------------------------------------------------


def overflowing(make) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A layer norm over values whose squares leave float16, then a matrix product that fits."""
    inputs = {"x": (normal(2, 8) * 1000)}
    constants = {"half": np.float32(0.5), "w": normal(8, 4), "square": np.float32(2), "tiny": np.float32(1e-5)}
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Pow", ["centred", "square"], ["squares"]),
        node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        node("Add", ["variance", "tiny"], ["shifted"]),
        node("Sqrt", ["shifted"], ["spread"]),
        node("Div", ["centred", "spread"], ["normed"]),
        node("MatMul", ["normed", "w"], ["y"]),
    ]
    return make(nodes, inputs, constants, ["y"]), inputs


def test_what_overflows_stays_in_float32_and_is_reported(make, emit):
    model, inputs = overflowing(make)
    done = emit(model, inputs, precision="fp16")
    kept = {line.split(" ")[1] for line in done.emitted.report["fp16_kept_in_fp32"]}
    assert {"squares", "variance", "shifted", "spread"} <= kept  # all that read or write a square
    assert "y" not in kept
    assert any("stay in float32" in note for note in done.emitted.notes)
    actual = done.run()["y"]
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, done.expected["y"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("scale", "islands"), [(30, 0), (300, 1)])
def test_squares_inside_one_operator_count_too(make, emit, scale, islands):
    """x = 4 * 300 fits float16, its square inside LayerNormalization does not."""
    inputs = {"x": np.clip(normal(2, 16), -2, 2) * 2 * scale}
    constants = {"g": normal(16), "b": normal(16), "half": np.float32(0.5)}
    nodes = [node("LayerNormalization", ["x", "g", "b"], ["n"]), node("Mul", ["n", "half"], ["y"])]
    done = emit(make(nodes, inputs, constants, ["y"]), inputs, precision="fp16")
    assert len(done.emitted.report["fp16_kept_in_fp32"]) == islands
    np.testing.assert_allclose(done.run()["y"], done.expected["y"], rtol=2e-2, atol=2e-2)


def test_squares_of_an_operator_that_is_written_out_count_too(make, emit):
    """RMSNormalization comes as products and a mean, whose values the scan sees as well."""
    inputs = {"x": np.clip(normal(2, 16), -2, 2) * 600}
    nodes = [node("RMSNormalization", ["x", "g"], ["n"]), node("Relu", ["n"], ["y"])]
    done = emit(make(nodes, inputs, {"g": normal(16)}, ["y"], 23), inputs, precision="fp16")
    assert done.emitted.report["fp16_kept_in_fp32"]
    np.testing.assert_allclose(done.run()["y"], done.expected["y"], rtol=2e-2, atol=2e-2)


def test_without_the_scan_the_same_model_would_be_wrong(make, emit):
    """The counterpart of the test above: no samples, no ranges, and float16 overflows."""
    model, inputs = overflowing(make)
    done = emit(model, inputs, precision="fp16")
    blind = EmitJob(**{**vars(done.job), "samples": (), "directory": done.job.directory / "blind"})
    emitted = EMITTERS["coreml"].emit(blind)
    assert any("no range scan" in note for note in emitted.notes)
    proof = EMITTERS["coreml"].prove(EmitJob(**{**vars(done.job), "directory": blind.directory}), emitted)
    assert np.abs(proof.outputs[0]["y"] - done.expected["y"]).max() > 0.1


def test_weights_are_halved_in_float16(make, emit):
    inputs = {"x": normal(1, 256)}
    model = make([node("MatMul", ["x", "w"], ["y"])], inputs, {"w": normal(256, 256)}, ["y"])
    full, half = emit(model, inputs), emit(model, inputs, precision="fp16")
    sizes = [(done.package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for done in (full, half)]
    assert sizes[0] >= 256 * 256 * 4
    assert 256 * 256 * 2 <= sizes[1] < sizes[0] * 0.51


# --- the proof -----------------------------------------------------------------------------------------------------------------------------


def test_the_proof_says_what_did_not_run(make, emit):
    done = emit(make([node("Relu", ["x"], ["y"])], {"x": normal(2)}, {}, ["y"]), {"x": normal(2)})
    proof = EMITTERS["coreml"].prove(done.job, done.emitted)
    assert proof.verified == "reference"
    assert "reference interpreter" in proof.engine
    assert proof.left_to_device
    assert any("Core ML itself did not run" in note for note in proof.notes)


def test_the_proof_reads_the_saved_package(make, emit):
    """A changed weight changes the proof's answer: nothing of the emitter's memory is used."""
    inputs = {"x": np.ones((1, 64), np.float32)}
    done = emit(make([node("MatMul", ["x", "w"], ["y"])], inputs, {"w": np.full((64, 64), 0.5, np.float32)}, ["y"]), inputs)
    np.testing.assert_allclose(done.run()["y"], 32.0)
    weights = done.package / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes().replace(np.float32(0.5).tobytes(), np.float32(0.25).tobytes()))
    np.testing.assert_allclose(done.run()["y"], 16.0)


# --- determinism ---------------------------------------------------------------------------------------------------------------------------


def test_two_builds_are_the_same_bytes(make, emit):
    inputs = {"x": normal(1, 3, 8, 8)}
    constants = {"w": normal(16, 3, 3, 3), "b": normal(16)}
    model = make([node("Conv", ["x", "w", "b"], ["c"]), node("HardSwish", ["c"], ["y"])], inputs, constants, ["y"])
    first, second = (package_bytes(emit(model, inputs, precision="fp16").package) for _ in range(2))
    assert first == second
    manifest = json.loads(first["Manifest.json"])
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]
    assert sorted(entry["path"] for entry in manifest["itemInfoEntries"].values()) == [
        "com.apple.CoreML/model.mlmodel",
        "com.apple.CoreML/weights",
    ]
    assert b"conversion_date" not in first["Data/com.apple.CoreML/model.mlmodel"]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import onnx
from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._emitter import EmitJob, NormalisedModel
from edgekit.converters.coreml import EMITTERS
from edgekit.device_profiles import EngineClaim
model = onnx.load(sys.argv[1])
spec = lambda v: TensorSpec(v.name, "float32", tuple(d.dim_value for d in v.type.tensor_type.shape.dim))
signature = Signature(tuple(map(spec, model.graph.input)), tuple(map(spec, model.graph.output)))
source = NormalisedModel(model, signature, 17, {}, (), True)
EMITTERS["coreml"].emit(EmitJob("m", source, None, EngineClaim("coreml"), "fp32", Path(sys.argv[2])))
"""


def test_another_process_writes_the_same_bytes(make, emit, tmp_path):
    inputs = {"x": normal(1, 3, 8, 8)}
    constants = {"w": normal(16, 3, 3, 3), "b": normal(16)}
    model = make([node("Conv", ["x", "w", "b"], ["c"]), node("HardSwish", ["c"], ["y"])], inputs, constants, ["y"])
    here = package_bytes(emit(model, inputs).package)
    onnx.save(model, tmp_path / "m.onnx")
    root = Path(__file__).resolve().parents[3]
    command = [
        sys.executable,
        "-W",
        "error::UserWarning:edgekit",
        "-c",
        SCRIPT,
        str(tmp_path / "m.onnx"),
        str(tmp_path / "there"),
        str(root),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "123"}, capture_output=True)
    there = package_bytes(tmp_path / "there" / "model.mlpackage")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in there.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in here.items()
    }


def test_without_weights_the_manifest_names_files_only(make, emit):
    """Bundles carry files: an empty weights folder would not survive the archive."""
    package = emit(make([node("Relu", ["x"], ["y"])], {"x": normal(2)}, {}, ["y"]), {"x": normal(2)}).package
    manifest = json.loads((package / "Manifest.json").read_text())
    paths = [package / "Data" / entry["path"] for entry in manifest["itemInfoEntries"].values()]
    assert paths
    assert all(path.is_file() for path in paths)
    assert all(any(folder.iterdir()) for folder in package.rglob("*") if folder.is_dir())


def test_nothing_is_left_in_the_temporary_folder(make, emit, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    done = emit(make([node("Relu", ["x"], ["y"])], {"x": normal(2)}, {}, ["y"]), {"x": normal(2)})
    assert done.package.is_dir()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_coremltools_accepts_the_package(make, emit):
    """Apple's own loader reads the specification and rebuilds the program from what was saved."""
    done = emit(make([node("MatMul", ["x", "w"], ["y"])], {"x": normal(1, 64)}, {"w": normal(64, 64)}, ["y"]), {"x": normal(1, 64)})
    from edgekit.converters.coreml._toolchain import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the framework that is missing on Linux
        model = load().ct.models.MLModel(str(done.package), skip_model_load=True)
    assert [feature.name for feature in model.get_spec().description.output] == ["y"]


# --- real models ---------------------------------------------------------------------------------------------------------------------------

# Largest error over the largest reference value; measured values lie three to ten times below.
REAL = {
    "ppocr-det": (2e-4, 0.2),
    "ppocr-rec": (5e-5, 0.05),
    "ppocr-cls": (1e-5, 0.02),
    "magika": (1e-5, 0.01),
    "silero-vad": (5e-5, 0.02),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", REAL)
def test_real_models(name, precision, real_model, tmp_path):
    from edgekit.converters._normalise import normalise
    from edgekit.converters._samples import golden_samples
    from edgekit.converters._source import load_source
    from examples.models import MODELS

    source = load_source(real_model(name))
    normalised = normalise(source, MODELS[name].shapes, static=True)
    samples = golden_samples(source, normalised.signature, None).samples[:2]
    job = EmitJob(name, normalised, None, EngineClaim("coreml", deployment_target="iOS17"), precision, tmp_path, samples)
    proof = EMITTERS["coreml"].prove(job, EMITTERS["coreml"].emit(job))
    limit = REAL[name][0 if precision == "fp32" else 1]
    for sample, outputs in zip(samples, proof.outputs, strict=True):
        for key, want in sample.outputs.items():
            assert outputs[key].dtype == want.dtype
            assert outputs[key].shape == want.shape
            assert np.abs(outputs[key] - want).max() <= limit * np.abs(want).max(), key
