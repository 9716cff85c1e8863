"""One command line builds one command."""

import pytest
import typer

from edgekit.cli._app import _asked, app

NAMES = [entry.name for entry in (*app.registered_commands, *app.registered_groups)]


def built(*arguments):
    return typer.main.get_command(_asked(arguments)).commands


def test_every_command_has_a_name_to_be_found_by():
    assert all(NAMES)
    assert sorted(NAMES) == sorted(built())


@pytest.mark.parametrize("name", ["serve", "models"])
def test_only_what_is_asked_for_is_built(name):
    assert list(built(name, "--help")) == [name]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--help", "serve"), ("--version",), ("srve",)])
def test_what_names_no_command_meets_them_all(arguments):
    assert sorted(built(*arguments)) == sorted(NAMES)
