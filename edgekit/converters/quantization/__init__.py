"""int8 in the graph: one calibration on the normalised float model, written as each engine wants it, with the layers that need it kept in float.

::

    prepare -> collect (once) -> make_plan (per engine) -> climb (what stays in float) -> write_quantised

`quantise` does all of it for one engine. See ``docs/precision.md``.
"""

from edgekit.converters.quantization._calibration import METHODS, Calibration, TensorRange, collect
from edgekit.converters.quantization._compress import COMPRESSING_ENGINES, Compression, compress, parse_compression
from edgekit.converters.quantization._constants import with_float_constants
from edgekit.converters.quantization._index import ModelIndex
from edgekit.converters.quantization._ladder import Ladder, Rung, climb
from edgekit.converters.quantization._plan import Plan, make_plan
from edgekit.converters.quantization._prepare import prepare
from edgekit.converters.quantization._quantise import (
    DEFAULT_AGREEMENT,
    MAX_CALIBRATION,
    Calibrated,
    Quantization,
    calibrate,
    check_settings,
    quantise,
)
from edgekit.converters.quantization._scheme import Scheme, scheme_for
from edgekit.converters.quantization._write import write_quantised

__all__ = [
    "COMPRESSING_ENGINES",
    "DEFAULT_AGREEMENT",
    "MAX_CALIBRATION",
    "METHODS",
    "Calibrated",
    "Calibration",
    "Compression",
    "Ladder",
    "ModelIndex",
    "Plan",
    "Quantization",
    "Rung",
    "Scheme",
    "TensorRange",
    "calibrate",
    "check_settings",
    "climb",
    "collect",
    "compress",
    "make_plan",
    "parse_compression",
    "prepare",
    "quantise",
    "scheme_for",
    "with_float_constants",
    "write_quantised",
]
