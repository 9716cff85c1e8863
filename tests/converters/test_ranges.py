import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.bundle import GoldenSample
from edgekit.converters._ranges import activation_ranges, largest_magnitude


def chain(length: int) -> onnx.ModelProto:
    """x -> x*2 -> ... `length` times, then a cast to int64 that must not appear among float ranges."""
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [helper.make_node("Mul", ["x" if i == 0 else f"t{i - 1}", "two"], [f"t{i}"]) for i in range(length)]
    nodes.append(helper.make_node("Cast", [f"t{length - 1}"], ["y"], to=TensorProto.INT64))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [3])],
        [two],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def sample(*values: float) -> GoldenSample:
    return GoldenSample({"x": np.array(values, np.float32)}, {})


def test_every_float_tensor_over_all_samples():
    ranges = activation_ranges(chain(3), [sample(-1, 0, 2), sample(0, 5, 1)])
    assert ranges == {"x": (-1, 5), "t0": (-2, 10), "t1": (-4, 20), "t2": (-8, 40)}


def test_more_tensors_than_one_run_takes():
    ranges = activation_ranges(chain(70), [sample(1, 1, 1)])
    assert len(ranges) == 71
    assert ranges["t69"] == (2.0**70, 2.0**70)


def test_nan_is_ignored_and_infinity_is_not():
    ranges = activation_ranges(chain(1), [sample(float("nan"), 3, float("inf"))])
    assert ranges["t0"] == (6, float("inf"))
    assert activation_ranges(chain(1), [sample(*[float("nan")] * 3)])["t0"] == (float("-inf"), float("inf"))


def test_no_samples_no_ranges_and_the_model_is_untouched():
    model = chain(1)
    before = model.SerializeToString()
    assert activation_ranges(model, []) == {}
    activation_ranges(model, [sample(1, 2, 3)])
    assert model.SerializeToString() == before


def test_largest_magnitude():
    assert largest_magnitude((-7.0, 3.0)) == 7.0
