"""Every op once in a package that coremltools wrote: the names of its inputs and the types that it infers are Apple's, not ours."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest

from edgekit.converters.coreml_reference import Interpreter, run_package, supported_ops

pytestmark = pytest.mark.slow  # importing the builder costs seconds

F, I = np.float32, np.int32  # noqa: E741 - an integer type
X = np.linspace(-2, 2, 2 * 4 * 6 * 8, dtype=F).reshape(2, 4, 6, 8)
M = np.linspace(0.1, 1, 24, dtype=F).reshape(4, 6)
N = np.arange(24, dtype=I).reshape(4, 6)
KERNEL = np.linspace(-1, 1, 8 * 2 * 9, dtype=F).reshape(8, 2, 3, 3)
VECTOR = np.linspace(0.5, 1.5, 4, dtype=F)
SEQUENCE = np.linspace(-1, 1, 5 * 2 * 3, dtype=F).reshape(5, 2, 3)
STATE = np.zeros((2, 4), F)


def weights(rows, columns):
    return np.linspace(-0.5, 0.5, rows * columns, dtype=F).reshape(rows, columns)


# Ops of one input of any values, of positive values, of two inputs, …
PLAIN = [
    *(
        "abs",
        "atan",
        "ceil",
        "cos",
        "cosh",
        "erf",
        "exp",
        "exp2",
        "floor",
        "identity",
        "round",
        "sign",
        "sin",
        "sinh",
        "square",
        "tan",
        "tanh",
    ),
    *("relu", "relu6", "sigmoid", "silu", "softplus", "softsign", "softmax", "gelu", "inverse", "l2_norm", "reverse", "shape"),
    *("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square"),
    *(
        "reduce_log_sum_exp",
        "reduce_argmax",
        "reduce_argmin",
        "argsort",
        "topk",
        "cumsum",
        "band_part",
        "flatten2d",
        "instance_norm",
    ),
]
POSITIVE = ["acos", "asin", "sqrt", "log", "rsqrt", "reduce_log_sum", "atanh"]
BINARY = ["add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
LOGIC = ["logical_and", "logical_or", "logical_xor"]
ALPHA = ["leaky_relu", "elu", "threshold", "thresholded_relu"]
ALPHA_BETA = ["clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard", "clip"]


def as_number(mb, value):
    return mb.cast(x=value, dtype="int32")


SPECIAL = {
    "cast": lambda mb, x: mb.cast(x=x, dtype="fp16"),
    "logical_not": lambda mb, x: as_number(mb, mb.logical_not(x=mb.greater(x=x, y=F(0)))),
    "select": lambda mb, x: mb.select(cond=mb.greater(x=x, y=F(0)), a=x, b=mb.mul(x=x, y=F(-1))),
    "prelu": lambda mb, x: mb.prelu(x=x, alpha=VECTOR),
    "softplus_parametric": lambda mb, x: mb.softplus_parametric(x=x, alpha=VECTOR, beta=VECTOR),
    "conv": lambda mb, x: mb.conv(x=x, weight=KERNEL, groups=2, strides=[2, 1], pad_type="custom", pad=[1, 1, 0, 1], bias=np.ones(8, F)),
    "conv_transpose": lambda mb, x: mb.conv_transpose(
        x=x, weight=KERNEL[:4], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], groups=1
    ),
    "linear": lambda mb, x: mb.linear(
        x=mb.squeeze(x=mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 4, 6, 8]), axes=[0]), weight=weights(5, 8)
    ),
    "matmul": lambda mb, x: mb.matmul(x=x, y=x, transpose_y=True),
    "einsum": lambda mb, x: mb.einsum(values=(x, mb.transpose(x=x, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"),
    "batch_norm": lambda mb, x: mb.batch_norm(x=x, mean=VECTOR, variance=VECTOR, gamma=VECTOR, beta=VECTOR),
    "layer_norm": lambda mb, x: mb.layer_norm(x=x, axes=[-1], epsilon=F(1e-3)),
    "local_response_norm": lambda mb, x: mb.local_response_norm(x=x, size=3),
    "max_pool": lambda mb, x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same"),
    "avg_pool": lambda mb, x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
    "l2_pool": lambda mb, x: mb.l2_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"),
    "concat": lambda mb, x: mb.concat(values=[x, mb.abs(x=x)], axis=1),
    "stack": lambda mb, x: mb.stack(values=[x, x], axis=-1),
    "split": lambda mb, x: mb.split(x=x, split_sizes=[1, 3], axis=1),
    "slice_by_index": lambda mb, x: mb.slice_by_index(
        x=x,
        begin=[0, 1, 0, 0],
        end=[0, 0, 5, 0],
        stride=[1, 1, 2, 1],
        end_mask=[True, False, False, True],
        squeeze_mask=[False, True, False, False],
    ),
    "slice_by_size": lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 0, 0], size=[2, 2, -1, 3]),
    "sliding_windows": lambda mb, x: mb.sliding_windows(x=x, axis=2, size=3, stride=2),
    "reshape": lambda mb, x: mb.reshape(x=x, shape=[2, -1]),
    "reshape_like": lambda mb, x: mb.reshape_like(x=x, ref_tensors=(x, x), begins=(0, 2), ends=(2, 4), end_masks=(False, False)),
    "transpose": lambda mb, x: mb.transpose(x=x, perm=[0, 2, 3, 1]),
    "expand_dims": lambda mb, x: mb.expand_dims(x=x, axes=[0]),
    "squeeze": lambda mb, x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0]), axes=[0]),
    "reverse_sequence": lambda mb, x: mb.reverse_sequence(x=x, lengths=[2, 3], seq_axis=1, batch_axis=0),
    "pad": lambda mb, x: mb.pad(x=x, pad=[1, 2], mode="reflect"),
    "tile": lambda mb, x: mb.tile(x=x, reps=[1, 2, 1, 1]),
    "crop": lambda mb, x: mb.crop(x=x, crop_height=[1, 0], crop_width=[0, 2]),
    "depth_to_space": lambda mb, x: mb.depth_to_space(x=x, block_size=2),
    "space_to_depth": lambda mb, x: mb.space_to_depth(x=x, block_size=2),
    "pixel_shuffle": lambda mb, x: mb.pixel_shuffle(x=x, upscale_factor=2),
    "pixel_unshuffle": lambda mb, x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
    "space_to_batch": lambda mb, x: mb.space_to_batch(x=x, block_shape=[2, 2], paddings=[[0, 0], [1, 1]]),
    "batch_to_space": lambda mb, x: mb.batch_to_space(x=x, block_shape=[1, 2], crops=[[0, 0], [1, 0]]),
    "fill": lambda mb, x: mb.add(x=x, y=mb.fill(shape=[8], value=F(2))),
    "fill_like": lambda mb, x: mb.fill_like(ref_tensor=x, value=F(2)),
    "one_hot": lambda mb, x: mb.one_hot(indices=mb.reduce_argmax(x=x, axis=1), one_hot_vector_size=4, on_value=F(1), off_value=F(0)),
    "non_zero": lambda mb, x: mb.slice_by_size(x=mb.non_zero(x=mb.relu(x=x)), begin=[0, 0], size=[3, 4]),
    "gather": lambda mb, x: mb.gather(x=x, indices=np.array([3, 0], I), axis=1),
    "gather_along_axis": lambda mb, x: mb.gather_along_axis(x=x, indices=np.zeros((2, 1, 6, 8), I), axis=1),
    "gather_nd": lambda mb, x: mb.gather_nd(x=x, indices=np.array([[1, 3], [0, 2]], I)),
    "scatter": lambda mb, x: mb.scatter(data=x, indices=np.array([1], I), updates=np.ones((2, 1, 6, 8), F), axis=1, mode="update"),
    "scatter_along_axis": lambda mb, x: mb.scatter_along_axis(
        data=x, indices=np.ones((2, 1, 6, 8), I), updates=np.ones((2, 1, 6, 8), F), axis=1, mode="update"
    ),
    "scatter_nd": lambda mb, x: mb.scatter_nd(data=x, indices=np.array([[1, 3]], I), updates=np.ones((1, 6, 8), F), mode="update"),
    "upsample_nearest_neighbor": lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
    "upsample_bilinear": lambda mb, x: mb.upsample_bilinear(x=x, scale_factor_height=2.0, scale_factor_width=1.5, align_corners=False),
    "resize_nearest_neighbor": lambda mb, x: mb.resize_nearest_neighbor(x=x, target_size_height=9, target_size_width=4),
    "resize_bilinear": lambda mb, x: mb.resize_bilinear(x=x, target_size_height=9, target_size_width=4, sampling_mode="UNALIGN_CORNERS"),
    "resize": lambda mb, x: mb.resize(x=x, shape=[9, 4], resized_dims=np.uint32(2), sampling_mode="ALIGN_CORNERS"),
    "quantize": lambda mb, x: mb.dequantize(input=mb.quantize(input=x, scale=F(0.1), output_dtype="int8"), scale=F(0.1)),
    "dequantize": lambda mb, x: mb.dequantize(
        input=mb.quantize(input=x, scale=VECTOR, zero_point=np.zeros(4, np.uint8), output_dtype="uint8", axis=1), scale=VECTOR, axis=1
    ),
    "constexpr_affine_dequantize": lambda mb, x: mb.add(
        x=x, y=mb.constexpr_affine_dequantize(quantized_data=np.arange(8, dtype=np.int8), zero_point=np.int8(1), scale=F(0.5), axis=0)
    ),
    "constexpr_cast": lambda mb, x: mb.add(x=x, y=mb.constexpr_cast(source_val=np.arange(8, dtype=np.float16), output_dtype="fp32")),
    "constexpr_lut_to_dense": lambda mb, x: mb.add(
        x=x, y=mb.constexpr_lut_to_dense(indices=np.array([27, 228], np.uint8), lut=VECTOR, shape=np.array([8], np.uint32))
    ),
    "constexpr_sparse_to_dense": lambda mb, x: mb.add(
        x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=VECTOR, mask=np.array([0b10101010], np.uint8), shape=np.array([8], np.uint32))
    ),
    "lstm": lambda mb, x: mb.lstm(
        x=mb.add(x=SEQUENCE, y=mb.reduce_mean(x=x)),
        initial_h=STATE,
        initial_c=STATE,
        weight_ih=weights(16, 3),
        weight_hh=weights(16, 4),
        output_sequence=True,
    ),
    "gru": lambda mb, x: mb.gru(
        x=mb.add(x=SEQUENCE, y=mb.reduce_mean(x=x)),
        initial_h=STATE,
        weight_ih=weights(12, 3),
        weight_hh=weights(12, 4),
        direction="reverse",
    ),
    "rnn": lambda mb, x: mb.rnn(
        x=mb.add(x=SEQUENCE, y=mb.reduce_mean(x=x)), initial_h=STATE, weight_ih=weights(4, 3), weight_hh=weights(4, 4)
    ),
    "range_1d": lambda mb, x: mb.range_1d(start=F(0), end=F(2), step=F(0.5)),
}
# Ops and forms that need iOS 18.
LATER = {
    "slice_update": lambda mb, x: mb.slice_update(x=x, update=np.ones((2, 1, 6, 8), F), begin=[0, 1, 0, 0], end=[2, 2, 6, 8]),
    "scaled_dot_product_attention": lambda mb, x: mb.scaled_dot_product_attention(query=x, key=x, value=mb.tanh(x=x)),
    "constexpr_blockwise_shift_scale": lambda mb, x: mb.add(
        x=x,
        y=mb.reshape(
            x=mb.constexpr_blockwise_shift_scale(data=np.arange(-8, 8, dtype=np.int8).reshape(2, 8), scale=M[:2, :4]), shape=[2, 1, 1, 8]
        ),
    ),
}


def cases():
    """Op name to ``body(mb, x)``; ``x`` is `X`, or its absolute value over 4 for ops of positive values."""
    table = {name: lambda mb, x, name=name: getattr(mb, name)(x=x) for name in PLAIN}
    table |= {name: lambda mb, x, name=name: getattr(mb, name)(x=mb.add(x=mb.mul(x=mb.abs(x=x), y=F(0.25)), y=F(0.1))) for name in POSITIVE}
    table |= {name: lambda mb, x, name=name: getattr(mb, name)(x=mb.add(x=x, y=F(3)), y=np.linspace(0.5, 2, 8, dtype=F)) for name in BINARY}
    table |= {name: lambda mb, x, name=name: as_number(mb, getattr(mb, name)(x=x, y=F(0.25))) for name in COMPARISONS}
    table |= {
        name: lambda mb, x, name=name: as_number(mb, getattr(mb, name)(x=mb.greater(x=x, y=F(0)), y=mb.less(x=x, y=F(1)))) for name in LOGIC
    }
    table |= {name: lambda mb, x, name=name: getattr(mb, name)(x=x, alpha=F(0.5)) for name in ALPHA}
    table |= {name: lambda mb, x, name=name: getattr(mb, name)(x=x, alpha=F(0.5), beta=F(0.75)) for name in ALPHA_BETA}
    return table | SPECIAL


def test_the_table_has_every_op():
    assert set(cases()) | set(LATER) | {"const"} == set(supported_ops())


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_every_op_runs_and_equals_coremltools_own_values(packages, target):
    """Shapes and types are checked by the interpreter against what coremltools inferred; values where coremltools folds constants itself."""
    table = cases() if target == "iOS17" else {name: body for name, body in (cases() | LATER).items() if name not in OLD_FORMS}
    references, names = [], []

    def body(mb, x):
        outputs = []
        for name, make in table.items():
            made = make(mb, x)
            folded = make(mb, mb.const(val=X.copy()))  # some of its folding writes into the constant
            for output, reference in zip(listed(made), listed(folded), strict=True):
                outputs.append(mb.identity(x=output, name=f"out_{len(outputs)}"))
                references.append(reference.val)
                names.append(name)
        return outputs

    path = packages.save({"x": X}, body, target)
    interpreter = Interpreter(path)
    assert interpreter.opset == {"iOS17": 7, "iOS18": 8}[target]
    values = interpreter.run({"x": X})
    compared, different = set(), []
    for index, (name, reference) in enumerate(zip(names, references, strict=True)):
        value = values[f"out_{index}"]
        assert value.dtype in (F, I, np.float16)
        if reference is not None:
            compared.add(name)
            if not np.allclose(value, np.asarray(reference), rtol=2e-5, atol=2e-6):
                different.append(f"{name}: {np.abs(value - np.asarray(reference)).max()}")
    assert not different
    assert len(compared) > 60, sorted(set(table) - compared)


# iOS 16's forms, which iOS 18 replaced.
OLD_FORMS = {"constexpr_affine_dequantize", "constexpr_cast", "constexpr_lut_to_dense", "constexpr_sparse_to_dense"}


def listed(made):
    return list(made) if isinstance(made, (list, tuple)) else [made]


def test_a_model_that_coremltools_compressed_equals_its_own_decompression(packages, coremltools):
    """8-bit linear weights, then 4-bit palettes, made by coremltools' optimiser; the truth is what its decompression stores."""
    from coremltools.optimize.coreml import (
        OpLinearQuantizerConfig,
        OpPalettizerConfig,
        OptimizationConfig,
        decompress_weights,
        linear_quantize_weights,
        palettize_weights,
    )

    weight = np.random.default_rng(3).normal(size=(16, 8, 3, 3)).astype(F)
    x = np.random.default_rng(4).normal(size=(1, 8, 9, 9)).astype(F)
    path = packages.save({"x": x}, lambda mb, x: mb.conv(x=x, weight=weight, pad_type="same"), "iOS16")
    plain = run_package(path, {"x": x})
    cases = (
        (linear_quantize_weights, OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0), 0.02),
        (palettize_weights, OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0), 0.3),
    )
    for make, op_config, bound in cases:
        compressed, restored = packages.folder / f"{bound}.mlpackage", packages.folder / f"{bound}-restored.mlpackage"
        with warnings.catch_warnings():  # its models leave temporary folders to the garbage collector
            warnings.simplefilter("ignore")
            model = coremltools.models.MLModel(str(path), skip_model_load=True)
            small = make(model, config=OptimizationConfig(global_config=op_config))
            small.save(str(compressed))
            plain_again = decompress_weights(small)
            plain_again.save(str(restored))
            del model, small, plain_again
            gc.collect()
        ((name, value),) = run_package(compressed, {"x": x}).items()
        np.testing.assert_allclose(value, run_package(restored, {"x": x})[name], rtol=1e-5, atol=1e-5)
        error = np.abs(value - plain[name]).max() / np.abs(plain[name]).max()
        assert 0 < error < bound
