"""float16 in the graph: what is lowered, what is kept and why, and that the numbers stay."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import GoldenSample
from edgekit.converters._precision import KEPT_OPERATORS, lower_to_fp16

F32 = TensorProto.FLOAT


def make(nodes, inputs, outputs, constants=(), opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def chain(*steps, opset=17, shape=(2, 8)):
    """``steps`` are ``(operator, constant or None)``: x -> t0 -> … -> y, named n0, n1, …"""
    nodes, constants, name = [], {}, "x"
    for index, (op, constant) in enumerate(steps):
        output = "y" if index == len(steps) - 1 else f"t{index}"
        inputs = [name]
        if constant is not None:
            constants[f"c{index}"] = np.asarray(constant, np.float32)
            inputs.append(f"c{index}")
        nodes.append(helper.make_node(op, inputs, [output], f"n{index}"))
        name = output
    return make(nodes, [("x", F32, shape)], [("y", F32, shape)], constants, opset)


def sample(model, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    inputs = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        inputs[value.name] = (random.normal(size=shape) * scale).astype(np.float32)
    return GoldenSample(inputs, run(model, inputs))


def kept(report):
    return {entry["name"]: entry["reason"] for entry in report["kept"]}


def test_everything_is_lowered_and_the_borders_stay(tiny_conv):
    model = onnx.shape_inference.infer_shapes(onnx.load(tiny_conv))
    samples = [sample(model, seed) for seed in range(3)]
    before = model.SerializeToString()
    lowered, report = lower_to_fp16(model, samples)
    assert model.SerializeToString() == before
    assert report["kept"] == []
    assert report["lowered"] == report["nodes"] == 5
    assert report["casts"] == 3  # one input, two outputs
    assert {tensor.data_type for tensor in lowered.graph.initializer} == {TensorProto.FLOAT16}
    assert [v.type.tensor_type.elem_type for v in (*lowered.graph.input, *lowered.graph.output)] == [F32] * 3
    assert [v.name for v in lowered.graph.output] == [v.name for v in model.graph.output]
    for want in samples:
        for name, array in run(lowered, want.inputs).items():
            np.testing.assert_allclose(array, want.outputs[name], atol=2e-3 * np.abs(want.outputs[name]).max())


def test_equal_arguments_give_equal_bytes(tiny_conv):
    model = onnx.shape_inference.infer_shapes(onnx.load(tiny_conv))
    samples = [sample(model)]
    first, second = (lower_to_fp16(model, samples)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_overflow_stays_float32_and_what_follows_does_not():
    model = chain(("Relu", None), ("Mul", 1e3), ("Mul", 1e4), ("Mul", 1e-4), ("Mul", 1e-1), ("Relu", None))
    want = sample(model, scale=4)
    lowered, report = lower_to_fp16(model, [want])
    assert set(kept(report)) == {"n2", "n3"}
    assert "above 65504" in kept(report)["n2"]
    got = run(lowered, want.inputs)["y"]
    np.testing.assert_allclose(got, want.outputs["y"], rtol=5e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Mul", "Add", "Sub", "Relu", "Abs", "Sqrt", "Square"]), st.floats(-6, 6), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 99),
)
def test_whatever_overflows_the_lowered_graph_stays_finite(steps, seed):
    """Property: with the samples of the scan, a lowered graph has no infinity or NaN that float32 has not."""
    made = []
    for op, exponent, negative in steps:
        constant = (-1 if negative else 1) * 10.0**exponent
        if op == "Sqrt":
            made += [("Abs", None), ("Sqrt", None)]
        elif op == "Square":
            made.append(("Pow", 2.0))
        else:
            made.append((op, constant if op in ("Mul", "Add", "Sub") else None))
    model = chain(*made)
    want = sample(model, seed)
    if not np.isfinite(want.outputs["y"]).all():
        return  # float32 itself overflows
    lowered, _ = lower_to_fp16(model, [want])
    assert np.isfinite(run(lowered, want.inputs)["y"]).all()


def test_a_weight_beyond_float16_keeps_its_node():
    _, report = lower_to_fp16(chain(("Relu", None), ("Mul", 7e4), ("Relu", None)), [])
    assert set(kept(report)) == {"n1"}
    assert "'c1' reaches 7e+04" in kept(report)["n1"]
    assert report["scan_samples"] == 0


def test_an_epsilon_keeps_the_division_behind_it():
    """x / sqrt(mean(x^2) + 1e-12) of zeros is 0; in float16 it would be 0/0."""
    constants = {"two": np.float32(2), "eps": np.float32(1e-12)}
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["sq"], "square"),
        helper.make_node("ReduceMean", ["sq"], ["mean"], "mean", axes=[-1]),
        helper.make_node("Add", ["mean", "eps"], ["var"], "eps"),
        helper.make_node("Sqrt", ["var"], ["std"], "sqrt"),
        helper.make_node("Div", ["x", "std"], ["y"], "div"),
    ]
    model = make(nodes, [("x", F32, (2, 8))], [("y", F32, (2, 8))], constants)
    lowered, report = lower_to_fp16(model, [sample(model)])
    assert set(kept(report)) == {"eps", "sqrt", "div"}
    assert run(lowered, {"x": np.zeros((2, 8), np.float32)})["y"].tolist() == np.zeros((2, 8)).tolist()


def test_a_small_bias_is_no_epsilon():
    model = chain(("Relu", None), ("Sub", 1.0), ("Add", 1e-5), ("Relu", None))
    _, report = lower_to_fp16(model, [sample(model)])
    assert report["kept"] == []


def test_bounds_of_clip_are_cut():
    model = make(
        [helper.make_node("Clip", ["x", "low", "high"], ["y"], "clip")],
        [("x", F32, (4,))],
        [("y", F32, (4,))],
        {"low": np.float32(0), "high": np.float32(3.4e38)},
    )
    lowered, report = lower_to_fp16(model, [sample(model)])
    assert report["kept"] == []
    assert run(lowered, {"x": np.array([-1, 0, 2, 6e4], np.float32)})["y"].tolist() == [0, 0, 2, 59999 // 32 * 32 + 32]


def test_scales_of_resize_stay_float32():
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    model = make(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize", mode="linear")],
        [("x", F32, (1, 2, 4, 4))],
        [("y", F32, (1, 2, 8, 8))],
        constants,
    )
    want = sample(model)
    lowered, report = lower_to_fp16(model, [want])
    assert report["lowered"] == 1
    assert {t.name: t.data_type for t in lowered.graph.initializer} == {"scales": F32}
    np.testing.assert_allclose(run(lowered, want.inputs)["y"], want.outputs["y"], atol=5e-3)


def test_integers_that_float16_cannot_hold_are_cast_to_float32():
    nodes = [helper.make_node("Cast", ["i"], ["f"], "cast", to=F32), helper.make_node("Neg", ["f"], ["y"], "neg")]
    model = make(nodes, [("i", TensorProto.INT64, (3,))], [("y", F32, (3,))])
    small, large = (GoldenSample({"i": np.array([1, 2, top])}, {}) for top in (2000, 3001))
    assert lower_to_fp16(model, [small])[1]["kept"] == []
    _, report = lower_to_fp16(model, [large])
    assert set(kept(report)) == {"cast"}


def test_subgraphs_see_float32():
    """An If that captures a lowered tensor gets it back in float32, under its own name."""

    def branch(name, op):
        body = [helper.make_node(op, ["t"], [name])]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info(name, F32, (4,))])

    nodes = [
        helper.make_node("Relu", ["x"], ["t"], "relu"),
        helper.make_node("If", ["flag"], ["u"], "if", then_branch=branch("a", "Neg"), else_branch=branch("b", "Exp")),
        helper.make_node("Abs", ["u"], ["y"], "abs"),
    ]
    model = make(nodes, [("x", F32, (4,)), ("flag", TensorProto.BOOL, ())], [("y", F32, (4,))])
    inputs = {"x": np.array([-1, 0, 1, 2], np.float32), "flag": np.array(True)}
    lowered, report = lower_to_fp16(model, [GoldenSample(inputs, {})])
    assert kept(report) == {"if": KEPT_OPERATORS["If"]}
    assert run(lowered, inputs)["y"].tolist() == [0, 0, 1, 2]


def test_operators_without_float16_are_kept_by_their_schema():
    """Every operator whose schema has no float16 must be named in the report, not broken."""
    model = make(
        [
            helper.make_node("Relu", ["x"], ["t"], "relu"),
            helper.make_node("NonMaxSuppression", ["boxes", "t"], ["picked"], "nms"),
        ],
        [("x", F32, (1, 1, 4)), ("boxes", F32, (1, 4, 4))],
        [("picked", TensorProto.INT64, ("n", 3))],
    )
    inputs = {"x": np.ones((1, 1, 4), np.float32), "boxes": np.arange(16, dtype=np.float32).reshape(1, 4, 4)}
    lowered, report = lower_to_fp16(model, [GoldenSample(inputs, {})])
    assert set(kept(report)) == {"nms"}
    assert run(lowered, inputs)["picked"].tolist() == run(model, inputs)["picked"].tolist()


def test_large_activations_are_flagged():
    model = chain(("Relu", None), ("Mul", 1000.0))
    _, report = lower_to_fp16(model, [sample(model)])
    assert [entry["tensor"] for entry in report["flagged"]] == ["y"]


def test_names_that_are_taken():
    nodes = [helper.make_node("Relu", ["x"], ["x_fp16"], "a"), helper.make_node("Neg", ["x_fp16"], ["y"], "b")]
    model = make(nodes, [("x", F32, (4,))], [("y", F32, (4,))])
    want = sample(model)
    lowered, _ = lower_to_fp16(model, [want])
    np.testing.assert_allclose(run(lowered, want.inputs)["y"], want.outputs["y"], atol=2e-3)


def test_no_cast_undoes_another():
    """Between lowered nodes there is no cast pair; a kept island has one cast on each side."""
    model = chain(("Relu", None), ("Mul", 1e5), ("Mul", 1e-5), ("Relu", None))
    lowered, report = lower_to_fp16(model, [sample(model)])
    assert set(kept(report)) == {"n1", "n2"}
    assert [n.op_type for n in lowered.graph.node] == ["Cast", "Relu", "Cast", "Mul", "Mul", "Cast", "Relu", "Cast"]
    assert all(a.op_type != "Cast" or b.op_type != "Cast" for a, b in itertools.pairwise(lowered.graph.node))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppocr-cls", "silero-vad"])
def test_real_models_keep_their_numbers(real_model, name):
    from edgekit.converters._normalise import normalise
    from edgekit.converters._samples import golden_samples
    from edgekit.converters._source import load_source
    from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for

    source = load_source(real_model(name))
    shapes = {"x": (1, 3, 48, 192)} if name == "ppocr-cls" else {}
    model = normalise(source, shapes, static=True)
    samples = golden_samples(source, model.signature, None).samples
    lowered, report = lower_to_fp16(model.model, samples)
    metrics = compare_outputs([s.outputs for s in samples], [run(lowered, s.inputs) for s in samples], model.signature)
    assert check_metrics(metrics, thresholds_for("fp16")) == []
    assert report["lowered"] >= 0.9 * report["nodes"]
    assert len(lowered.SerializeToString()) < 0.55 * len(model.model.SerializeToString())
