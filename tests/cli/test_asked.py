"""One command line builds one command."""

from pathlib import Path

import pytest
import typer

import edgekit.cli
from edgekit.cli._app import _MODULES, _asked, tree

NAMES = [name for names in _MODULES.values() for name in names]


def built(*arguments):
    return typer.main.get_command(_asked(arguments)).commands


@pytest.mark.parametrize("module", _MODULES)
def test_every_command_is_found_by_its_name(module):
    registered = tree([module])
    assert sorted(entry.name for entry in (*registered.registered_commands, *registered.registered_groups)) == sorted(_MODULES[module])


def test_every_module_with_commands_is_known():
    modules = {path.stem for path in Path(edgekit.cli.__file__).parent.glob("_*.py") if "\ndef register(" in path.read_text()}
    assert modules == set(_MODULES)


@pytest.mark.parametrize("name", ["serve", "models"])
def test_only_what_is_asked_for_is_built(name):
    assert list(built(name, "--help")) == [name]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--help", "serve"), ("--version",), ("srve",)])
def test_what_names_no_command_meets_them_all(arguments):
    assert sorted(built(*arguments)) == sorted(NAMES)
