"""Pruned and palettised weights: what the values become, what the files hold, and where nothing is gained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgekit.bundle import GoldenSample
from edgekit.converters import build
from edgekit.converters._emitter import EmitJob
from edgekit.converters._emitters import emitter_for
from edgekit.converters.quantization import calibrate, compress, parse_compression
from edgekit.device_profiles import load_profile
from edgekit.errors import UsageError, VerificationError

from .models import model, normalised, run, samples


def wide(seed=0):
    """Two products with 4,096 and 640 weights, most of them small, as trained ones are."""
    rng = np.random.default_rng(seed)
    tensors = {"w": (rng.standard_normal((64, 64)) ** 5).astype(np.float32), "v": (rng.standard_normal((64, 10)) ** 5).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
    ]
    return model(nodes, {"x": (1, 1, 64)}, {"y": (1, 1, 10)}, tensors)


@given(st.integers(1, 99), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_pruning_takes_the_smallest_share(percent, seed):
    values = np.random.default_rng(seed).standard_normal((7, 13)).astype(np.float32)
    pruned = parse_compression(f"prune={percent / 100}").apply(values)
    gone = pruned == 0
    assert np.count_nonzero(gone) == int(values.size * (percent / 100))
    assert np.array_equal(pruned[~gone], values[~gone])
    if gone.any() and not gone.all():
        assert np.abs(values[gone]).max() <= np.abs(values[~gone]).min()


@given(st.sampled_from([(1, 4), (2, 4), (4, 8)]), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_a_pattern_keeps_n_of_each_m(pattern, seed):
    kept, group = pattern
    values = np.random.default_rng(seed).standard_normal((5, 3 * group + 1)).astype(np.float32)
    patterned = parse_compression(f"{kept}:{group}").apply(values)
    parts = patterned[:, : 3 * group].reshape(5, 3, group)
    assert np.all(np.count_nonzero(parts, axis=-1) == kept)
    assert np.array_equal(patterned[:, -1], values[:, -1])
    best = np.sort(np.abs(values[:, : 3 * group].reshape(5, 3, group)), axis=-1)[..., -kept:]
    assert np.allclose(np.sort(np.abs(parts), axis=-1)[..., -kept:], best)


@given(st.sampled_from([1, 2, 4, 6, 8]), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_a_palette_is_small_and_near(bits, seed):
    values = np.random.default_rng(seed).standard_normal(3000).astype(np.float32)
    found = parse_compression(f"palette={bits}").apply(values)
    table = np.unique(found)
    assert table.size <= 2**bits
    assert np.all(np.abs(found - values) <= np.abs(table[:, None] - values).min(axis=0) + 1e-6)
    # k-means beats an even grid over the range with as many values.
    grid = np.linspace(values.min(), values.max(), 2**bits)
    even = grid[np.abs(grid[:, None] - values).argmin(axis=0)]
    assert np.mean((found - values) ** 2) < np.mean((even - values) ** 2)


@pytest.mark.parametrize("text", ["prune=0", "prune=1", "prune=x", "palette=3", "palette=", "4:2", "0:4", "2:64", "zip", ""])
def test_what_cannot_be_is_one_line(text):
    with pytest.raises(UsageError, match="--compress"):
        parse_compression(text)


def written(wanted, device, precision, folder, target=0.9):
    proto = wide()
    source, profile = normalised(proto), load_profile(device)
    inputs = samples(proto, 16)
    quantization = compress(source, calibrate(source, inputs), parse_compression(wanted), target)
    golden = [GoldenSample(each, answer) for each, answer in zip(inputs[:4], run(proto, inputs[:4]), strict=True)]
    job = EmitJob("test", source, profile, profile.engine, precision, folder, golden, quantization)
    emitter = emitter_for(profile.engine.name)
    emitted = emitter.emit(job)
    compressed = run(quantization.model.model, inputs[:4])
    for want, got in zip(compressed, emitter.prove(job, emitted).outputs, strict=True):
        assert np.allclose(want["y"], got["y"], atol=2e-2 * np.abs(want["y"]).max())
    return emitted, quantization


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "operator"),
    [("palette=6", "constexpr_lut_to_dense"), ("prune=0.5", "constexpr_sparse_to_dense"), ("2:4", "constexpr_sparse_to_dense")],
)
def test_core_ml_stores_them_smaller(wanted, operator, tmp_path):
    (tmp_path / "a").mkdir()
    emitted, quantization = written(wanted, "iphone-15", "fp16", tmp_path / "a")
    assert emitted.report["operators"][operator] == 2
    dense = 2 * (64 * 64 + 64 * 10)
    weights = (tmp_path / "a/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert weights < 0.75 * dense
    assert quantization.report["compression"] == wanted


def test_tflite_leaves_zeros_out(tmp_path):
    (tmp_path / "a").mkdir()
    written("prune=0.8", "raspberry-pi-5", "fp32", tmp_path / "a")
    assert (tmp_path / "a/model.tflite").stat().st_size < 0.6 * 4 * (64 * 64 + 64 * 10)


def test_layers_that_the_target_needs_stay(tmp_path):
    proto = wide()
    source, inputs = normalised(proto), samples(proto, 40)
    calibrated = calibrate(source, inputs)
    with pytest.raises(VerificationError, match="holds only with no layer compressed"):
        compress(source, calibrated, parse_compression("palette=1"), 1.0)


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("generic-x86", "auto", "onnxruntime stores such weights no smaller"),
        ("raspberry-pi-5", "fp32", "tflite stores such weights no smaller"),
        ("iphone-16", "int8", "with --precision int8"),
    ],
)
def test_it_is_refused_where_it_gains_nothing(device, precision, message, tmp_path):
    import onnx

    onnx.save(wide(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", samples(wide(), 1)[0]["x"])
    with pytest.raises(UsageError, match=message):
        build(
            tmp_path / "m.onnx",
            device=device,
            precision=precision,
            compress="palette=4",
            calibration=tmp_path / "x.npy",
            output=tmp_path / "b",
            cache=False,
            isolate=False,
        )
