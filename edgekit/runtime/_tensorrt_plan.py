"""How to build a TensorRT engine here: decided from a recipe and from the names that the installed TensorRT has. Pure functions.

Flag numbers move between releases (``1 << 1`` is STRONGLY_TYPED in 10.x and something else in 11), so everything is asked and set by name.
Sources: NvInfer headers of the release tags 8.5 to 11.5; NVIDIA's migration guide to 11.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgekit.errors import EnvironmentMissingError

__all__ = [
    "BUILT",
    "CHILD_REPORT_DECODER",
    "GAVE_NOTHING",
    "RECIPE_DECODER",
    "RECIPE_FORMAT",
    "REFUSED",
    "UNFIT",
    "Attempt",
    "BuildPlan",
    "ChildReport",
    "EngineIdentity",
    "Generation",
    "ParserMessage",
    "Recipe",
    "ShapeRange",
    "attempts",
    "engine_key",
    "generations",
    "plan_build",
]

RECIPE_FORMAT = "edgekit.tensorrt-recipe/1"

# Exit codes of the building process.
BUILT, REFUSED, GAVE_NOTHING, UNFIT = 0, 3, 4, 5

# What building and running needs of a TensorRT Python package, all of it there since 8.5.
_REQUIRED = (
    "Builder.build_serialized_network",
    "IBuilderConfig.set_memory_pool_limit",
    "MemoryPoolType.WORKSPACE",
    "OnnxParser.parse_from_file",
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.num_io_tensors",
    "ICudaEngine.get_tensor_mode",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
)
_SMALLEST_WORKSPACE_BYTES = 64 * 2**20


class ShapeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes of one dynamic input: smallest, the one to tune for, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one generation of TensorRT is told apart, and the flags that it needs for precision that is in the graph.

    Attributes:
        name: for people.
        has: dotted names that the package has.
        lacks: dotted names that it does not have.
        network_flags: names in ``NetworkDefinitionCreationFlag``.
        builder_flags: names in ``BuilderFlag``.
        weakly_typed: the builder may choose another precision than the graph says; `Recipe.float32_nodes` are pinned.
    """

    name: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    network_flags: tuple[str, ...] = ()
    builder_flags: tuple[str, ...] = ()
    weakly_typed: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``recipe.json``: what the device's builder is told. Holds no number of a flag, and nothing that differs between equal builds.

    Attributes:
        format: `RECIPE_FORMAT`.
        onnx: file name beside the recipe.
        onnx_sha256: of that file.
        opset: its ai.onnx opset.
        precision: ``fp32`` or ``fp16``; for the reader, the graph says it itself.
        generations: tried in order; the first whose names fit is used.
        clear_flags: builder flags that are on by default and must be off, where they exist.
        float32_nodes: nodes that would overflow in float16; weakly typed builders are told to keep them.
        shapes: one range per dynamic input, empty when all shapes are fixed.
        workspace_bytes: cap for the builder's scratch memory, 0 for none; cut further to what is free.
        optimization_level: first one tried (0 to 5), where the builder has levels.
        dla: ``none``: engines run on the GPU.
        engine_key: what the name of a cached engine is made of, in order; SHA-256 over them as JSON.
        timing_key: the same for the timing cache; a mismatch is never ignored.
    """

    format: str
    onnx: str
    onnx_sha256: str
    opset: int
    precision: str
    generations: tuple[Generation, ...]
    clear_flags: tuple[str, ...] = ()
    float32_nodes: tuple[str, ...] = ()
    shapes: dict[str, ShapeRange] = {}
    workspace_bytes: int = 0
    optimization_level: int = 3
    dla: str = "none"
    engine_key: tuple[str, ...] = ()
    timing_key: tuple[str, ...] = ()


class BuildPlan(msgspec.Struct, frozen=True):
    """What the builder here is asked to do; every name in it exists in the package it was made for.

    Attributes:
        generation: which entry of the recipe fits.
        network_flags: set when the network is created.
        set_flags: builder flags to set.
        clear_flags: builder flags to clear.
        pinned_nodes: nodes that get float32 by layer precision; empty for strongly typed builders.
        has_levels: the builder has optimisation levels.
        has_timing_cache: a timing cache can be read and written.
        targets_by_capability: compute capabilities are set one by one (TensorRT-RTX).
    """

    generation: str
    network_flags: tuple[str, ...]
    set_flags: tuple[str, ...]
    clear_flags: tuple[str, ...]
    pinned_nodes: tuple[str, ...]
    has_levels: bool
    has_timing_cache: bool
    targets_by_capability: bool


class EngineIdentity(msgspec.Struct, frozen=True):
    """Everything that an engine depends on; two equal identities may share a file."""

    onnx_sha256: str
    package: str
    tensorrt: str
    compute_capability: str
    cuda: str
    precision: str
    shapes: dict[str, ShapeRange]
    dla: str
    options: dict[str, str]


class Attempt(msgspec.Struct, frozen=True):
    """One try of the builder: its workspace (0: no cap) and optimisation level."""

    workspace_bytes: int
    optimization_level: int


class ParserMessage(msgspec.Struct, frozen=True):
    """One complaint of the parser; node and operator are empty where the release does not tell."""

    node: str
    operator: str
    message: str


class ChildReport(msgspec.Struct, frozen=True):
    """What the child found, as JSON on its report file.

    Attributes:
        version: of the TensorRT package.
        generation: recipe entry that was used.
        refusals: why the parser refused the model, empty when it did not.
        messages: last warnings and errors of the builder.
        parse_s: seconds for parsing.
        build_s: seconds for building.
        engine_bytes: size of the engine, 0 when there is none.
        layers: layers of the parsed network.
        shape_inputs: inputs whose values decide shapes; an engine needs ranges for their values.
    """

    version: str
    generation: str
    refusals: tuple[ParserMessage, ...] = ()
    messages: tuple[str, ...] = ()
    parse_s: float = 0.0
    build_s: float = 0.0
    engine_bytes: int = 0
    layers: int = 0
    shape_inputs: tuple[str, ...] = ()


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
RECIPE_DECODER = msgspec.json.Decoder(Recipe)
CHILD_REPORT_DECODER = msgspec.json.Decoder(ChildReport)


def generations(*, has_float16: bool, has_quantisation: bool, float32_scales: bool = False) -> tuple[Generation, ...]:
    """The flags per generation for a graph that carries its own precision.

    8.x needs the builder flags to be allowed to follow the graph; 9 and 10 follow it to the letter when the network is strongly typed;
    11 and TensorRT-RTX have no other way, so their flag is not needed.

    Args:
        has_float16: float16 is in the graph, or may be used where the graph is float32.
        has_quantisation: Q/DQ is in the graph.
        float32_scales: below opset 19 scales are float32, and what is not int8 with them; then 9 and 10 too are left free to compute that in float16.
    """
    weak = (("FP16",) if has_float16 else ()) + (("INT8",) if has_quantisation else ())
    typed, precision = "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.FP16"
    return (
        Generation(
            "TensorRT 8.5 - 8.6", has=(precision,), lacks=(typed,), network_flags=("EXPLICIT_BATCH",), builder_flags=weak, weakly_typed=True
        ),
        Generation("TensorRT 9 - 10", has=(precision, typed), builder_flags=weak, weakly_typed=True)
        if float32_scales
        else Generation("TensorRT 9 - 10", has=(precision, typed), network_flags=("STRONGLY_TYPED",)),
        Generation("TensorRT 11, TensorRT-RTX", lacks=(precision,)),
    )


def plan_build(trt: Any, recipe: Recipe) -> BuildPlan:
    """Fit a recipe to an imported TensorRT package, by the names that it has.

    Args:
        trt: module ``tensorrt``, ``tensorrt_rtx`` or ``tensorrt_rtx_bindings``, or anything with the same names.
        recipe: from the bundle.

    Raises:
        EnvironmentMissingError: the package lacks something that every release since 8.5 has, or fits no entry of the recipe.
    """
    version = str(getattr(trt, "__version__", "of unknown version"))
    if missing := [name for name in _REQUIRED if not _has(trt, name)]:
        raise EnvironmentMissingError(
            f"TensorRT {version}", f"it lacks {', '.join(missing)}", "TensorRT 8.5 or newer (JetPack 5.1 or newer)", "update JetPack"
        )
    chosen = next((g for g in recipe.generations if all(_has(trt, n) for n in g.has) and not any(_has(trt, n) for n in g.lacks)), None)
    if chosen is None:
        known = ", ".join(generation.name for generation in recipe.generations)
        raise EnvironmentMissingError(f"TensorRT {version}", "the recipe does not know this generation", known, "build the bundle again")
    pinned = recipe.float32_nodes if chosen.weakly_typed and "FP16" in chosen.builder_flags else ()
    wanted = (*chosen.builder_flags, *(("PREFER_PRECISION_CONSTRAINTS",) if pinned else ()))
    return BuildPlan(
        generation=chosen.name,
        network_flags=tuple(name for name in chosen.network_flags if _has(trt, f"NetworkDefinitionCreationFlag.{name}")),
        set_flags=tuple(name for name in wanted if _has(trt, f"BuilderFlag.{name}")),
        clear_flags=tuple(name for name in recipe.clear_flags if _has(trt, f"BuilderFlag.{name}")),
        pinned_nodes=pinned,
        has_levels=_has(trt, "IBuilderConfig.builder_optimization_level"),
        # TensorRT-RTX deprecated its timing cache in 1.2, and asking for it there needs a GPU.
        has_timing_cache=_has(trt, "IBuilderConfig.create_timing_cache") and not _has(trt, "ComputeCapability"),
        targets_by_capability=_has(trt, "IBuilderConfig.set_compute_capability"),
    )


def _has(root: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        root = getattr(root, part, None)
        if root is None:
            return False
    return True


def attempts(workspace_bytes: int, free_bytes: int, level: int) -> list[Attempt]:
    """What to try, in order, until the builder succeeds.

    The first workspace is the recipe's cap cut to half of what is free: the builder holds weights and candidate kernels beside it, and on a
    Jetson CPU and GPU share the memory. Then half of it at the same level, and a quarter at level 1, which tries fewer kernels.

    Args:
        workspace_bytes: the recipe's cap, 0 for none.
        free_bytes: free now, 0 when it is not known.
        level: the recipe's optimisation level.
    """
    caps = [cap for known, cap in ((workspace_bytes, workspace_bytes), (free_bytes, free_bytes // 2)) if known > 0]
    if not caps:
        return [Attempt(0, value) for value in dict.fromkeys((level, min(level, 1)))]
    first = max(min(caps), _SMALLEST_WORKSPACE_BYTES)
    tries = [
        (first, level),
        (max(first // 2, _SMALLEST_WORKSPACE_BYTES), level),
        (max(first // 4, _SMALLEST_WORKSPACE_BYTES), min(level, 1)),
    ]
    return [Attempt(*values) for values in dict.fromkeys(tries)]


def engine_key(identity: EngineIdentity | Mapping[str, str] | Sequence[str]) -> str:
    """Name of a cached file: SHA-256, hex, over what it depends on."""
    return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()
