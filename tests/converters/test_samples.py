from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._samples import MAX_GOLDEN_BYTES, MAX_SAMPLES, calibration_inputs, golden_samples, synthetic_inputs
from edgekit.converters._source import load_source
from edgekit.errors import ModelError, ShapeRequiredError, UsageError

IMAGE = Signature((TensorSpec("image", "float32", (1, 3, 8, 12)),), ())
GREY = Signature((TensorSpec("image", "float32", (1, 1, 8, 12)),), ())
IDS = Signature((TensorSpec("ids", "int64", ("N", 4)),), ())
TWO = Signature((TensorSpec("a", "float32", (1, 2)), TensorSpec("b", "int32", (1, 3))), ())


@given(st.integers(0, 5), st.integers(1, 4), st.sampled_from([1, 2, 8, 256]))
def test_synthetic_inputs_are_seeded_and_in_range(index: int, batch: int, end: int) -> None:
    signature = Signature(
        (
            TensorSpec("f", "float32", ("N", 5)),
            TensorSpec("h", "float16", (2, 2)),
            TensorSpec("i", "int64", ("N", 7)),
            TensorSpec("u", "int8", (9,)),
            TensorSpec("b", "bool", ()),
        ),
        (),
    )
    first, again = synthetic_inputs(signature, index, batch, end), synthetic_inputs(signature, index, batch, end)
    for spec in signature.inputs:
        array = first[spec.name]
        np.testing.assert_array_equal(array, again[spec.name])
        assert array.dtype.name == spec.dtype
        assert array.shape == tuple(batch if dim == "N" else dim for dim in spec.shape)
        if array.dtype.kind == "f":
            assert np.abs(array).max() <= 3
        if array.dtype.kind == "i":
            assert array.min() >= 0
            assert array.max() < end
    assert not np.array_equal(first["f"], synthetic_inputs(signature, index + 1, batch, end)["f"])


def test_golden_samples_hold_the_source_model_s_answers(tiny_mlp: Path) -> None:
    import onnxruntime

    source = load_source(tiny_mlp)
    found = golden_samples(source, source.signature, None)
    assert found.source == "synthetic"
    assert [sample.inputs["x"].shape for sample in found.samples] == [(1, 8), (2, 8), (1, 8)]
    session = onnxruntime.InferenceSession(str(tiny_mlp), providers=["CPUExecutionProvider"])
    for sample in found.samples:
        np.testing.assert_allclose(sample.outputs["probabilities"], session.run(None, sample.inputs)[0], rtol=1e-5)


def test_an_open_size_needs_a_shape_or_arrays(tmp_path: Path) -> None:
    source = load_source(_identity(tmp_path, ["N", 3, "H", "W"]))
    with pytest.raises(ShapeRequiredError, match=r"--shape x=1,3,\?,\?"):
        golden_samples(source, source.signature, None)
    np.save(tmp_path / "one.npy", np.zeros((1, 3, 5, 6), np.float32))
    found = golden_samples(source, source.signature, tmp_path / "one.npy")
    assert found.source == "calibration"
    assert found.samples[0].outputs["y"].shape == (1, 3, 5, 6)
    assert found.notes == ("only 1 calibration sample(s)",)


def test_a_table_smaller_than_256_gets_smaller_indices(tmp_path: Path) -> None:
    source = load_source(_lookup(tmp_path, rows=5))
    for sample in golden_samples(source, source.signature, None).samples:
        assert sample.inputs["ids"].max() < 5


def test_a_model_that_takes_no_sample_says_so(tmp_path: Path) -> None:
    source = load_source(_identity(tmp_path, ["N", 4], broken=True))
    with pytest.raises(ModelError, match="ONNX Runtime cannot run it on x float32"):
        golden_samples(source, source.signature, None)


def test_pictures_become_scaled_planes(tmp_path: Path) -> None:
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 255, 51  # red full, green a fifth
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).resize((50, 40)).save(tmp_path / "b.jpg")
    first, second = calibration_inputs(tmp_path, IMAGE)
    assert first["image"].dtype == np.float32
    np.testing.assert_allclose(first["image"][0, :, 3, 4], [1.0, -0.6, -1.0], atol=1e-6)
    assert second["image"].shape == (1, 3, 8, 12)
    np.testing.assert_allclose(second["image"], 1.0, atol=0.02)
    assert calibration_inputs(tmp_path, GREY)[0]["image"].shape == (1, 1, 8, 12)


def test_pictures_fill_a_fixed_batch(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (12, 8), (index * 100, 0, 0)).save(tmp_path / f"{index}.png")
    batch = Signature((TensorSpec("image", "float32", (4, 3, 8, 12)),), ())
    (sample,) = calibration_inputs(tmp_path, batch)
    reds = sample["image"][:, 0, 0, 0]
    np.testing.assert_allclose(reds, np.array([0, 100, 200, 0]) / 127.5 - 1, atol=1e-6)


def test_arrays_of_one_input_and_of_several(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.arange(4, dtype=np.int32).reshape(1, 4))
    (sample,) = calibration_inputs(tmp_path, IDS)
    assert sample["ids"].dtype == np.int64
    np.savez(tmp_path / "two.npz", a=np.ones((1, 2)), b=np.ones((1, 3), np.int64), other=np.ones(1))
    (sample,) = calibration_inputs(tmp_path / "two.npz", TWO)
    assert {name: array.dtype.name for name, array in sample.items()} == {"a": "float32", "b": "int32"}


def test_many_samples_are_thinned_evenly(tmp_path: Path) -> None:
    for index in range(40):
        np.save(tmp_path / f"{index:02}.npy", np.full((1, 4), index))
    values = [int(sample["ids"][0, 0]) for sample in calibration_inputs(tmp_path, IDS)]
    assert values == [index * 5 for index in range(MAX_SAMPLES)]


def test_large_samples_are_fewer(tmp_path: Path) -> None:
    wide = MAX_GOLDEN_BYTES // 4 // 4
    for index in range(5):
        np.save(tmp_path / f"{index}.npy", np.full((1, wide), index, np.float32))
    assert len(calibration_inputs(tmp_path, Signature((TensorSpec("x", "float32", (1, wide)),), ()))) == 3


def _bad(folder: Path, case: str) -> Signature:
    signature = IDS
    match case:
        case "empty folder":
            return IMAGE
        case "no such path":
            folder.rmdir()
        case "other files":
            (folder / "notes.txt").write_text("x")
            (folder / "data.csv").write_text("x")
        case "pictures for token ids":
            Image.new("RGB", (4, 4)).save(folder / "a.png")
        case "several kinds":
            Image.new("RGB", (4, 4)).save(folder / "a.png")
            np.save(folder / "b.npy", np.zeros((1, 3, 8, 12), np.float32))
            return IMAGE
        case "broken picture":
            (folder / "a.png").write_bytes(b"no picture")
            return IMAGE
        case "broken array":
            (folder / "a.npy").write_bytes(b"\x93NUMPY no array")
        case "pickled array":
            np.save(folder / "a.npy", np.array([{"a": 1}]), allow_pickle=True)
        case "wrong shape":
            np.save(folder / "a.npy", np.zeros((1, 5), np.int64))
        case "floats for integers":
            np.save(folder / "a.npy", np.zeros((1, 4)))
        case "integer too wide":
            np.savez(folder / "a.npz", a=np.ones((1, 2)), b=np.full((1, 3), 2**40))
            return TWO
        case "missing name":
            np.savez(folder / "a.npz", a=np.ones((1, 2)))
            return TWO
        case "arrays without names for two inputs":
            np.save(folder / "a.npy", np.ones((1, 2), np.float32))
            return TWO
    return signature


BAD = {
    "empty folder": "no files; expected .npz files with image float32[1,3,8,12] or .npy files",
    "no such path": "no such file or directory",
    "other files": "2 file(s) (.csv, .txt), none usable; expected .npz files with ids int64[N,4] or .npy files with int64[N,4]",
    "pictures for token ids": "1 file(s) (.png), none usable",
    "several kinds": "several kinds (.npy, .png)",
    "broken picture": "a.png: not a readable picture",
    "broken array": "a.npy: cannot be read",
    "pickled array": "a.npy: cannot be read",
    "wrong shape": "shape [1,5]; expected int64[N,4]",
    "floats for integers": "dtype float64; expected int64[N,4]",
    "integer too wide": "dtype int64; expected int32[1,3]",
    "missing name": "no array b (it has a)",
    "arrays without names for two inputs": "1 file(s) (.npy), none usable; expected .npz files with a float32[1,2], b int32[1,3]",
}


@pytest.mark.parametrize("case", BAD)
def test_a_calibration_folder_without_a_usable_sample_says_what_would_be(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    signature = _bad(folder, case)
    with pytest.raises(UsageError) as caught:
        calibration_inputs(folder, signature)
    assert BAD[case] in str(caught.value)
    assert "\n" not in str(caught.value)


def _identity(folder: Path, shape: list[int | str], *, broken: bool = False) -> Path:
    """``y = x``; the broken one reshapes to a size that never fits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Reshape", ["x", "target"], ["y"])] if broken else [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 7] if broken else shape)],
        [numpy_helper.from_array(np.array([7, 7], np.int64), "target")] if broken else [],
    )
    path = folder / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def _lookup(folder: Path, rows: int) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 2])],
        [numpy_helper.from_array(np.ones((rows, 2), np.float32), "table")],
    )
    path = folder / "lookup.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path
