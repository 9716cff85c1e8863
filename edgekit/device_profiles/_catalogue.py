"""Finding and reading profiles: ``data/<id>.toml``, or a TOML file of the user's own."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from edgekit.device_profiles._profile import ENGINES, PRECISIONS, DeviceProfile, EngineClaim
from edgekit.errors import UnknownNameError, UsageError

__all__ = ["list_profiles", "load_profile"]

_DATA = resources.files("edgekit.device_profiles") / "data"
_NOT_INHERITED = ("aliases", "inherits", "verified_by")
_STATUSES = ("fast", "works", "storage", "no")


def list_profiles() -> list[DeviceProfile]:
    """All profiles that EdgeKit ships, sorted by id."""
    return [_shipped(name) for name in _shipped_names()]


def load_profile(device: str) -> DeviceProfile:
    """The profile of a device.

    Args:
        device: an id, an alias, or a path that ends in ``.toml``.

    Raises:
        UnknownNameError: no such device, key, engine or precision; the message offers the nearest.
        UsageError: a value of the wrong type, or a file that is not TOML.
    """
    if device.endswith(".toml"):
        path = Path(device)
        if not path.is_file():
            raise UsageError(device, "no such file", "a device profile in TOML", "check the path")
        return _parse(path.stem, path.read_text("utf-8"), device)
    name = device.lower()
    if name in _shipped_names():
        return _shipped(name)
    aliases = _aliases()
    if name in aliases:
        return _shipped(aliases[name])
    raise UnknownNameError("device", device, [*_shipped_names(), *aliases], "edgekit devices lists them all")


@cache
def _shipped_names() -> tuple[str, ...]:
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _DATA.iterdir() if entry.name.endswith(".toml")))


@cache
def _aliases() -> dict[str, str]:
    return {alias: profile.id for profile in list_profiles() for alias in profile.aliases}


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
msgspec.json.Decoder(DeviceProfile)


@cache
def _shipped(name: str) -> DeviceProfile:
    return _parse(name, (_DATA / f"{name}.toml").read_text("utf-8"), f"{name}.toml")


def _parse(name: str, text: str, where: str) -> DeviceProfile:
    table = _resolve(name, text, where)
    _check_keys(table, where)
    try:
        return msgspec.convert(table, DeviceProfile)
    except msgspec.ValidationError as exc:
        raise UsageError(where, str(exc), "the types of docs/device-profiles.md", "correct the value") from exc


def _resolve(name: str, text: str, where: str) -> dict[str, Any]:
    """The file's table over its parent's (single inheritance); tables merge by key, lists are replaced."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(where, f"not TOML: {exc}", "", "correct the line") from exc
    parent = table.get("inherits")
    if parent is not None:
        if parent not in _shipped_names():
            raise UnknownNameError(f"{where}: inherits", str(parent), _shipped_names())
        base = msgspec.to_builtins(_shipped(parent))
        merged = {key: value for key, value in base.items() if key not in _NOT_INHERITED}
        for key, value in table.items():
            # Accelerators are a set of parts, not defaults to extend: a module without a DLA must be able to say so.
            extends = isinstance(value, dict) and key != "accelerators"
            merged[key] = {**merged.get(key, {}), **value} if extends else value
        table = merged
    return {**table, "id": name}


def _check_keys(table: dict[str, Any], where: str) -> None:
    known = set(DeviceProfile.__struct_fields__)
    for key in table:
        if key not in known:
            raise UnknownNameError(f"{where}: key", key, known)
    for missing in ("title", "family", "arch", "os", "engines", "precisions", "memory_bytes", "sources"):
        if missing not in table:
            raise UsageError(where, f"no {missing}", "the required keys of docs/device-profiles.md", f"add {missing}")
    if not isinstance(table["engines"], (list, tuple)) or not table["engines"]:
        raise UsageError(f"{where}: engines", "none", "one [[engines]] table at least", "add one")
    for engine in table["engines"]:
        for key in engine:
            if key not in EngineClaim.__struct_fields__:
                raise UnknownNameError(f"{where}: engines key", key, EngineClaim.__struct_fields__)
        if engine.get("name") not in ENGINES:
            raise UnknownNameError(f"{where}: engine", str(engine.get("name")), ENGINES)
    for precision, status in table["precisions"].items():
        if precision not in PRECISIONS:
            raise UnknownNameError(f"{where}: precision", precision, PRECISIONS)
        if status not in _STATUSES:
            raise UnknownNameError(f"{where}: precisions.{precision}", str(status), _STATUSES)
