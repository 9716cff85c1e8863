"""What is asked of each TensorRT generation, decided from its names alone."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EnvironmentMissingError
from edgekit.runtime._tensorrt_plan import (
    RECIPE_FORMAT,
    Attempt,
    EngineIdentity,
    Recipe,
    ShapeRange,
    attempts,
    engine_key,
    generations,
    plan_build,
)

MIB = 2**20


def recipe(*, float16=True, quantised=False, nodes=()):
    found = generations(has_float16=float16, has_quantisation=quantised)
    clear = () if float16 else ("TF32",)
    return Recipe(RECIPE_FORMAT, "model.onnx", "0" * 64, 17, "fp16" if float16 else "fp32", found, clear, float32_nodes=nodes)


# generation -> network flags, builder flags set for fp16 with one kept node, pinned nodes, has levels
TABLE = {
    "8.5": (("EXPLICIT_BATCH",), ("FP16", "PREFER_PRECISION_CONSTRAINTS"), ("norm",), False),
    "8.6": (("EXPLICIT_BATCH",), ("FP16", "PREFER_PRECISION_CONSTRAINTS"), ("norm",), True),
    "10.3": (("STRONGLY_TYPED",), (), (), True),
    "10.13": (("STRONGLY_TYPED",), (), (), True),
    "11": ((), (), (), True),
}


@pytest.mark.parametrize("generation", TABLE)
def test_flags_by_generation(simulated, generation):
    plan = plan_build(simulated(generation), recipe(nodes=("norm",)))
    assert (plan.network_flags, plan.set_flags, plan.pinned_nodes, plan.has_levels) == TABLE[generation]
    assert plan.has_timing_cache
    assert not plan.targets_by_capability


@pytest.mark.parametrize("generation", TABLE)
def test_float32_graphs_ask_for_no_precision_and_no_tf32(simulated, generation):
    plan = plan_build(simulated(generation), recipe(float16=False))
    assert plan.set_flags == ()
    assert plan.clear_flags == ("TF32",)


def test_quantised_graphs_need_a_flag_on_8_only(simulated):
    assert plan_build(simulated("8.6"), recipe(quantised=True)).set_flags == ("FP16", "INT8")
    assert plan_build(simulated("11"), recipe(quantised=True)).set_flags == ()


def test_every_name_in_a_plan_exists(simulated):
    for generation in TABLE:
        trt = simulated(generation)
        plan = plan_build(trt, recipe(nodes=("norm",)))
        assert all(name in trt.NetworkDefinitionCreationFlag.__members__ for name in plan.network_flags)
        assert all(name in trt.BuilderFlag.__members__ for name in (*plan.set_flags, *plan.clear_flags))


def test_jetpack_4_is_refused_by_what_it_lacks(simulated):
    with pytest.raises(EnvironmentMissingError, match=r"8\.2\.1: it lacks ICudaEngine\.num_io_tensors.*TensorRT 8\.5 or newer"):
        plan_build(simulated("8.2"), recipe())


def test_a_generation_that_the_recipe_does_not_know(simulated):
    old = msgspec.structs.replace(recipe(), generations=recipe().generations[:1])
    with pytest.raises(EnvironmentMissingError, match=r"does not know this generation; expected TensorRT 8\.5 - 8\.6"):
        plan_build(simulated("10.3"), old)


def test_tensorrt_rtx_as_installed():
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    plan = plan_build(trt, recipe())
    assert (plan.network_flags, plan.set_flags) == ((), ())
    assert plan.targets_by_capability
    assert not plan.has_timing_cache


@given(st.integers(0, 64 * 1024 * MIB), st.integers(0, 64 * 1024 * MIB), st.integers(0, 5))
def test_attempts_never_ask_for_more(workspace, free, level):
    tries = attempts(workspace, free, level)
    assert tries
    assert len(set(tries)) == len(tries)
    sizes = [attempt.workspace_bytes for attempt in tries]
    assert sizes == sorted(sizes, reverse=True)
    assert all(attempt.optimization_level <= level for attempt in tries)
    if workspace:
        assert sizes[0] <= max(workspace, 64 * MIB)
    if free:
        assert sizes[0] <= max(free // 2, 64 * MIB)


def test_attempts_by_example():
    assert attempts(1024 * MIB, 8192 * MIB, 3) == [Attempt(1024 * MIB, 3), Attempt(512 * MIB, 3), Attempt(256 * MIB, 1)]
    assert attempts(1024 * MIB, 1024 * MIB, 3)[0] == Attempt(512 * MIB, 3)
    assert attempts(0, 0, 3) == [Attempt(0, 3), Attempt(0, 1)]


IDENTITY = EngineIdentity("ab", "tensorrt", "10.3.0", "8.7", "12.6", "fp16", {"x": ShapeRange((1,), (1,), (4,))}, "none", {"level": "3"})
OTHERS = {
    "onnx_sha256": "cd",
    "package": "tensorrt_rtx",
    "tensorrt": "10.3.1",
    "compute_capability": "8.6",
    "cuda": "12.8",
    "precision": "fp32",
    "shapes": {"x": ShapeRange((1,), (1,), (8,))},
    "dla": "0",
    "options": {"level": "4"},
}


def test_engine_key_depends_on_everything_and_only_on_that():
    assert set(OTHERS) == set(EngineIdentity.__struct_fields__)
    keys = {engine_key(msgspec.structs.replace(IDENTITY, **{field: value})) for field, value in OTHERS.items()}
    assert len(keys | {engine_key(IDENTITY)}) == len(OTHERS) + 1
    assert engine_key(msgspec.structs.replace(IDENTITY)) == engine_key(IDENTITY)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6))
def test_engine_key_ignores_the_order_of_options(options):
    backwards = dict(reversed(options.items()))
    keys = [engine_key(msgspec.structs.replace(IDENTITY, options=value)) for value in (options, backwards)]
    assert keys[0] == keys[1]


def test_a_recipe_holds_no_number_of_a_flag():
    text = msgspec.json.encode(msgspec.to_builtins(generations(has_float16=True, has_quantisation=True))).decode()
    assert not any(
        character.isdigit()
        for character in text.replace("FP16", "")
        .replace("INT8", "")
        .replace("TensorRT 8.5 - 8.6", "")
        .replace("TensorRT 9 - 10", "")
        .replace("TensorRT 11", "")
    )
