"""The process that runs NVIDIA's parser and builder: native code that may crash or be killed, so nothing else runs beside it.

``python -m edgekit.runtime._tensorrt_child --package … --recipe …`` is also the command that repeats a failed build by hand.
Exit codes: 0 built (or parsed, without ``--engine``), 3 the parser refused the model, 4 the builder gave no engine, 5 the package does not fit.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle import write_file
from edgekit.errors import EnvironmentMissingError
from edgekit.runtime._parent import end_with_parent
from edgekit.runtime._tensorrt_plan import (
    BUILT,
    GAVE_NOTHING,
    RECIPE_DECODER,
    REFUSED,
    UNFIT,
    BuildPlan,
    ChildReport,
    ParserMessage,
    Recipe,
    plan_build,
)

__all__ = ["main"]

_MESSAGES_KEPT = 20


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, build, write the engine and the report. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.runtime._tensorrt_child", description=__doc__)
    parser.add_argument("--package", required=True, help="tensorrt, tensorrt_rtx or tensorrt_rtx_bindings")
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--engine", type=Path, help="where the engine goes; without it the file is only parsed")
    parser.add_argument("--report", required=True, type=Path, help="where the report goes (JSON)")
    parser.add_argument("--workspace-bytes", type=int, default=0)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--compute-capability", action="append", default=[], help="8.6; several times, for TensorRT-RTX")
    options = parser.parse_args(arguments)
    trt = importlib.import_module(options.package)
    recipe = RECIPE_DECODER.decode(options.recipe.read_bytes())
    try:
        plan = plan_build(trt, recipe)
    except EnvironmentMissingError as exc:
        print(exc, file=sys.stderr)
        return UNFIT
    code, report = _build(trt, recipe, plan, options)
    write_file(options.report, msgspec.json.encode(report))
    return code


def _build(trt: Any, recipe: Recipe, plan: BuildPlan, options: argparse.Namespace) -> tuple[int, ChildReport]:
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(_bits(trt.NetworkDefinitionCreationFlag, plan.network_flags))
    parser = trt.OnnxParser(network, logger)
    started = time.monotonic()
    parsed = parser.parse_from_file(str(options.recipe.parent / recipe.onnx))
    parse_s = time.monotonic() - started

    def report(**more: Any) -> ChildReport:
        kept = tuple(messages[-_MESSAGES_KEPT:])
        return ChildReport(str(trt.__version__), plan.generation, messages=kept, parse_s=parse_s, layers=int(network.num_layers), **more)

    if not parsed:
        return REFUSED, report(refusals=tuple(_refusal(parser.get_error(i)) for i in range(parser.num_errors)))
    if options.engine is None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        return BUILT, report(shape_inputs=tuple(tensor.name for tensor in inputs if tensor.is_shape_tensor))
    config = _config(trt, builder, network, recipe, plan, options)
    cache = _timing_cache(config, plan, options.timing_cache)
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - started
    if engine is None:
        return GAVE_NOTHING, report(build_s=build_s)
    data = bytes(engine)
    write_file(options.engine, data)
    if cache is not None:
        write_file(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return BUILT, report(build_s=build_s, engine_bytes=len(data))


def _logger(trt: Any, messages: list[str]) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]  # the base comes from the package at hand
        """Keeps warnings and errors; TensorRT's own logger would print thousands of lines."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING):
                messages.append(f"{severity.name}: {message}")

    return Collector()


def _bits(flags: Any, names: tuple[str, ...]) -> int:
    return sum(1 << int(getattr(flags, name)) for name in names)


def _refusal(error: Any) -> ParserMessage:
    """Node names and operators came to the Python binding with 10.x."""
    node = str(error.node_name()) if hasattr(error, "node_name") else f"#{error.node()}"
    operator = str(error.node_operator()) if hasattr(error, "node_operator") else ""
    return ParserMessage(node, operator, str(error.desc()))


def _config(trt: Any, builder: Any, network: Any, recipe: Recipe, plan: BuildPlan, options: argparse.Namespace) -> Any:
    config = builder.create_builder_config()
    for name in plan.set_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in plan.clear_flags:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if plan.has_levels:
        config.builder_optimization_level = options.level
    if plan.targets_by_capability and options.compute_capability:
        config.num_compute_capabilities = len(options.compute_capability)
        for index, capability in enumerate(options.compute_capability):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
    if recipe.shapes:
        profile = builder.create_optimization_profile()
        for name, shape in recipe.shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        config.add_optimization_profile(profile)
    for layer in (network.get_layer(i) for i in range(network.num_layers) if plan.pinned_nodes):
        if layer.name in plan.pinned_nodes:
            layer.precision = trt.DataType.FLOAT
    return config


def _timing_cache(config: Any, plan: BuildPlan, path: Path | None) -> Any:
    """Load measured kernel times of earlier builds on this device, or start empty; None when there is no cache."""
    if path is None or not plan.has_timing_cache:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


if __name__ == "__main__":
    end_with_parent(os.getppid())  # a builder that hangs must not outlive whoever waits for it
    sys.exit(main())
