"""What all three commands share: errors to exit codes, one line each, and the version."""

import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import typer

from knowmine.shared.errors import KnowmineError, UsageError


def run_command(app: typer.Typer, name: str) -> None:
    """Run the command; an error that a person can mend is one message and its exit code."""
    try:
        # Without its standalone mode click gives the code of typer.Exit back instead of raising it.
        if code := app(standalone_mode=False):
            sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except KnowmineError as error:
        typer.echo(f"{name}: {error}", err=True)
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


def say_version(show: bool) -> None:
    """For `--version`: print it and leave."""
    if show:
        from importlib.metadata import version

        typer.echo(f"knowmine {version('knowmine')}")
        raise typer.Exit


def checked_format(format_: str) -> str:
    """`--format` as it may be."""
    if format_ not in ("text", "json"):
        raise UsageError(f"--format {format_!r} is not known; use text or json")
    return format_


def say_json(value: Mapping[str, Any]) -> None:
    """Print a report for scripts."""
    typer.echo(json.dumps(value, indent=2))


def _usage_errors() -> type[Exception]:
    import click

    return click.ClickException
