"""The command `knowmine-server`, with its subcommands from `commands/`."""

from typing import Annotated

import typer

from knowmine.server.commands.enrolment_cli import admit, revoke
from knowmine.server.commands.export_cli import export
from knowmine.server.commands.run_cli import run
from knowmine.server.commands.status_cli import status
from knowmine.shared.command import run_command, say_version

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    suggest_commands=False,  # click suggests them too
    pretty_exceptions_enable=False,
    help="The coordinator of a federation: it sees weights, counts and means, never an image.",
)


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=say_version, is_eager=True, help="Print version and digests."
        ),
    ] = False,
) -> None:
    """Coordinate a federation."""


for command in (admit, revoke, run, status, export):
    app.command()(command)


def main() -> None:
    """Run the command."""
    run_command(app, "knowmine-server")
