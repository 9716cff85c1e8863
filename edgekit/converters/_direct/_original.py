"""The TensorFlow function of a job, with the job's shapes and names that every converter takes."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import Any

from edgekit.converters._emitter import EmitJob
from edgekit.converters.sources._judge import unique
from edgekit.converters.sources._tensorflow import import_tensorflow, open_original, quiet_tensorflow
from edgekit.errors import BuildError

__all__ = ["Function", "function_of"]


@dataclass(frozen=True)
class Function:
    """A concrete function.

    Attributes:
        module: owns it.
        concrete: arguments are called ``inputs``; results are a dict with the keys ``outputs``, in order.
        inputs: in the order of the source's signature; Python identifiers made from the source's names.
        outputs: in the order of the source's signature.
    """

    module: Any
    concrete: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def function_of(job: EmitJob) -> Function:
    """The job's TensorFlow original, traced at the shapes of its normalised form.

    Raises:
        ModelError, EnvironmentMissingError: see `open_original`.
        BuildError: the original's interface is not what it was when the source was read.
    """
    native = job.source.native
    assert native is not None  # `is_direct` asked
    signature = job.source.signature
    original = open_original(native.path, native.kind, native.signature_key)
    if tuple(name for name, _, _ in original.inputs) != native.inputs or tuple(name for name, _, _ in original.outputs) != native.outputs:
        raise BuildError(str(native.path), "it changed while it was built", "one model", "build it again")
    taken: set[str] = set()
    names = tuple(_identifier(spec.name, taken) for spec in signature.inputs)
    _module, concrete = original.concrete(names, [spec.shape for spec in signature.inputs])
    return Function(*_frozen(concrete), names, tuple(sorted(concrete.structured_outputs)))


def _frozen(concrete: Any) -> tuple[Any, Any]:
    """The same function with its variables as constants: TFLite's converter makes resources of those that it cannot prove to be constant, and
    their values are lost (TensorFlow 2.21; NaN in every convolution of a Keras model that is called inside a function).
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf = import_tensorflow()
    keys, arguments = sorted(concrete.structured_outputs), concrete.structured_input_signature[0]
    with quiet_tensorflow():
        constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        module = tf.Module()
        module.function = tf.function(
            lambda *tensors: dict(zip(keys, map(tf.identity, constant(*tensors)), strict=True)), input_signature=arguments, autograph=False
        )
        return module, module.function.get_concrete_function()


def _identifier(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    plain = plain if plain[:1].isalpha() else f"t_{plain}"
    return unique(f"{plain}_" if plain == "self" or keyword.iskeyword(plain) else plain, taken)
