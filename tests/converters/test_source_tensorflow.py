"""Keras files and SavedModels: names, order, shapes and numbers are the original's, on ONNX and through the vendors' own converters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.converters import _direct, build
from edgekit.converters._source import load_source
from edgekit.converters.sources import _tf_export
from edgekit.converters.sources._runnable import open_session
from edgekit.converters.sources._tensorflow import import_tensorflow, open_original, quiet_tensorflow
from edgekit.errors import BuildError, ModelError, UnknownNameError, UnsupportedOperatorsError, UsageError
from edgekit.runtime import load, verify_bundle

pytestmark = pytest.mark.slow
tf = import_tensorflow()

import keras  # noqa: E402 - after TensorFlow, which decides Keras' backend


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A picture network that returns a dict, a recurrent one, and SavedModels with one, two and no signatures."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = layers.Input((16, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    features = layers.GlobalAveragePooling2D(name="pool")(x)
    scores = layers.Dense(5, activation="softmax", name="top")(features)
    keras.Model(image, {"scores": scores, "features": features}).save(folder / "picture.keras")
    keras.Sequential([layers.Input((6, 4)), layers.LSTM(5, name="memory"), layers.Dense(3, name="answer")]).save(folder / "series.keras")
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    both = layers.Lambda(lambda pair: pair[0] - pair[1])([left, right])
    keras.Model([left, right], both).save(folder / "lambda.keras")
    difference = layers.Subtract(name="difference")([left, right])
    keras.Model([right, left], [difference, layers.Dense(2, name="more")(difference)]).save(folder / "pair.keras")
    _save(folder)
    return folder


def _save(folder: Path) -> None:
    class Module(tf.Module):
        def __init__(self) -> None:
            self.weight = tf.Variable(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def project(self, x):
            return {f"output_{index}": x @ self.weight * index for index in (2, 10)}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x"), tf.TensorSpec([], tf.float32, name="k")])
        def scale(self, x, k):
            return {"y": x * k}

        @tf.function(input_signature=[tf.TensorSpec([2], tf.string, name="words")])
        def words(self, words):
            return {"length": tf.strings.length(words)}

        @tf.function(input_signature=[tf.TensorSpec([4], tf.float32, name="x")])
        def odd(self, x):
            return {"y": tf.math.igamma(x, x)}

    module = Module()
    with quiet_tensorflow():
        tf.saved_model.save(module, folder / "one", signatures={"project": module.project})
        tf.saved_model.save(module, folder / "two", signatures={"project": module.project, "scale": module.scale})
        tf.saved_model.save(module, folder / "default", signatures={"serving_default": module.scale, "project": module.project})
        tf.saved_model.save(module, folder / "none")
        tf.saved_model.save(module, folder / "words", signatures={"words": module.words})
        tf.saved_model.save(module, folder / "odd", signatures={"odd": module.odd})


def agree(path: Path, kind: str, key: str = "", size: int = 3) -> None:
    """The ONNX form and the original on a batch that the export did not see."""
    source = load_source(path, signature=key)
    rng = np.random.default_rng(7)
    inputs = [
        np.asarray(rng.standard_normal([dim if isinstance(dim, int) else size for dim in spec.shape]), spec.dtype)
        for spec in source.signature.inputs
    ]
    wanted = open_original(path, kind, key).run(inputs)
    got = open_session(source.model).run(None, dict(zip([spec.name for spec in source.signature.inputs], inputs, strict=True)))
    assert len(wanted) == len(got)
    for want, have in zip(wanted, got, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)


def described(path: Path, **options: str) -> tuple[list[str], list[str]]:
    signature = load_source(path, **options).signature
    return tuple([f"{spec.name} {spec.describe()}" for spec in specs] for specs in (signature.inputs, signature.outputs))


def test_keras_signature_and_numbers(models):
    assert described(models / "picture.keras") == (
        ["image float32[batch,16,12,3]"],
        ["features float32[batch,8]", "scores float32[batch,5]"],
    )
    assert described(models / "series.keras")[1] == ["answer float32[batch,3]"]
    # In the order of the model's own lists, not of their names.
    assert described(models / "pair.keras") == (
        ["right float32[batch,4]", "left float32[batch,4]"],
        ["difference float32[batch,4]", "more float32[batch,2]"],
    )
    for name in ("picture", "series", "pair"):
        agree(models / f"{name}.keras", "keras")


def test_saved_model_signatures(models):
    assert described(models / "one") == (
        ["x float32[x_dim0,4]"],
        ["output_2 float32[output_2_dim0,3]", "output_10 float32[output_10_dim0,3]"],
    )
    assert described(models / "two", signature="scale")[0] == ["k float32[]", "x float32[x_dim0,4]"]
    assert described(models / "default")[1] == ["y float32[y_dim0,4]"]
    agree(models / "one", "saved-model")
    agree(models / "two", "saved-model", "scale")


def test_signature_that_must_be_chosen(models):
    with pytest.raises(UsageError, match="2 signatures: project, scale; expected one to build; give --signature project"):
        load_source(models / "two")
    with pytest.raises(UnknownNameError, match="scal"):
        load_source(models / "two", signature="scal")
    with pytest.raises(ModelError, match="it has no signature"):
        load_source(models / "none")
    with pytest.raises(UsageError, match="takes no --signature"):
        load_source(models / "picture.keras", signature="scale")


def test_what_cannot_be_read(models, tmp_path):
    with pytest.raises(ModelError, match=r"Lambda.*model\.export"):
        load_source(models / "lambda.keras")
    with pytest.raises(ModelError, match="'words' is a string"):
        load_source(models / "words")
    with pytest.raises(UnsupportedOperatorsError, match="TensorFlow's Igamma") as caught:
        load_source(models / "odd")
    assert "\n" not in str(caught.value)
    (tmp_path / "saved_model.pb").write_bytes(b"\x00nonsense")
    with pytest.raises(ModelError, match="TensorFlow cannot load it"):
        load_source(tmp_path)


def test_a_wrong_export_is_an_error(models, monkeypatch):
    """tf2onnx is made to lie: the comparison with TensorFlow must see it."""
    named = _tf_export._named

    def wrong(model, *rest):
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Softplus"
        return named(model, *rest)

    monkeypatch.setattr(_tf_export, "_named", wrong)
    with pytest.raises(BuildError, match="what tf2onnx wrote is another model: output 'features' differs"):
        load_source(models / "picture.keras")


def test_more_weights_than_protobuf_takes(models, monkeypatch):
    monkeypatch.setattr(_tf_export, "LARGE_BYTES", 100)
    with pytest.raises(ModelError, match="of weights; expected less than 2 GiB"):
        load_source(models / "series.keras")


def test_names_that_meet_inside_are_kept_apart(models):
    model = onnx.load_from_string(_tf_export.export_tensorflow(lambda _: None, str(models / "pair.keras"), "keras", "").model)
    onnx.checker.check_model(model, full_check=True)
    produced = [name for node in model.graph.node for name in node.output]
    assert len(produced) == len(set(produced))


@pytest.mark.parametrize("device", ["generic-arm64", "intel-nuc", "iphone-15"])
def test_vendors_converters_keep_the_signature(models, tmp_path, device):
    """The bundle answers by the original's names with the original's numbers, whatever the converter called its tensors."""
    bundle = build(models / "pair.keras", device=device, precision="fp32", output=tmp_path / "b.edgekit", isolate=False, cache=False)
    assert bundle.report()["emitter"]["path"] == "tensorflow"
    assert [spec.name for spec in bundle.signature.inputs] == ["right", "left"]
    assert [spec.name for spec in bundle.signature.outputs] == ["difference", "more"]
    if device == "iphone-15":
        assert bundle.manifest.verification.verified == "reference"
        return
    assert verify_bundle(tmp_path / "b.edgekit").ok
    right, left = np.float32([[1, 2, 3, 4]]), np.float32([[10, 20, 30, 40]])
    with load(tmp_path / "b.edgekit") as session:
        outputs = session.run({"right": right, "left": left})
    np.testing.assert_allclose(outputs["difference"], left - right)


def test_equal_builds_are_equal_bytes(models, tmp_path):
    for device in ("generic-arm64", "intel-nuc", "iphone-15"):
        digests = {
            build(models / "picture.keras", device=device, output=tmp_path / f"{turn}.edgekit", isolate=False, cache=False).digest
            for turn in range(2)
        }
        assert len(digests) == 1, device


# coremltools leaves the removal of its weights' folder to the garbage collector when a conversion fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_a_vendors_converter_fails_the_onnx_path_makes_the_artifact(models, tmp_path):
    """coremltools knows no rank-0 input."""
    bundle = build(models / "default", device="iphone-15", precision="fp32", output=tmp_path / "b.edgekit", isolate=False, cache=False)
    assert bundle.report()["emitter"]["path"] == "onnx"
    assert any("tried first, and" in note and "Rank-0" in note for note in bundle.manifest.verification.notes)


@pytest.mark.parametrize("device", ["generic-arm64", "intel-nuc"])
def test_a_recurrent_layer_is_an_operator_not_a_loop(models, tmp_path, device):
    bundle = build(models / "series.keras", device=device, precision="fp32", output=tmp_path / "b.edgekit", isolate=False, cache=False)
    assert bundle.report()["emitter"]["path"] == "onnx"
    assert any("loop(s) over steps" in note for note in bundle.manifest.verification.notes)


def test_where_a_vendors_converter_is_wrong_the_onnx_path_makes_the_artifact(models, tmp_path, monkeypatch):
    from edgekit.converters._direct import _openvino

    convert = _openvino.convert

    def swapped(job):
        emitted = convert(job)
        first, second = emitted.artifact.inputs
        crossed = (
            type(first)(first.name, second.native_name, first.native_dtype),
            type(first)(second.name, first.native_name, second.native_dtype),
        )
        return dataclasses.replace(emitted, artifact=type(emitted.artifact)(**{**_fields(emitted.artifact), "inputs": crossed}))

    monkeypatch.setattr(_openvino, "convert", swapped)
    bundle = build(models / "pair.keras", device="intel-nuc", precision="fp32", output=tmp_path / "b.edgekit", isolate=False, cache=False)
    assert bundle.report()["emitter"]["path"] == "onnx"
    assert any("its numbers are not the source model's" in note for note in bundle.manifest.verification.notes)


def _fields(struct) -> dict:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_direct_conversion_is_not_tried_without_the_same_original(models):
    class Job:
        precision = "fp32"
        quantization = None
        source = load_source(models / "one")

    assert _direct.is_direct("tflite", Job)
    assert not _direct.is_direct("onnxruntime", Job)
    Job.precision = "int8"
    assert not _direct.is_direct("tflite", Job)
    Job.precision, Job.source = "fp32", dataclasses.replace(Job.source, native=None)
    assert not _direct.is_direct("tflite", Job)
