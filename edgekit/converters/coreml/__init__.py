"""ONNX to Core ML: a front end of our own on MIL, coremltools' intermediate language.

The plain graph (`edgekit.converters._graph`) is turned into a MIL program by one handler an operator, coremltools' passes optimise it, and the
result is saved as ``model.mlpackage`` (ML Program, specification version 7 or newer). Core ML is NCHW as ONNX is, so axes stay as they are.

A second Apple target stands beside this one, not in it: Core AI (``.aimodel``) would be a package ``edgekit.converters.coreai`` with an ``EMITTERS`` of its
own and one line in ``edgekit.converters._emitters``. What both would share is already outside of this package: the plain graph, the registry
with its rules, the range scan (`edgekit.converters._ranges`) and the seam `edgekit.converters._emitter`.
"""

from edgekit.converters._emitter import Emitter
from edgekit.converters.coreml import (  # noqa: F401 # they register handlers
    _activation,
    _arithmetic,
    _conv,
    _generate,
    _index,
    _linear,
    _math,
    _norm,
    _pad,
    _pool,
    _quantised,
    _recurrent,
    _reduction,
    _resize,
    _tensor,
)
from edgekit.converters.coreml._context import ops
from edgekit.converters.coreml._emitter import PACKAGE, CoreMLEmitter
from edgekit.runtime.engines._coreml import logical_outputs, native_inputs

__all__ = ["EMITTERS", "PACKAGE", "CoreMLEmitter", "logical_outputs", "native_inputs", "ops"]

EMITTERS: dict[str, Emitter] = {"coreml": CoreMLEmitter()}
