"""The generated protobuf classes of the Core ML specification, as coremltools ships them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from edgekit.errors import EnvironmentMissingError

__all__ = ["model_proto"]

_ALIAS = "_edgekit_coreml_proto"


def model_proto() -> ModuleType:
    """The module ``Model_pb2``.

    ``import coremltools`` also imports TensorFlow and PyTorch where they are installed (seconds); the generated classes need none of it. So, unless coremltools
    is loaded already, its ``proto`` folder is loaded as a package of its own. Both ways give the same classes: descriptors are unique in the process's pool.

    Raises:
        EnvironmentMissingError: coremltools or protobuf is not installed.
    """
    missing = EnvironmentMissingError.for_extra("the Core ML reference interpreter", "coremltools", "coreml")
    try:
        if "coremltools" in sys.modules:
            return importlib.import_module("coremltools.proto.Model_pb2")
        if _ALIAS not in sys.modules:
            spec = importlib.util.find_spec("coremltools")
            if spec is None or spec.origin is None:
                raise missing
            _load_alias(Path(spec.origin).parent / "proto")
        return importlib.import_module(f"{_ALIAS}.Model_pb2")
    except ImportError as exc:
        raise missing from exc


def _load_alias(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(_ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(str(folder))
    module = importlib.util.module_from_spec(spec)
    sys.modules[_ALIAS] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[_ALIAS]
        raise
