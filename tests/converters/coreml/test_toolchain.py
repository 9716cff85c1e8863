"""Loading coremltools: frameworks stay out, and nothing stays blocked."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from edgekit.converters.coreml._toolchain import _FRAMEWORKS, _hidden, load
from edgekit.errors import EnvironmentMissingError


def test_frameworks_can_be_imported_afterwards():
    load()
    assert all(sys.modules.get(name, name) is not None for name in _FRAMEWORKS)


def test_hidden_modules_are_absent_in_the_block_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with _hidden(("colorsys", "json")):
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json") is json  # was loaded before, so it stays
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)


def test_without_coremltools_the_extra_is_named():
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'edgekit-ml\[coreml\]'"):
        _load_without_coremltools()


def _load_without_coremltools() -> None:
    held = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "coremltools"}
    for name in held:
        del sys.modules[name]
    sys.modules["coremltools"] = None  # type: ignore[assignment] # blocks the import
    try:
        load.__wrapped__()
    finally:
        del sys.modules["coremltools"]
        sys.modules.update(held)


def test_version_and_targets():
    tools = load()
    assert tools.version.split(".")[0].isdigit()
    assert tools.target("").name == tools.target("iOS16").name
    assert tools.target("macOS14") == tools.target("iOS17")
