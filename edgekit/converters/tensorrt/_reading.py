"""A model in the form that TensorRT parses: its dtypes, the device's opset, and operators that NVIDIA's parser takes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.converters._lowering import Lowered, lower_until, name_nodes
from edgekit.converters._opset import to_opset
from edgekit.errors import EnvironmentMissingError
from edgekit.runtime._tensorrt_build import find_package, parse_model
from edgekit.runtime._tensorrt_plan import Recipe

if TYPE_CHECKING:
    import onnx

__all__ = ["readable"]

_TIMEOUT_S = 600.0


def readable(
    model: onnx.ModelProto, ceiling: int, recipe_for: Callable[[onnx.ModelProto, bytes], Recipe]
) -> tuple[onnx.ModelProto, Lowered]:
    """The model at an opset that the device reads; what TensorRT-RTX's parser refuses, where that is installed, is lowered.

    Args:
        model: normalised.
        ceiling: newest opset of the device's TensorRT.
        recipe_for: the recipe of a model and its bytes.

    Raises:
        UnsupportedOperatorsError: nodes of the source that stand in the way.
        BuildError: the parser refused the model as a whole.
    """
    import onnx

    package = _parser()
    named = onnx.ModelProto()
    named.CopyFrom(model)
    name_nodes(named)  # the parser's complaints are told apart by name

    def attempt(made: onnx.ModelProto) -> onnx.ModelProto:
        plain = to_opset(made, ceiling)
        if package:
            _parse(package, plain, recipe_for)
        return plain

    return lower_until(named, attempt)


def _parser() -> str:
    """Package of the parser that can be asked here, "" when there is none."""
    try:
        return find_package("tensorrt-rtx")
    except EnvironmentMissingError:
        return ""


def _parse(package: str, model: onnx.ModelProto, recipe_for: Callable[[onnx.ModelProto, bytes], Recipe]) -> None:
    data = model.SerializeToString(deterministic=True)
    recipe = recipe_for(model, data)
    with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
        (Path(scratch) / recipe.onnx).write_bytes(data)
        path = Path(scratch) / "recipe.json"
        path.write_bytes(msgspec.json.encode(recipe))
        parse_model(package, path, timeout_s=_TIMEOUT_S)
