"""A TensorFlow model as ONNX, through tf2onnx, compared with the model itself before anything is built from it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import TensorSpec
from edgekit.converters.sources._judge import first_line, graphs
from edgekit.converters.sources._onnx_file import LARGE_BYTES
from edgekit.converters.sources._runnable import open_session
from edgekit.converters.sources._tensorflow import Original, import_tensorflow, open_original, quiet_tensorflow
from edgekit.errors import BuildError, EnvironmentMissingError, ModelError, UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["EXPORT_OPSET", "Exported", "export_tensorflow"]

EXPORT_OPSET = 17
"""Written by tf2onnx 1.17 (which ends at 18), and read by every engine in the device profiles without a rewrite."""

_BATCH = "batch"
_UNSUPPORTED = re.compile(r"op \[(?P<name>[^\]:]+): (?P<op>\w+)\] is not supported")


@dataclass(frozen=True)
class Exported:
    """What an export gives; can be pickled.

    Attributes:
        model: serialized ONNX with the original's names, order and dimensions.
        signature_key: the signature that was taken; empty for Keras.
        inputs, outputs: the original's names, in order.
        compared: how many seeded samples gave the same outputs.
    """

    model: bytes
    signature_key: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compared: int


def export_tensorflow(tell: Callable[[str], None], path: str, kind: str, signature_key: str) -> Exported:
    """Load a Keras file or SavedModel, write it as ONNX, and run both on the same samples. Made to run in a process of its own.

    Args:
        tell: progress, in words.
        path, kind, signature_key: as for `open_original`.

    Raises:
        UnsupportedOperatorsError: TensorFlow operators that tf2onnx has no conversion for.
        BuildError: tf2onnx failed, or its model gives other numbers.
        ModelError, UsageError, EnvironmentMissingError: see `open_original`.
    """
    place = Path(path)
    tell("loading the TensorFlow model")
    original = open_original(place, kind, signature_key)
    tell("exporting it to ONNX")
    model = _convert(place, original)
    tell("comparing the export with TensorFlow")
    compared = _compare(place, original, model)
    names = tuple(name for name, _, _ in original.inputs), tuple(name for name, _, _ in original.outputs)
    return Exported(model.SerializeToString(deterministic=True), original.signature_key, *names, compared)


# --- the conversion ------------------------------------------------------------------------------------------------------------------------


def _convert(path: Path, original: Original) -> onnx.ModelProto:
    import_tensorflow()
    try:
        with quiet_tensorflow():
            import tf2onnx
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("reading TensorFlow models", "tf2onnx", "convert") from exc
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    module, function = original.concrete()
    size = sum(int(np.prod(variable.shape)) * _itemsize(variable) for variable in function.variables)
    if size >= LARGE_BYTES:
        raise ModelError(
            str(path), f"it has {size / 2**30:.1f} GiB of weights", "less than 2 GiB", "export it to ONNX with external data yourself"
        )
    with _refusals() as refused:
        try:
            with quiet_tensorflow():
                frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
                names = [tensor.name for tensor in frozen.inputs], [tensor.name for tensor in frozen.outputs]
                definition = frozen.graph.as_graph_def()
                model, _ = tf2onnx.convert.from_graph_def(definition, input_names=names[0], output_names=names[1], opset=EXPORT_OPSET)
        except Exception as exc:
            if refused:
                step = "rewrite these layers with common operators, or export the model to ONNX yourself"
                raise UnsupportedOperatorsError(f"{path}: tf2onnx", refused, step) from exc
            raise BuildError(f"{path}", f"tf2onnx failed: {first_line(exc)}", "", "export the model to ONNX yourself") from exc
    if refused:
        raise UnsupportedOperatorsError(f"{path}: tf2onnx", refused, "export the model to ONNX yourself")
    del module  # it held the variables
    return _named(model, original, *names)


def _itemsize(variable: Any) -> int:
    dtype = getattr(variable.dtype, "as_numpy_dtype", variable.dtype)
    return 0 if dtype in ("string", object) else int(np.dtype(dtype).itemsize)


@contextlib.contextmanager
def _refusals() -> Iterator[list[tuple[str, str, int, str]]]:
    """Operators that tf2onnx says it cannot convert; it writes them to its log and raises something shorter."""
    found: list[tuple[str, str, int, str]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = _UNSUPPORTED.finditer(record.getMessage())
            found.extend((match["name"], f"TensorFlow's {match['op']}", EXPORT_OPSET, "no conversion") for match in said)

    logger, reader = logging.getLogger("tf2onnx"), Reader(logging.ERROR)
    logger.addHandler(reader)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield found
    finally:
        logger.removeHandler(reader)
        logger.propagate = propagate


def _named(model: onnx.ModelProto, original: Original, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The model with the original's names, order and dimensions; what else had one of these names gets another."""
    import onnx

    graph = model.graph
    wanted = {old: name for old, (name, _, _) in zip((*inputs, *outputs), (*original.inputs, *original.outputs), strict=True)}
    clash = set(wanted.values())
    values = {name for node in graph.node for name in (*node.input, *node.output)} | {tensor.name for tensor in graph.initializer}
    renames = {name: f"{name}__inner" for name in values if name in clash and name not in wanted} | wanted
    for inner in graphs(graph):
        for node in inner.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = renames.get(name, name)
        for tensor in inner.initializer:
            tensor.name = renames.get(tensor.name, tensor.name)
        for value in inner.output:
            value.name = renames.get(value.name, value.name)
    del graph.value_info[:], graph.input[:], graph.output[:]
    code = onnx.helper.np_dtype_to_tensor_dtype
    graph.input.extend(onnx.helper.make_tensor_value_info(spec.name, code(np.dtype(spec.dtype)), spec.shape) for spec in _specs(original))
    for name, dtype, dims in original.outputs:
        shape = None if dims is None else [dim if dim is not None else _open(original, name, axis) for axis, dim in enumerate(dims)]
        graph.output.append(onnx.helper.make_tensor_value_info(name, code(np.dtype(dtype)), shape))
    return model


def _specs(original: Original) -> list[TensorSpec]:
    return [
        TensorSpec(name, dtype, tuple(_open(original, name, axis) if dim is None else dim for axis, dim in enumerate(dims)))
        for name, dtype, dims in original.inputs
    ]


def _open(original: Original, name: str, axis: int) -> str:
    """Name of an open dimension: the first of a Keras model is the batch, the same for all its tensors."""
    return _BATCH if axis == 0 and not original.signature_key else f"{name}_dim{axis}"


# --- the comparison ------------------------------------------------------------------------------------------------------------------------


def _compare(path: Path, original: Original, model: onnx.ModelProto) -> int:
    """How many samples both answered alike.

    Raises:
        BuildError: they differ, or ONNX Runtime cannot run what TensorFlow runs. ModelError: TensorFlow itself runs at no size that was tried.
    """
    from edgekit.converters._normalise import _INT_LIMITS, _TRIAL_SIZES, _compare, _random_inputs

    specs = _specs(original)
    error: Exception | None = None
    found = 0
    try:
        session = open_session(model)
    except Exception as exc:
        raise BuildError(str(path), f"ONNX Runtime cannot load what tf2onnx wrote: {first_line(exc)}", "", "report this model") from exc
    for size in (1,) if all(spec.is_static for spec in specs) else _TRIAL_SIZES:
        for limit in _INT_LIMITS if any("int" in spec.dtype for spec in specs) else (1,):
            inputs = _random_inputs(specs, size, limit)
            try:
                wanted = original.run([inputs[spec.name] for spec in specs])
            except Exception as exc:  # noqa: BLE001 - a size or an index that the model refuses; the next one is tried
                error = exc
                continue
            _agree(path, original, wanted, session, inputs, _compare)
            found += 1
            break
        if found == 2:
            break
    if not found:
        raise ModelError(
            str(path),
            f"TensorFlow cannot run it: {first_line(error or Exception())}",
            "a model that runs on its input signature",
            "save it again",
        )
    return found


def _agree(
    path: Path, original: Original, wanted: list[np.ndarray], session: Any, inputs: dict[str, np.ndarray], compare: Callable[..., str]
) -> None:
    try:
        got = session.run(None, inputs)
    except Exception as exc:
        raise BuildError(str(path), f"ONNX Runtime cannot run what tf2onnx wrote: {first_line(exc)}", "", "report this model") from exc
    for (name, _, _), want, have in zip(original.outputs, wanted, got, strict=True):
        if difference := compare(want, have):
            raise BuildError(
                str(path), f"what tf2onnx wrote is another model: output {name!r} {difference}", "", "export the model to ONNX yourself"
            )
