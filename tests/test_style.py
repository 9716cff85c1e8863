"""Budgets of the house style, held by measurement: module and function length, doors of packages, names that say nothing."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import edgekit

ROOT = Path(edgekit.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PACKAGES = ["bundle", "device_profiles", "protocol", "telemetry", "runtime", "router", "converters", "cloud", "cli"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_module_is_named_for_nothing():
    empty = {"utils", "helpers", "misc", "common", "manager"}
    assert [path for path in MODULES if path.stem.strip("_") in empty] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_exists(name):
    package = importlib.import_module(f"edgekit.{name}")
    assert len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        assert hasattr(package, public)


@pytest.mark.parametrize("name", PACKAGES)
def test_implementation_modules_are_private(name):
    package = importlib.import_module(f"edgekit.{name}")
    found = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    assert [module for module in found if not module.startswith("_")] == []


@pytest.mark.parametrize("link", ["converters", "runtime", "router", "device_profiles", "cloud"])
def test_root_links_lead_into_the_package(link):
    path = ROOT.parent / link
    if not path.exists() and not path.is_symlink():
        pytest.skip("not a checkout")
    assert path.resolve() == ROOT / link
