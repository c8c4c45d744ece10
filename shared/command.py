"""What all three commands share: errors to exit codes, one line each, how much is said, the version.

`-q` says only what a person has to know; `-v` says every event of the log too, as JSON on
standard error, and where an error comes from.
"""

import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperOption

from knowmine.shared import talk
from knowmine.shared.errors import KnowmineError, UsageError

if TYPE_CHECKING:
    import click


def run_command(app: typer.Typer, name: str) -> None:
    """Run the command; an error that a person can mend is one message and its exit code."""
    talk.set_level(talk.USUAL)
    try:
        # Without its standalone mode click gives the code of typer.Exit back instead of raising it.
        if code := command_of(app)(prog_name=name, standalone_mode=False):
            sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except KnowmineError as error:
        typer.echo(f"{name}: {error}", err=True)
        if talk.verbose():
            traceback.print_exc()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(f"{name}: interrupted before the work began", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last resort gets its own exit code
        if isinstance(error, _usage_errors()):
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        typer.echo(f"{name}: a mistake of ours, please report it:", err=True)
        traceback.print_exc()
        sys.exit(KnowmineError.exit_code)


def command_of(app: typer.Typer) -> "click.Command":
    """The command with all its subcommands; each knows -q and -v, and its help ends in the example."""
    command = typer.main.get_command(app)
    for _, one in commands_in(command, ""):
        what, example, line = (one.help or "").partition("Example:")
        # A paragraph is one line, or its lines are broken where the source and the terminal do.
        one.help = "\n\n".join(" ".join(part.split()) for part in what.strip().split("\n\n"))
        if example:
            one.epilog = f"{example} {' '.join(line.split())}"
        _restore_help(one)
        one.params += [
            _talk("-q", "--quiet", talk.QUIET, "Say only what went wrong, and results."),
            _talk("-v", "--verbose", talk.VERBOSE, "Also say every event of the log, as JSON."),
        ]
    return command


def commands_in(command: "click.Command", name: str) -> "list[tuple[str, click.Command]]":
    """A command's own subcommands at any depth by their full names, or the command itself."""
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
    """Print what is nice to know, unless the person asked for quiet."""
    if not talk.quiet():
        typer.echo(line, err=err)


def say_version(show: bool) -> None:
    """For `--version`: print what can be compared with another machine's, and leave."""
    if show:
        from knowmine.shared.version import facts

        typer.echo("\n".join(facts()))
        raise typer.Exit


def checked_format(format_: str) -> str:
    """`--format` as it may be."""
    if format_ not in ("text", "json"):
        raise UsageError(f"--format {format_!r} is not known; use text or json")
    return format_


def say_json(value: Mapping[str, Any]) -> None:
    """Print a report for scripts."""
    typer.echo(json.dumps(value, indent=2))


def _restore_help(command: "click.Command") -> None:
    """Give arguments their help back: typer 0.20 sets it before click 8.4 clears it."""
    hints = get_type_hints(inspect.unwrap(command.callback or _nothing), include_extras=True)
    for param in command.params:
        told = getattr(hints.get(param.name or ""), "__metadata__", ())
        if isinstance(param, TyperArgument) and param.help is None and told:
            param.help = told[0].help


def _nothing() -> None:
    """Stands for the callback of a command that has none."""


def _talk(short: str, long: str, level: int, what: str) -> "click.Option":
    def choose(_ctx: Any, _param: Any, chosen: bool) -> None:
        if chosen:
            talk.set_level(level)

    return TyperOption(
        param_decls=[short, long], is_flag=True, expose_value=False, callback=choose, help=what
    )


def _usage_errors() -> type[Exception]:
    import click

    return click.ClickException
