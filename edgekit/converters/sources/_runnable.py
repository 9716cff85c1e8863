"""Bring a source's opset and IR version into what the installed ONNX Runtime runs, without changing what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters._version_cap import MAX_IR_VERSION, MAX_OPSET, cap_opset
from edgekit.converters.sources._judge import ONNX_DOMAINS, first_line
from edgekit.errors import EnvironmentMissingError, ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["Runnable", "loads", "make_runnable", "open_session"]

_LIFTED = 7
"""First opset without the implicit ``broadcast`` and ``consumed_inputs`` attributes; ONNX Runtime has no kernels for many older operators."""

# ``passes`` as `SourceModel` has them, and sentences for the user.
Runnable = tuple[tuple[str, ...], tuple[str, ...]]


def make_runnable(path: Path, model: onnx.ModelProto, opset: int, weights: Path | None = None) -> Runnable:
    """Change a checked model in place where ONNX Runtime would not load it as it is.

    A newer opset is named as an older one where that is exact (`cap_opset`). One below 7 is lifted to 7 by onnx's converter, but only where ONNX
    Runtime has no kernels for the original: what it can run stays as it is, and normalisation proves the lifted form against it.

    Returns:
        ids of the passes that ran (``common::inline_functions``, ``common::cap_versions``, ``common::lift_opset``), and notes.

    Raises:
        UnsupportedOperatorsError: operators of a newer opset that have no equal.
        ModelError: an older opset that the converter cannot lift.
    """
    passes: list[str] = []
    if opset > MAX_OPSET and model.functions:
        import onnx.inliner

        model.CopyFrom(onnx.inliner.inline_local_functions(model))
        passes.append("common::inline_functions")
    if cap_opset(model, MAX_OPSET, str(path)) or model.ir_version > MAX_IR_VERSION:
        passes.append("common::cap_versions")
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    if 0 < opset < _LIFTED and not loads(model, weights):
        _lift(path, model, opset)
        note = f"opset {opset} was lifted to {_LIFTED} by onnx's version converter; ONNX Runtime cannot run the original to compare with"
        return (*passes, "common::lift_opset"), (note,)
    return tuple(passes), ()


def loads(model: onnx.ModelProto, weights: Path | None = None) -> bool:
    """Whether ONNX Runtime loads a model."""
    try:
        open_session(model, weights)
    except EnvironmentMissingError:
        raise
    except Exception:  # noqa: BLE001 - its errors have no common base
        return False
    return True


def open_session(model: onnx.ModelProto | str, weights: Path | None = None, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; failures come back as its exceptions, warnings are kept quiet.

    Args:
        model: protobuf, or the path of a file.
        weights: folder of the external data that the protobuf still refers to.
        threads: 1 makes the order of sums independent of the machine's cores; 0 lets ONNX Runtime choose.

    Raises:
        EnvironmentMissingError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("the reference run", "onnxruntime", "onnxruntime") from exc
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    content = model if isinstance(model, str) else model.SerializeToString(deterministic=True)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# --- old opsets ----------------------------------------------------------------------------------------------------------------------------


def _lift(path: Path, model: onnx.ModelProto, opset: int) -> None:
    import onnx
    import onnx.version_converter

    _reshape_slopes(path, model)
    try:
        lifted = onnx.version_converter.convert_version(model, _LIFTED)
        onnx.checker.check_model(lifted)
    except Exception as exc:  # the converter raises RuntimeError, ValueError and errors of its own
        raise ModelError(
            str(path), f"opset {opset} cannot be lifted to {_LIFTED}: {first_line(exc)}", "", "export the model again with a newer opset"
        ) from exc
    lifted.graph.ClearField("value_info")
    model.CopyFrom(lifted)


def _reshape_slopes(path: Path, model: onnx.ModelProto) -> None:
    """PRelu's slope for each channel, [C], becomes [C,1,…]: since opset 7 it broadcasts from the right. onnx's converter does not do it (1.23)."""
    import onnx

    slopes = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type == "PRelu" and node.domain in ONNX_DOMAINS}
    if not slopes:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for slope, data in slopes.items():
        tensor = constants.get(slope)
        readers = [node for node in model.graph.node if slope in node.input]
        if tensor is None or data not in ranks or any(node.op_type != "PRelu" for node in readers):
            raise ModelError(
                str(path), f"PRelu takes its slope from {slope!r}", "a constant of its own", "export the model again with opset 7 or newer"
            )
        if len(tensor.dims) == 1 and tensor.dims[0] > 1:
            array = onnx.numpy_helper.to_array(tensor)
            shaped = np.reshape(array, (-1, *[1] * (ranks[data] - 2)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(shaped, slope))
