"""Triton's log settings, as one server has them. Transport-free; values are those of the JSON form.

Reference: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_logging.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from edgekit.errors import RequestError
from edgekit.protocol._tensors import shorten

__all__ = ["LogSettings"]

# From the quietest to the loudest; each includes those before it.
_FLAGS = (("log_error", logging.ERROR), ("log_warning", logging.WARNING), ("log_info", logging.INFO))
_SILENT = logging.CRITICAL + 10
_FIXED_LOG: dict[str, Any] = {"log_file": "", "log_format": "default"}


class LogSettings:
    """What EdgeKit's own log shows. A change takes effect at once, in the whole process.

    Args:
        logger: whose level is set; that of the package.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("edgekit")
        self._default = self._logger.level

    def read(self) -> dict[str, bool | int | str]:
        """``log_error``, ``log_warning``, ``log_info`` (bool), ``log_verbose_level`` (0 or 1), ``log_file`` and ``log_format`` (fixed)."""
        level = self._logger.getEffectiveLevel()
        flags = {name: level <= at for name, at in _FLAGS}
        return {**flags, "log_verbose_level": int(level <= logging.DEBUG), **_FIXED_LOG}

    def update(self, wanted: Mapping[str, Any]) -> dict[str, bool | int | str]:
        """Change some settings; ``None`` resets the level to what it was at the start. Returns all settings after it.

        Raises:
            RequestError: an unknown setting or kind of value, a file or format, or flags that no level has (info without warnings).
        """
        for key, value in wanted.items():
            if value is not None:
                _check_log(key, value)
        before = self._logger.level
        if any(value is None for value in wanted.values()):
            self._logger.setLevel(self._default)
        loud = dict.fromkeys(dict(_FLAGS), True) if wanted.get("log_verbose_level") else {}
        merged = {**self.read(), **loud, **{key: value for key, value in wanted.items() if value is not None}}
        try:
            self._logger.setLevel(_level(merged))
        except RequestError:
            self._logger.setLevel(before)
            raise
        return self.read()


def _check_log(key: str, value: Any) -> None:
    thing = f"log setting {shorten(key)!r}"
    if key in _FIXED_LOG:
        if value != _FIXED_LOG[key]:
            raise RequestError(thing, shorten(repr(value)), repr(_FIXED_LOG[key]), "redirect the server's standard error instead")
    elif key == "log_verbose_level":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise RequestError(thing, shorten(repr(value)), "0 (off) or more")
    elif key in dict(_FLAGS):
        if not isinstance(value, bool):
            raise RequestError(thing, shorten(repr(value)), "true or false")
    else:
        known = ", ".join([*dict(_FLAGS), "log_verbose_level", *_FIXED_LOG])
        raise RequestError(thing, "no such setting", f"one of {known}")


def _level(settings: Mapping[str, Any]) -> int:
    """The logging level of merged settings."""
    if settings["log_verbose_level"]:
        off = [name for name, _ in _FLAGS if not settings[name]]
        if off:
            raise RequestError(
                f"log setting {off[0]!r}",
                "off while log_verbose_level is on",
                "on, which verbose includes",
                "set log_verbose_level to 0 as well",
            )
        return logging.DEBUG
    level = _SILENT
    for position, (name, at) in enumerate(_FLAGS):
        if settings[name]:
            missing = [quieter for quieter, _ in _FLAGS[:position] if not settings[quieter]]
            if missing:
                raise RequestError(f"log setting {name!r}", f"on while {missing[0]} is off", "both", f"set {missing[0]} to true as well")
            level = at
    return level
