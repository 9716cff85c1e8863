"""Keras models and SavedModels as one TensorFlow function with named inputs and outputs in a fixed order.

Names. A Keras input has the name of its input layer. A Keras output has its key where the model returns a dict, else the name of the layer that
computes it; further outputs of the same layer get ``_2``, ``_3``. A SavedModel's signature names both; it knows no order, so they are sorted the
way people count (``output_2`` before ``output_10``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Dim
from edgekit.converters.sources._judge import first_line, unique
from edgekit.errors import EnvironmentMissingError, ModelError, UnknownNameError, UsageError

__all__ = ["Original", "import_tensorflow", "open_original", "quiet_tensorflow"]

_DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Original:
    """A TensorFlow model.

    Attributes:
        signature_key: of a SavedModel; empty for Keras.
        inputs: name, dtype and dimensions (None: open) of every input, in order.
        outputs: the same of every output; a rank that TensorFlow does not know is None.
        call: takes tensors in order, gives tensors in order.
        holder: what owns the variables; TensorFlow drops them with it.
    """

    signature_key: str
    inputs: tuple[tuple[str, str, tuple[int | None, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int | None, ...] | None], ...]
    call: Callable[..., list[Any]]
    holder: Any

    def concrete(self, names: Sequence[str] | None = None, shapes: Sequence[Sequence[Dim | None]] | None = None) -> tuple[Any, Any]:
        """A module and its concrete function with these argument names and shapes; results are a dict by output position, ``o0000``,
        ``o0001``, …: TensorFlow sorts keys.

        Args:
            names: Python identifiers, in order of the inputs; ``i0``, ``i1``, … without.
            shapes: sizes, symbols and None are open dimensions; the model's own without.
        """
        tf = import_tensorflow()
        wanted = shapes or [dims for _, _, dims in self.inputs]
        signature = [
            tf.TensorSpec([dim if isinstance(dim, int) else None for dim in dims], dtype, name)
            for (_, dtype, _), dims, name in zip(self.inputs, wanted, names or [f"i{i}" for i in range(len(self.inputs))], strict=True)
        ]

        def build(*tensors: Any) -> dict[str, Any]:
            # An output of its own also where it is an input or another output.
            return {f"o{index:04}": tf.identity(tensor) for index, tensor in enumerate(self.call(*tensors))}

        module = tf.Module()
        module.original = self.holder
        module.function = tf.function(build, input_signature=signature, autograph=False)
        with quiet_tensorflow():
            return module, module.function.get_concrete_function()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Answers of the original itself."""
        tf = import_tensorflow()
        with quiet_tensorflow():
            return [np.asarray(tensor) for tensor in self.call(*[tf.constant(array) for array in inputs])]


def open_original(path: Path, kind: str, signature_key: str = "") -> Original:
    """Load a Keras file or a SavedModel.

    Args:
        path: file or directory.
        kind: ``keras`` or ``saved-model``.
        signature_key: of a SavedModel; the only one, or ``serving_default``, when empty.

    Raises:
        EnvironmentMissingError: TensorFlow is not installed.
        ModelError: it cannot be loaded, would need code that is not in it, or has inputs that are no dense numeric tensors.
        UsageError: several signatures and none chosen. UnknownNameError: no such signature.
    """
    import_tensorflow()
    return _open_keras(path) if kind == "keras" else _open_saved_model(path, signature_key)


# --- TensorFlow itself ---------------------------------------------------------------------------------------------------------------------


def import_tensorflow() -> Any:
    """The package, without its greetings.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with quiet_tensorflow():
            import tensorflow as tf
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("reading TensorFlow models", "tensorflow", "convert") from exc
    return tf


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[list[str]]:
    """Keep TensorFlow's chatter off stderr; the list holds what was written once the block has ended.

    Its C++ side writes to the descriptor, so the descriptor is what is redirected. Errors come as exceptions and are not touched.
    """
    written: list[str] = []
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            sink.seek(0)
            written.extend(sink.read().decode(errors="replace").splitlines())


def _spec(path: Path, role: str, name: str, tensor: Any) -> tuple[str, str, tuple[int | None, ...]]:
    """Name, dtype and dimensions of an input."""
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    if dtype == "string" or getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
        raise ModelError(
            str(path),
            f"{role} {name!r} is {'a string' if dtype == 'string' else 'a sparse or ragged tensor'}",
            "dense numeric tensors",
            "export the part of the model behind its preprocessing",
        )
    if tensor.shape is None or getattr(tensor.shape, "rank", 0) is None:
        raise ModelError(str(path), f"{role} {name!r} has no rank", "a declared rank", "save the model with an input signature")
    return name, str(dtype), tuple(tensor.shape)


# --- Keras ---------------------------------------------------------------------------------------------------------------------------------


def _open_keras(path: Path) -> Original:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            str(path), f"Keras runs on {keras.backend.backend()} here", "its TensorFlow backend", "set KERAS_BACKEND=tensorflow"
        )
    try:
        with quiet_tensorflow():
            # Safe mode: a file must not run code of its own (Lambda layers).
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as exc:
        raise ModelError(
            str(path),
            f"Keras cannot load it: {first_line(exc)}",
            "a .keras file of built-in layers",
            "where it has code of your own, load it there and write a SavedModel with model.export(DIRECTORY)",
        ) from exc
    if not getattr(model, "inputs", None):
        raise ModelError(
            str(path), "the model was never built: it has no input shapes", "a built model", "call it once on real data and save it again"
        )
    structure = getattr(model, "_outputs_struct", None)
    keys = sorted(structure) if isinstance(structure, dict) and len(structure) == len(model.outputs) else []
    taken: set[str] = set()
    names = [
        unique(key or tensor._keras_history.operation.name, taken)
        for key, tensor in zip(keys or [""] * len(model.outputs), model.outputs, strict=True)
    ]
    nested = getattr(model, "_inputs_struct", model.inputs[0] if len(model.inputs) == 1 else model.inputs)

    def call(*tensors: Any) -> list[Any]:
        results = model(keras.tree.pack_sequence_as(nested, list(tensors)), training=False)
        return list(keras.tree.flatten(results))

    return Original(
        "",
        tuple(_spec(path, "input", tensor.name, tensor) for tensor in model.inputs),
        tuple(_spec(path, "output", name, tensor) for name, tensor in zip(names, model.outputs, strict=True)),
        call,
        model,
    )


# --- SavedModel ----------------------------------------------------------------------------------------------------------------------------


def _open_saved_model(path: Path, wanted: str) -> Original:
    tf = import_tensorflow()
    try:
        with quiet_tensorflow():
            loaded = tf.saved_model.load(str(path))
    except Exception as exc:
        raise ModelError(
            str(path), f"TensorFlow cannot load it: {first_line(exc)}", "a SavedModel of TensorFlow 2", "save it again"
        ) from exc
    key = _choose(path, wanted, sorted(loaded.signatures))
    function = loaded.signatures[key]
    arguments = dict(sorted(function.structured_input_signature[1].items(), key=lambda item: _counted(item[0])))
    results = dict(sorted(function.structured_outputs.items(), key=lambda item: _counted(item[0])))
    if not results:
        raise ModelError(str(path), f"signature {key!r} has no outputs", "at least one output", "save it again")

    def call(*tensors: Any) -> list[Any]:
        found = function(**dict(zip(arguments, tensors, strict=True)))
        return [found[name] for name in results]

    return Original(
        key,
        tuple(_spec(path, "input", name, tensor) for name, tensor in arguments.items()),
        tuple((name, tensor.dtype.name, None if tensor.shape.rank is None else tuple(tensor.shape)) for name, tensor in results.items()),
        call,
        loaded,
    )


def _choose(path: Path, wanted: str, keys: Sequence[str]) -> str:
    if not keys:
        raise ModelError(
            str(path), "it has no signature", "a SavedModel with a serving signature", "save it with tf.saved_model.save(…, signatures=…)"
        )
    if wanted and wanted not in keys:
        raise UnknownNameError(f"--signature of {path}", wanted, keys)
    if wanted or len(keys) == 1:
        return wanted or keys[0]
    if _DEFAULT_SIGNATURE in keys:
        return _DEFAULT_SIGNATURE
    raise UsageError(str(path), f"it has {len(keys)} signatures: {', '.join(keys)}", "one to build", f"give --signature {keys[0]}")


def _counted(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
