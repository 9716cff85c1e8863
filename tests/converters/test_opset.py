"""Models written at an older opset answer as before, through ONNX Runtime; what cannot be written there is refused by name."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._opset import OPSET_FLOOR, ir_version_for, opset_of, to_opset
from edgekit.errors import BuildError, UnsupportedOperatorsError, UsageError

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(op, inputs, opset, constants=(), outputs=1, kind=F32, shape=None, **attributes):
    """One operator on float32 inputs ``{name: shape}`` and constants; outputs y0, y1, …"""
    constants = dict(constants)
    names = attributes.pop("order", [*inputs, *constants])
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], f"the_{op.lower()}", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, F32, size) for name, size in inputs.items()],
        [helper.make_tensor_value_info(f"y{i}", kind, shape or [f"d{i}_{j}" for j in range(9)]) for i in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    for output in graph.output:
        if shape is None:
            output.type.tensor_type.ClearField("shape")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version_for(opset))
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        assert output.type.tensor_type.HasField("shape"), op
    return inferred


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)


def feed(model):
    random = np.random.default_rng(7)
    shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def i64(*values):
    return np.array(values, np.int64)


X = {"x": (2, 6, 4, 4)}
# name -> (model at a newer opset, ceiling, operators expected afterwards; None leaves that open)
CASES = {
    "reduce axes become an attribute": (model_of("ReduceMean", X, 18, {"axes": i64(2, 3)}), 17, {"ReduceMean"}),
    "reduce over everything": (model_of("ReduceMax", X, 20, keepdims=0), 17, {"ReduceMax"}),
    "reduce over nothing": (model_of("ReduceMean", X, 18, noop_with_empty_axes=1), 17, {"Identity"}),
    "reduce sum keeps its input": (model_of("ReduceSum", X, 18, {"axes": i64(1)}), 13, {"ReduceSum"}),
    "split into equal parts": (model_of("Split", X, 18, outputs=3, axis=1, num_outputs=3), 17, {"Split"}),
    "split into unequal parts": (model_of("Split", {"x": (5,)}, 18, outputs=3, num_outputs=3), 17, None),
    "split by sizes": (model_of("Split", X, 18, {"sizes": i64(1, 5)}, outputs=2, axis=1), 13, {"Split"}),
    "pad chosen axes": (
        model_of("Pad", X, 18, {"pads": i64(1, 2, 3, 4), "value": np.float32(9), "axes": i64(-1, 2)}),
        17,
        {"Pad"},
    ),
    "pad all axes": (model_of("Pad", X, 21, {"pads": i64(0, 0, 1, 1, 0, 0, 1, 1)}), 17, {"Pad"}),
    "resize scales of chosen axes": (
        model_of("Resize", X, 18, {"scales": np.array([2, 2], np.float32)}, order=["x", "", "scales"], mode="linear", axes=[2, 3]),
        17,
        {"Resize"},
    ),
    "resize sizes of chosen axes": (
        model_of("Resize", X, 19, {"sizes": i64(8, 6)}, order=["x", "", "", "sizes"], mode="nearest", axes=[3, 2]),
        17,
        {"Resize"},
    ),
    "shape from start to end": (model_of("Shape", X, 15, kind=I64, start=1, end=-1), 13, {"Shape", "Slice"}),
    "shape from the end": (model_of("Shape", X, 15, kind=I64, start=-2), 13, {"Shape", "Slice"}),
    "layer normalisation": (
        model_of("LayerNormalization", X, 17, {"s": np.full(4, 2, np.float32), "b": np.ones(4, np.float32)}, axis=-1),
        13,
        None,
    ),
    "gelu": (model_of("Gelu", X, 20), 17, None),
    "gelu, tanh form": (model_of("Gelu", X, 20, approximate="tanh"), 17, None),
    "mish": (model_of("Mish", X, 22), 17, None),
    "swish": (model_of("Swish", X, 24), 20, None),
    "hard swish": (model_of("HardSwish", X, 22), 13, None),
    "rms normalisation": (model_of("RMSNormalization", X, 23, {"s": np.full(4, 2, np.float32)}, axis=-1), 17, None),
    "group normalisation per channel": (
        model_of(
            "GroupNormalization", X, 21, {"s": np.arange(6, dtype=np.float32), "b": np.ones(6, np.float32)}, num_groups=3, shape=X["x"]
        ),
        17,
        None,
    ),
    "group normalisation, new meaning to old opset": (
        model_of(
            "GroupNormalization", X, 21, {"s": np.arange(6, dtype=np.float32), "b": np.ones(6, np.float32)}, num_groups=3, shape=X["x"]
        ),
        18,
        None,
    ),
    "cast that says saturate": (model_of("Cast", X, 19, kind=I64, to=I64, saturate=1), 17, {"Cast"}),
    "reshape that keeps zeros": (model_of("Reshape", X, 21, {"shape": i64(2, -1)}, allowzero=1), 13, {"Reshape"}),
    "grid sample": (
        model_of("GridSample", {"x": (1, 2, 4, 4), "grid": (1, 3, 3, 2)}, 20, mode="linear", align_corners=1),
        17,
        {"GridSample"},
    ),
    "convolution, only its types changed": (model_of("Conv", X, 22, {"w": np.ones((1, 6, 3, 3), np.float32)}), 17, {"Conv"}),
    "average pool without dilation": (model_of("AveragePool", X, 22, kernel_shape=[2, 2], dilations=[1, 1]), 17, {"AveragePool"}),
    "quantise and back": (
        model_of("DequantizeLinear", {}, 21, {"q": np.arange(-4, 4, dtype=np.int8), "scale": np.float32(0.5)}),
        17,
        {"DequantizeLinear"},
    ),
    "quantise to a named type": (
        model_of("QuantizeLinear", X, 21, {"scale": np.float32(0.1)}, kind=TensorProto.INT8, output_dtype=TensorProto.INT8),
        17,
        {"QuantizeLinear"},
    ),
    "identity across many opsets": (model_of("Identity", X, 25), 13, {"Identity"}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_answers_at_the_older_opset(name):
    model, ceiling, operators = CASES[name]
    inputs = feed(model)
    before = model.SerializeToString()
    lowered = to_opset(model, ceiling)
    assert model.SerializeToString() == before
    assert opset_of(lowered) == ceiling
    assert lowered.ir_version == ir_version_for(ceiling)
    assert all(onnx.defs.get_schema(node.op_type, ceiling, "") for node in lowered.graph.node)
    if operators is not None:
        assert {node.op_type for node in lowered.graph.node} == operators
    for want, got in zip(run(model, inputs), run(lowered, inputs), strict=True):
        assert (want.dtype, want.shape) == (got.dtype, got.shape)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


REFUSED = {
    "antialias": (
        model_of("Resize", X, 18, {"s": np.array([1, 1, 0.5, 0.5], np.float32)}, order=["x", "", "s"], mode="linear", antialias=1), 17,
        r"Resize at 'the_resize' \(opset 18: antialias came with opset 18\)",
    ),
    "wrap": (model_of("Pad", X, 19, {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}, mode="wrap"), 17, "mode wrap came with opset 19"),
    "no such operator": (model_of("BitwiseNot", {}, 18, {"x": np.arange(3)}, kind=I64), 17, r"BitwiseNot at 'the_bitwisenot' .*not in opset 17"),
    "reduction": (
        model_of("ScatterND", {"x": (4,), "u": (1,)}, 18, {"i": i64(0).reshape(1, 1)}, order=["x", "i", "u"], reduction="max"), 17,
        "reduction max came with opset 18",
    ),
    "element type": (
        model_of("Relu", {}, 14, {"x": np.arange(3, dtype=np.int32)}, kind=TensorProto.INT32), 13, r"tensor\(int32\) of 'x' is not among its types",
    ),
    "dilated pool": (model_of("AveragePool", X, 19, kernel_shape=[2, 2], dilations=[2, 2]), 17, "dilations are too new"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_older_opset_cannot_say_is_refused(name):
    model, ceiling, said = REFUSED[name]
    with pytest.raises(UnsupportedOperatorsError, match=said):
        to_opset(model, ceiling)


def test_all_refused_nodes_are_named():
    nodes = [helper.make_node("BitwiseNot", ["x"], ["a"], "one"), helper.make_node("BitwiseNot", ["a"], ["y"], "two")]
    values = [helper.make_tensor_value_info(name, I64, (3,)) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedOperatorsError) as caught:
        to_opset(model, 17)
    assert [name for name, *_ in caught.value.nodes] == ["one", "two"]


def test_subgraphs_are_lowered_too():
    def branch(name):
        axes = numpy_helper.from_array(i64(1), f"{name}_axes")
        body = [helper.make_node("ReduceMax", ["x", f"{name}_axes"], [name], f"{name}_reduce")]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info(name, F32, (2, 1))], [axes])

    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("a"), else_branch=branch("b"))
    inputs = [helper.make_tensor_value_info("x", F32, (2, 3)), helper.make_tensor_value_info("flag", TensorProto.BOOL, ())]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", F32, (2, 1))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    lowered = to_opset(model, 17)
    for inner in lowered.graph.node[0].attribute:
        assert [len(reduce.input) for reduce in inner.g.node] == [1]
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "flag": np.array(True)}
    assert run(lowered, feeds)[0].tolist() == run(model, feeds)[0].tolist() == [[2], [5]]


def test_an_old_model_is_lifted_to_the_floor_and_a_fitting_one_stays():
    old = model_of("Squeeze", {"x": (2, 1, 3)}, 11, axes=[1])
    lifted = to_opset(old, 17)
    assert opset_of(lifted) == OPSET_FLOOR
    assert np.array_equal(run(lifted, feed(old))[0], run(old, feed(old))[0])
    fitting = model_of("Relu", X, 16)
    assert opset_of(to_opset(fitting, 17)) == 16
    assert to_opset(to_opset(fitting, 17), 17) == to_opset(fitting, 17)


def test_imports_that_nothing_uses_are_dropped():
    model = model_of("Relu", X, 15)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    assert [entry.domain for entry in to_opset(model, 17).opset_import] == [""]


def test_model_local_functions_are_inlined():
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    function = helper.make_function("ours", "NegRelu", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    node = helper.make_node("NegRelu", ["x"], ["y"], "call", domain="ours")
    values = [helper.make_tensor_value_info(name, F32, (4,)) for name in ("x", "y")]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=imports, functions=[function])
    lowered = to_opset(model, 17)
    assert [node.op_type for node in lowered.graph.node] == ["Relu", "Neg"]
    assert len(lowered.functions) == 0


def test_a_ceiling_below_the_floor():
    with pytest.raises(UsageError, match="opset ceiling: 11; expected 13 or newer"):
        to_opset(model_of("Relu", X, 14), 11)


@pytest.mark.parametrize(("opset", "ir"), [(13, 7), (17, 8), (20, 9), (25, 13)])
def test_ir_versions_are_those_of_the_era(opset, ir):
    assert ir_version_for(opset) == ir


def _close(want, got):
    if not isinstance(want, np.ndarray) or want.dtype.kind not in "fiub":
        return True  # sequences, strings and types beyond NumPy: not compared here
    return want.shape == got.shape and np.allclose(want.astype(np.float64), got.astype(np.float64), rtol=1e-3, atol=1e-5, equal_nan=True)


def _answers(model, case):
    """Per data set what ONNX Runtime answers; None where it has no kernel for a type or form."""
    names = [value.name for value in case.model.graph.input]
    try:
        return [run(model, dict(zip(names, inputs, strict=False))) for inputs, _ in case.data_sets]
    except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common base
        return None


def _agree(wants, gots):
    pairs = zip(wants, gots, strict=True)
    return all(_close(want, got) for outputs, answers in pairs for want, got in zip(outputs, answers, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the cases themselves divide by zero and cast NaN
@pytest.mark.parametrize(("ceiling", "at_least"), [(13, 810), (17, 730), (20, 630)])
def test_onnx_backend_cases_are_right_or_refused(ceiling, at_least):
    """ONNX's own cases: written at the older opset they answer as the standard says, as ONNX Runtime did before, or are refused."""
    from onnx.backend.test.case.node import collect_testcases

    passed, wrong, broken = 0, [], []
    for case in collect_testcases(None):
        ours = case.model is not None and all(entry.domain in ("", "ai.onnx") for entry in case.model.opset_import)
        if not ours or opset_of(case.model) <= ceiling or "bernoulli" in case.name:  # random by definition
            continue
        try:
            lowered = to_opset(case.model, ceiling)
        except UnsupportedOperatorsError:
            continue
        except BuildError:
            broken.append(case.name)
            continue
        got = _answers(lowered, case)
        if got is None:
            continue
        if _agree([outputs for _, outputs in case.data_sets], got):
            passed += 1
        elif (before := _answers(case.model, case)) is None or not _agree(before, got):
            wrong.append(case.name)
    assert wrong == []
    assert broken == []
    assert passed >= at_least
