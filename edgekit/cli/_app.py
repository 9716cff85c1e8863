"""The command tree, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import importlib
import logging
import os
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from edgekit._version import __version__
from edgekit.cli._output import say, settings
from edgekit.errors import EdgeKitError, UsageError
from edgekit.telemetry import configure_logging

__all__ = ["run", "tree"]

_LOG_FORMATS = ("text", "json")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_INTERRUPTED = 130  # the shell's own status for a command that Ctrl-C ended

_MODULES = {
    "_devices": ("devices",),
    "_build": ("build", "inspect", "verify", "finalize", "run", "bench"),
    "_conformance": ("conformance",),
    "_serve": ("serve", "route", "collector"),
    "_simulate": ("simulate",),
    "_models": ("models",),
    "_policy": ("policy",),
    "_cloud": ("cloud",),
    "_demo": ("demo",),
}
"""What registers commands, in the order of the help -> their names."""


def tree(modules: Iterable[str] = _MODULES) -> typer.Typer:
    """The commands of these modules, which are imported for it."""
    app = typer.Typer(
        name="edgekit",
        help=f"EdgeKit {__version__}: build, prove, serve and route models on edge devices.\n\n"
        "Anywhere on the line: --json prints one JSON document on stdout; --debug shows tracebacks.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120},  # of --help, where the terminal is as wide
    )
    for module in modules:
        importlib.import_module(f"edgekit.cli.{module}").register(app)
    app.callback(invoke_without_command=True)(_root)
    return app


def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def run(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run one command line and return its exit status: 0 done, 1 failed, 2 wrong usage. Logging is set up in a process of its own only."""
    rest = _take_globals(arguments)
    try:
        if own_process:
            _start_logging()
        status = typer.main.get_command(_asked(rest)).main(args=rest, prog_name="edgekit", standalone_mode=False)
    except EdgeKitError as exc:
        return _fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return 1  # the reader of our output has gone (`| head`)
    except Exception as exc:  # noqa: BLE001 - the process boundary
        # Typer's usage errors, by shape: it carries its own copy of click, whose classes are not public.
        if hasattr(exc, "format_message"):
            return _usage(exc)
        if type(exc).__name__ == "Abort":
            return _INTERRUPTED
        return _fail(f"internal error: {type(exc).__name__}: {exc}; run again with --debug and report it", 1)
    return status if isinstance(status, int) else 0


def _asked(arguments: Sequence[str]) -> typer.Typer:
    """The command tree, with nothing in it but the command that is asked for, where it is one: Typer builds the parameters of all that are in it."""
    name = arguments[0] if arguments else ""
    modules = [module for module, names in _MODULES.items() if name in names]
    if not modules:
        return tree()
    only = tree(modules)
    only.registered_commands = [command for command in only.registered_commands if command.name == name]
    return only


def _start_logging() -> None:
    """Other packages' warnings as plain lines; EdgeKit's own as the environment asks, since a service manager wants them another way than a person."""
    logging.basicConfig(level=logging.DEBUG if settings.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    form = os.environ.get("EDGEKIT_LOG_FORMAT", "text")
    level = "debug" if settings.debug else os.environ.get("EDGEKIT_LOG_LEVEL", "warning")
    if form not in _LOG_FORMATS:
        raise UsageError("EDGEKIT_LOG_FORMAT", repr(form), " or ".join(_LOG_FORMATS))
    if level.lower() not in _LOG_LEVELS:
        raise UsageError("EDGEKIT_LOG_LEVEL", repr(level), ", ".join(_LOG_LEVELS))
    configure_logging(json=form == "json", level=level)


def _take_globals(arguments: Sequence[str]) -> list[str]:
    """Global options are accepted before and after the command, as scripts write them."""
    settings.json = "--json" in arguments
    settings.debug = "--debug" in arguments
    return [argument for argument in arguments if argument not in ("--json", "--debug")]


def _usage(exc: Any) -> int:
    """A usage error of Typer's as one line; a group without a command has its help instead, in lines."""
    told, status = exc.format_message(), getattr(exc, "exit_code", 2)
    if type(exc).__name__ == "NoArgsIsHelpError":
        say(told)
        return status
    context = getattr(exc, "ctx", None)
    return _fail(f"{' '.join(told.split()).rstrip('.')}; see {context.command_path if context else 'edgekit'} --help", status)


def _fail(message: str, status: int) -> int:
    if settings.debug:
        traceback.print_exc()
    say(f"edgekit: {message}")
    return status
