"""`load`: from a path to a `Session`."""

from __future__ import annotations

import os

from edgekit.bundle import Bundle
from edgekit.errors import UnknownNameError
from edgekit.runtime._session import Session
from edgekit.runtime.engines import EngineOptions

__all__ = ["load"]


def load(bundle: str | os.PathLike[str] | Bundle, **options: str | int) -> Session:
    """Open a bundle and load it with the engine it names.

    Args:
        bundle: a bundle directory, an ``.edgekit`` file, or an opened `Bundle`.
        options: fields of `EngineOptions`, for example ``threads``, ``accelerator`` or ``cache_dir``.

    Raises:
        BundleError: there is no bundle, or it cannot be read.
        IntegrityError: a file is not what was built.
        UnknownNameError: no such option.
        EnvironmentMissingError: the engine is not installed, and no fallback can be loaded.
        EngineError: the engine refuses the artifact, and no fallback can be loaded.
    """
    for name in options:
        if name not in EngineOptions.__struct_fields__:
            raise UnknownNameError("option", name, EngineOptions.__struct_fields__)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, to_run=True)
    return Session(opened, EngineOptions(**options))  # type: ignore[arg-type]  # names were checked, types are the caller's
