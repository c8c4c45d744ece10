"""What the three commands share: exit codes, `-q` and `-v`, `--version` and `--format`.

`-q` prints only results and errors. `-v` also prints every event of the log as JSON on standard
error, and the traceback of an error.
"""

import inspect
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperOption

from knowmine.shared import verbosity
from knowmine.shared.errors import KnowmineError, UsageError

if TYPE_CHECKING:
    import click


def run_command(app: typer.Typer, name: str) -> None:
    """Run the command; an expected error becomes one message and its exit code."""
    verbosity.set_level(verbosity.USUAL)
    os.environ.setdefault("GRPC_VERBOSITY", "error")  # gRPC logs to standard error by itself
    try:
        # Without standalone mode, click returns the code of typer.Exit instead of raising it.
        if code := command_of(app)(prog_name=name, standalone_mode=False):
            sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except KnowmineError as error:
        typer.echo(f"{name}: {error}", err=True)
        if verbosity.verbose():
            traceback.print_exc()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(f"{name}: interrupted before the work began", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last resort, with its own exit code
        if isinstance(error, _usage_errors()):
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        typer.echo(f"{name}: an unexpected error, please report it:", err=True)
        traceback.print_exc()
        sys.exit(KnowmineError.exit_code)


def command_of(app: typer.Typer) -> "click.Command":
    """The command and its subcommands, each with -q and -v, and with its example last in the help."""
    command = typer.main.get_command(app)
    for _, one in commands_in(command, ""):
        what, example, line = (one.help or "").partition("Example:")
        # Each paragraph becomes one line; otherwise lines break at the source's ends and the terminal's.
        one.help = "\n\n".join(" ".join(part.split()) for part in what.strip().split("\n\n"))
        if example:
            one.epilog = f"{example} {' '.join(line.split())}"
        _restore_help(one)
        one.params += [
            _verbosity_option("-q", "--quiet", verbosity.QUIET, "Print only results and errors."),
            _verbosity_option(
                "-v", "--verbose", verbosity.VERBOSE, "Also print every event of the log, as JSON."
            ),
        ]
    return command


def commands_in(command: "click.Command", name: str) -> "list[tuple[str, click.Command]]":
    """All subcommands of a command at any depth by their full names, or the command itself."""
    inner: dict[str, click.Command] = getattr(command, "commands", {})
    if not inner:
        return [(name, command)]
    return [
        found
        for word, one in inner.items()
        if not one.hidden
        for found in commands_in(one, f"{name} {word}".strip())
    ]


def say(line: str, *, err: bool = False) -> None:
    """Print a line that is not a result or an error, unless `-q` was given."""
    if not verbosity.quiet():
        typer.echo(line, err=err)


def say_version(show: bool) -> None:
    """For `--version`: print versions and digests, and exit."""
    if show:
        from knowmine.shared.version import facts

        typer.echo("\n".join(facts()))
        raise typer.Exit


def checked_format(format_: str) -> str:
    """The value of `--format`; raise `UsageError` for one that is not known."""
    if format_ not in ("text", "json"):
        raise UsageError(f"--format {format_!r} is not known; use text or json")
    return format_


def say_json(value: Mapping[str, Any]) -> None:
    """Print a result as JSON, for scripts."""
    typer.echo(json.dumps(value, indent=2))


def _restore_help(command: "click.Command") -> None:
    """Put back the help of arguments, which typer 0.20 sets and click 8.4 then clears."""
    hints = get_type_hints(inspect.unwrap(command.callback or _nothing), include_extras=True)
    for param in command.params:
        notes = getattr(hints.get(param.name or ""), "__metadata__", ())
        if isinstance(param, TyperArgument) and param.help is None and notes:
            param.help = notes[0].help


def _nothing() -> None:
    """The callback of a command that has none."""


def _verbosity_option(short: str, long: str, level: int, what: str) -> "click.Option":
    def choose(_ctx: Any, _param: Any, chosen: bool) -> None:
        if chosen:
            verbosity.set_level(level)

    return TyperOption(
        param_decls=[short, long], is_flag=True, expose_value=False, callback=choose, help=what
    )


def _usage_errors() -> type[Exception]:
    import click

    return click.ClickException
