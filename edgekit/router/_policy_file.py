"""Reading a policy file. Whatever is wrong with it is one line: where, what was found, what was expected."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgekit._storage_errors import storage_errors
from edgekit.errors import UnknownNameError, UsageError
from edgekit.router._policy import DefaultSection, ModelSection, Policy, PolicyFile

__all__ = ["parse_policy", "read_policy"]

_MAX_BYTES = 1 << 20
_Path = tuple[str, ...]


def read_policy(path: Path) -> Policy:
    """The policy of a file.

    Raises:
        StorageError: the file cannot be read.
        UsageError: its content is wrong.
    """
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(str(path), f"more than {_MAX_BYTES} bytes", "a policy file")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(str(path), f"byte {exc.start} is not UTF-8", "a policy file in TOML") from exc
    return parse_policy(text, str(path))


def parse_policy(text: str, where: str = "policy") -> Policy:
    """The policy that ``text`` says; ``where`` names it in errors.

    Raises:
        UsageError: not TOML, an unknown key (`UnknownNameError`), a value of the wrong kind, or two that contradict each other.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(where, f"not TOML: {exc}", "", "correct the line") from exc
    reader = _Reader(text, where)
    file = reader.read(table, PolicyFile, ())
    reader.check(file)
    return Policy(file)


class _Reader:
    """Walks the tables beside their types, so that an error knows the key's whole path and its line."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where

    def read(self, table: Any, kind: Any, path: _Path) -> Any:
        """``table`` as an instance of the struct ``kind``."""
        if not isinstance(table, dict):
            raise self._wrong(path, table, "a table")
        hints = _hints(kind)
        for key in table:
            if key not in hints:
                raise UnknownNameError(f"{self._at((*path, key))}: key of {'.'.join(path) or 'the file'}", key, hints)
        values = {key: self._value(value, hints[key], (*path, key)) for key, value in table.items()}
        missing = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in table]
        if missing:
            raise UsageError(f"{self._at(path)}: {'.'.join(path)}", f"no {missing[0]}", _expected(hints[missing[0]]), "add it")
        return kind(**values)

    def check(self, file: PolicyFile) -> None:
        """What no table can know by itself."""
        sides: list[tuple[_Path, DefaultSection | ModelSection]] = [(("default",), file.default)]
        sides += [(("models", name), model) for name, model in file.models.items()]
        for path, side in sides:
            for text in side.priority:
                if not (text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 10):
                    raise self._wrong((*path, "priority", text), text, "a priority: 1 for the most urgent, 2 for the default, or more")
        for name, model in file.models.items():
            self._check_data(file, name, model)

    def _check_data(self, file: PolicyFile, name: str, model: ModelSection) -> None:
        path = ("models", name)
        kind = model.cascade.kind if model.cascade is not None else "score"
        if model.cascade is not None and kind != "score" and not 0 <= model.cascade.below <= 1:
            raise self._wrong((*path, "cascade", "below"), model.cascade.below, f"a margin of {kind}, from 0 to 1")
        if (model.data or file.default.data) != "edge-only":
            return
        cloud = [key for key in ("cascade", "shadow") if getattr(model, key) is not None]
        if model.canary is not None and model.canary.tier != "edge":
            cloud.append("canary")
        if cloud:
            raise UsageError(
                f"{self._at((*path, cloud[0]))}: models.{name}.{cloud[0]}",
                "asks the cloud, and the model is edge-only",
                "one of the two",
                f'remove it, or say data = "cloud-allowed" for {name}',
            )

    def _value(self, value: Any, hint: Any, path: _Path) -> Any:
        struct = next((kind for kind in _alternatives(hint) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)), None)
        if struct is not None:
            return self.read(value, struct, path)
        if typing.get_origin(hint) is dict:
            if not isinstance(value, dict):
                raise self._wrong(path, value, "a table")
            if "" in value:
                raise self._wrong((*path, ""), "", "a name")
            return {key: self.read(entry, typing.get_args(hint)[1], (*path, key)) for key, entry in value.items()}
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError as exc:
            raise self._wrong(path, value, _expected(hint)) from exc

    def _wrong(self, path: _Path, value: Any, expected: str) -> UsageError:
        return UsageError(f"{self._at(path)}: {'.'.join(path)}", repr(value), expected, "correct the value")

    def _at(self, path: _Path) -> str:
        line = _line_of(self._text, path)
        return f"{self._where} line {line}" if line else self._where


def _hints(kind: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(kind, include_extras=True).items() if name in kind.__struct_fields__}


def _alternatives(hint: Any) -> Iterator[Any]:
    """The types of a union, or the one type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for inner in typing.get_args(hint):
            yield from _alternatives(inner)
    elif hint is not type(None):
        yield hint


def _expected(hint: Any) -> str:
    """The description that the type of a key carries."""
    for kind in _alternatives(hint):
        if typing.get_origin(kind) is Annotated:
            return str(next(meta.description for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta)))
        if typing.get_origin(kind) is typing.Literal:
            return " or ".join(map(repr, typing.get_args(kind)))
    return "a table"


def _line_of(text: str, path: _Path) -> int | None:
    """The line that ends the shortest beginning of the file in which the key is there. Only asked when something is wrong, so its cost does not matter."""
    lines = text.splitlines()
    for count in range(1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]) + "\n")
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if path and found is not None:
            return count
    return None
