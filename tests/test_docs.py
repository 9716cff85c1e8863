"""Documentation says what is true: generated pages are current, links lead somewhere, commands exist."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import typer

from edgekit.cli._app import tree

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current():
    assert generator().outdated() == [], "run python docs/generate.py"


def test_a_stale_page_is_noticed(tmp_path, monkeypatch):
    module = generator()
    monkeypatch.setattr(module, "DOCS", tmp_path)
    assert module.main([]) == 0
    (tmp_path / "devices.md").write_text((tmp_path / "devices.md").read_text() + "x")
    assert module.outdated() == ["devices.md"]
    assert module.main(["--check"]) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_the_text_exist(page):
    group = typer.main.get_command(tree())
    for words in re.findall(r"^\s*(?:\$ )?edgekit ([a-z]+)(?: ([a-z]+))?", page.read_text("utf-8"), flags=re.MULTILINE):
        command = group.commands.get(words[0])
        assert command is not None, words
        if words[1] and hasattr(command, "commands"):
            assert words[1] in command.commands, words


def test_the_python_of_the_readme_compiles():
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL):
        compile(block, "README.md", "exec")


def test_the_changelog_names_the_version():
    from edgekit._version import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert sys.version_info >= (3, 11)


def test_every_reason_of_the_router_is_explained():
    from edgekit.router._decide import Reason

    page = (ROOT / "docs/routing.md").read_text("utf-8")
    assert [reason.value for reason in Reason if f"| `{reason.value}` |" not in page] == []
