"""The emitter on real models: numbers, structure, names, bytes; and what stands between it and the runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import GoldenSample
from edgekit.converters._emitter import EmitJob
from edgekit.converters._emitters import emitter_for
from edgekit.converters._normalise import normalise
from edgekit.converters._source import SourceModel, load_source
from edgekit.converters.tflite import _emit as emit_module
from edgekit.converters.tflite import tflite_from_graph
from edgekit.device_profiles import load_profile
from edgekit.errors import BuildError

pytestmark = pytest.mark.slow

SHAPES = {"ppocr-det": {"x": (1, 3, 480, 640)}, "ppocr-rec": {"x": (1, 3, 48, 320)}, "ppocr-cls": {"x": (1, 3, 48, 192)}}


def samples(source: SourceModel, shapes: dict[str, tuple[int, ...]], count: int = 2) -> list[GoldenSample]:
    """Seeded inputs and the answers of the source file itself through ONNX Runtime."""
    session = onnxruntime.InferenceSession(source.path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    made = []
    for _ in range(count):
        inputs = {}
        for spec in source.signature.inputs:
            shape = shapes.get(spec.name) or tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)
            if spec.dtype == "int32":  # Magika: bytes, and 256 for "no byte here"
                inputs[spec.name] = random.integers(0, 257, shape).astype(np.int32)
            else:
                inputs[spec.name] = (random.standard_normal(shape) * 0.5).astype(spec.dtype)
        names = [spec.name for spec in source.signature.outputs]
        made.append(GoldenSample(inputs, dict(zip(names, session.run(names, inputs), strict=True))))
    return made


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., EmitJob]:
    def make(path: Path, shapes: dict[str, tuple[int, ...]], precision: str = "fp32") -> EmitJob:
        source = load_source(path)
        profile = load_profile("raspberry-pi-5")
        claim = next(each for each in profile.engines if each.name == "tflite")
        folder = tmp_path / precision
        folder.mkdir(exist_ok=True)
        return EmitJob("m", normalise(source, shapes, static=True), profile, claim, precision, folder, samples(source, shapes))

    return make


def worst(job: EmitJob, outputs) -> float:
    return max(
        float(np.max(np.abs(sample.outputs[name] - got[name])))
        for sample, got in zip(job.samples, outputs, strict=True)
        for name in sample.outputs
    )


# Fewest transposes: an image comes and goes channels-last, so a convolutional net has none; the recogniser's two attention layers split
# heads, which takes four each.
@pytest.mark.parametrize(("name", "transposes"), [("ppocr-det", 0), ("ppocr-rec", 8), ("ppocr-cls", 0), ("magika", 0), ("silero-vad", 0)])
def test_real_models(real_model, job, name, transposes):
    emitter = emitter_for("tflite")
    work = job(real_model(name), SHAPES.get(name, {}))
    emitted = emitter.emit(work)
    proof = emitter.prove(work, emitted)
    assert proof.verified == "host"
    assert proof.engine.startswith("tflite ")
    assert worst(work, proof.outputs) <= 1e-4
    for sample, got in zip(work.samples, proof.outputs, strict=True):
        assert {key: (value.shape, value.dtype) for key, value in got.items()} == {
            key: (value.shape, value.dtype) for key, value in sample.outputs.items()
        }
    operators = emitted.report["operators"]
    assert isinstance(operators, dict)
    assert operators.get("TRANSPOSE", 0) == transposes
    assert not [operator for operator in operators if operator in ("CUSTOM", "UNKNOWN") or operator.startswith("FLEX")]


def test_hard_swish_is_one_operator(real_model, job):
    operators = emitter_for("tflite").emit(job(real_model("ppocr-cls"), SHAPES["ppocr-cls"])).report["operators"]
    assert isinstance(operators, dict)
    assert operators["HARD_SWISH"] == 18


def test_float16_halves_the_file_and_stays_close(real_model, job):
    emitter, path = emitter_for("tflite"), real_model("ppocr-cls")
    full, half = (job(path, SHAPES["ppocr-cls"], precision) for precision in ("fp32", "fp16"))
    sizes = [(work.directory / emitter.emit(work).artifact.path).stat().st_size for work in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    emitted = emitter.emit(half)
    assert emitted.artifact.precision == "fp16"
    assert 0 < worst(half, emitter.prove(half, emitted).outputs) < 5e-3  # outputs are probabilities


def test_same_input_same_bytes_whatever_was_converted_before(real_model):
    first, other = (
        normalise(load_source(real_model(name)), SHAPES.get(name, {}), static=True).graph() for name in ("ppocr-cls", "silero-vad")
    )
    before = tflite_from_graph(first)[0]
    tflite_from_graph(other, "fp16")
    assert tflite_from_graph(first)[0] == before


def test_bindings_say_where_the_image_lies(real_model, job):
    artifact = emitter_for("tflite").emit(job(real_model("ppocr-cls"), SHAPES["ppocr-cls"])).artifact
    (image,), (scores,) = artifact.inputs, artifact.outputs
    assert (image.name, image.native_name, image.perm) == ("x", "x", (0, 2, 3, 1))
    assert (scores.native_name, scores.perm) == ("save_infer_model_scale_0_tmp_1", None)


# --- interfaces that are easy to break -------------------------------------------------------------------------------------------------------


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "constants"),
    [
        pytest.param([("Relu", "a", "y")], [("a", [2, 3]), ("idle", [4])], [("y", [2, 3])], {}, id="unused input"),
        pytest.param(
            [("Identity", "a", "y/1:0"), ("Relu", "a", "1z")], [("a", [2, 3])], [("y/1:0", [2, 3]), ("1z", [2, 3])], {}, id="odd names"
        ),
        pytest.param(
            [("Relu", "a", "y"), ("Identity", "c", "k")], [("a", [2])], [("y", [2]), ("k", [2])], {"c": np.ones(2)}, id="constant"
        ),
        pytest.param(
            [("Relu", "self", "y"), ("Exp", "y", "class")], [("self", []), ("lambda", [2])], [("y", []), ("class", [])], {}, id="keywords"
        ),
        pytest.param(
            [("Relu", "a", "a_y"), ("Exp", "a_y", "a.y")], [("a", [1, 2])], [("a_y", [1, 2]), ("a.y", [1, 2])], {}, id="same plain name"
        ),
        pytest.param(
            [("GlobalMaxPool", "a", "y"), ("Relu", "a", "z")],
            [("a", [1, 2, 3, 4])],
            [("y", [1, 2, 1, 1]), ("z", [1, 2, 3, 4])],
            {},
            id="image out",
        ),
    ],
)
def test_interfaces(tmp_path, graph_of, run_tflite, run_onnx, nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        [helper.make_node(op, [source], [target]) for op, source, target in nodes],
        "g",
        [value(name, shape) for name, shape in inputs],
        [value(name, shape) for name, shape in outputs],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    random = np.random.default_rng(3)
    arrays = {name: np.asarray(random.standard_normal(shape), np.float32) for name, shape in inputs}
    got, _ = run_tflite(graph_of(model), arrays)
    for (name, _), want in zip(outputs, run_onnx(model, arrays), strict=True):
        assert got[name].shape == want.shape
        assert np.allclose(got[name], want, atol=1e-6)


def test_a_failing_converter_gives_one_line(graph_of, monkeypatch):
    import tensorflow as tf

    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", [2])], [value("y", [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def fail(self) -> bytes:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(
        tf.lite.TFLiteConverter,
        "from_concrete_functions",
        lambda *_: type("Broken", (), {"convert": fail, "target_spec": type("S", (), {})()})(),
    )
    with pytest.raises(BuildError) as caught:
        tflite_from_graph(graph_of(model))
    assert "first line second line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_its_names_is_refused(graph_of):
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", [2])], [value("y", [2])])
    data, _, _ = tflite_from_graph(graph_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    emit_module._check_signature(data, {"x", "y"})
    with pytest.raises(BuildError, match="no signature name for z"):
        emit_module._check_signature(data, {"x", "z"})


def test_conversion_prints_nothing(graph_of, capfd):
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", [2])], [value("y", [2])])
    tflite_from_graph(graph_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    assert capfd.readouterr() == ("", "")
