"""`knowmine-client`: arguments to settings, errors to exit codes; the only place that prints."""

import os
import signal
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowmine.client.commands.approval_cli import approve
from knowmine.client.commands.audit_cli import audit
from knowmine.client.commands.check_cli import check
from knowmine.client.commands.forget_cli import forget
from knowmine.client.commands.lines import WRONG, Lines
from knowmine.client.commands.predict_cli import predict
from knowmine.client.commands.review_cli import review
from knowmine.client.vault.sandbox import keep_to_one_thread
from knowmine.shared import verbosity
from knowmine.shared.command import run_command, say, say_version
from knowmine.shared.settings import read_settings

if TYPE_CHECKING:  # numpy must come after `keep_to_one_thread`
    from knowmine.shared.log import Telling

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    suggest_commands=False,  # click does, and would say it twice
    pretty_exceptions_enable=False,
    help="A hospital's side of a federation: images stay here, weights leave.",
)


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=say_version, is_eager=True, help="Say version and digests."
        ),
    ] = False,
) -> None:
    """Take part in a federation."""


@app.command()
def enrol(
    kit: Annotated[Path, typer.Argument(help="The coordinator's kit: a folder or a .tar.gz.")],
    data: Annotated[Path, typer.Option(help="Folder of images/ and masks/; it is only read.")],
    home: Annotated[
        Path | None, typer.Option(help="Folder for keys and settings. Not set: the kit's name.")
    ] = None,
    then_run: Annotated[
        bool, typer.Option("--run", help="Then take part, as soon as the site is admitted.")
    ] = False,
) -> None:
    """Make this site's keys and the request that the coordinator admits it by.

    The keys stay here. Example: knowmine-client enrol lyon.tar.gz --data /data/polyps
    """
    from knowmine.client.federation.enrolment import enrol as make_request

    folder = home or Path(kit.name.removesuffix(".tar.gz"))
    request = make_request(kit, folder, data)
    typer.echo(f"Send {request} to the coordinator; it holds no secret.")
    if then_run:
        run(folder / "client.yaml")
    else:
        say(f"When it was admitted: knowmine-client run {folder / 'client.yaml'}")


@app.command()
def run(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Another data folder.")] = None,
) -> None:
    """Take part in the federation's rounds until the run is over.

    Connects outwards only, and tries for ever to reach the server again. SIGTERM and Ctrl-C leave
    cleanly. Example: knowmine-client run lyon/client.yaml
    """
    from knowmine.client.settings import ClientSettings
    from knowmine.client.vault.launcher import start_vault

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    read = read_settings(ClientSettings, settings, {"data": data})
    # The vault first: what is imported next has threads, and those would keep the images.
    with start_vault(read) as vault:
        from knowmine.client.federation.service import Resident

        resident = Resident(read, vault.worker, vault.missing, _say_event())
        resident.run(stop)
    if resident.working:  # a task that would not stop in time; its thread cannot be ended
        os._exit(130)
    if stop.is_set():
        raise typer.Exit(130)


def _say_event() -> "Telling":
    """Says what a person at the terminal wants to know, and nothing twice."""
    lines = Lines()

    def tell(event: str, fields: Mapping[str, Any]) -> None:
        if verbosity.quiet() and event not in WRONG:
            return
        if line := lines.of(event, fields):
            typer.echo(f"{datetime.now():%H:%M:%S}  {line}")

    return tell


app.command()(predict)
app.command()(review)
app.command()(approve)
app.command()(forget)
app.add_typer(audit, name="audit")
app.command("check")(check)


def main() -> None:
    """Run the command."""
    keep_to_one_thread()
    run_command(app, "knowmine-client")
