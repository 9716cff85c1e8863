"""A reference interpreter for saved Core ML ML Programs, in numpy.

It reads only the files of an ``.mlpackage`` (manifest, model specification, weights), shares no code with the emitter that wrote them, and checks
every tensor that it computes against the type that the program declares. It proves the artifact, not a device: Core ML's own kernels may differ in
rounding and in what runs in half precision.
"""

from edgekit.converters.coreml_reference._interpreter import Interpreter, TensorInfo, run_package
from edgekit.converters.coreml_reference._registry import supported_ops

__all__ = ["Interpreter", "TensorInfo", "run_package", "supported_ops"]
