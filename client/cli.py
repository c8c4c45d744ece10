"""`knowmine-client`: arguments to settings, errors to exit codes; the only place that prints."""

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from knowmine.shared.command import checked_format, run_command, say_json, say_version
from knowmine.shared.settings import read_settings

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A hospital's side of a federation: images stay here, weights leave.",
)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Say it.")
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
    from knowmine.client.enrolment import enrol as make_request

    folder = home or Path(kit.name.removesuffix(".tar.gz"))
    request = make_request(kit, folder, data)
    typer.echo(f"Send {request} to the coordinator; it holds no secret.")
    if then_run:
        run(folder / "client.yaml")
    else:
        typer.echo(f"When it was admitted: knowmine-client run {folder / 'client.yaml'}")


@app.command()
def run(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Another data folder.")] = None,
) -> None:
    """Take part in the federation's rounds until the run is over.

    Connects outwards only, and tries for ever to reach the server again. SIGTERM and Ctrl-C leave
    cleanly. Example: knowmine-client run lyon/client.yaml
    """
    from knowmine.client.resident import Resident
    from knowmine.client.settings import ClientSettings

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    resident = Resident(read_settings(ClientSettings, settings, {"data": data}))
    how = resident.run(stop)
    typer.echo(how)
    if resident.working:  # a task that would not stop in time; its thread cannot be ended
        os._exit(130)
    if stop.is_set():
        raise typer.Exit(130)


MARKS = {
    "good": ("green", "ok"),
    "note": ("cyan", "--"),
    "warning": ("yellow", "!"),
    "error": ("red", "x"),
}


@app.command()
def check(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    with_canary: Annotated[
        bool, typer.Option("--canary", help="Also do one round on eight images; nothing is sent.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Look at data, weights, machine, keys and network, and say how to mend what is wrong.

    Exit code 0: nothing stands in the way; 2: an error was found. Example: knowmine-client check
    lyon/client.yaml
    """
    from knowmine.client.check import canary, check_site
    from knowmine.client.findings import as_json, worst
    from knowmine.client.settings import ClientSettings

    read = read_settings(ClientSettings, settings, {})
    text = checked_format(format_) == "text"
    console, found = Console(), []
    for finding in itertools.chain(check_site(read), canary(read) if with_canary else ()):
        found.append(finding)
        if text:
            colour, mark = MARKS[finding.level]
            console.print(f"[{colour}]{mark:>2}[/] [bold]{finding.area}[/]: ", end="")
            console.print(finding.what, markup=False, highlight=False, soft_wrap=True)
            for line in filter(None, (finding.why, finding.mend and f"-> {finding.mend}")):
                console.print(f"     {line}", markup=False, highlight=False, soft_wrap=True)
    if not text:
        say_json(as_json(found))
    if worst(found) == "error":
        raise typer.Exit(2)


def main() -> None:
    """Run the command."""
    run_command(app, "knowmine-client")
