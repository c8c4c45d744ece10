"""The command `knowmine-server` as installed: the server's commands, `provision` and `report`.

`provision` writes settings of both roles, and `report` uses the simulation's page, so neither
belongs in `server/`.
"""

from pathlib import Path
from typing import Annotated

import typer

from knowmine.server.cli import app, main
from knowmine.shared.command import say
from knowmine.shared.errors import CannotWrite, UsageError

__all__ = ["app", "server"]


@app.command()
def provision(
    federation: Annotated[Path, typer.Argument(help="The federation's file, federation.yaml.")],
    out: Annotated[Path, typer.Option(help="The federation's folder, new or made by provision.")],
    new_kit: Annotated[
        str | None, typer.Option(metavar="SITE", help="Make another kit for this site.")
    ] = None,
    example: Annotated[
        bool,
        typer.Option(
            "--example", help="Write an example FEDERATION first: two sites on this machine."
        ),
    ] = False,
) -> None:
    """Make a federation: its authority, the server's settings, and a kit for each site.

    Running it again adds what is missing and removes nothing.
    Example: knowmine-server provision federation.yaml --out fed
    """
    from knowmine.deploy.provision.provision import provision as make

    if example:
        _write_example(federation)
    if not federation.is_file():
        raise UsageError(f"no file {federation}: write one, or let --example write one")
    made = make(federation, out, new_kit=new_kit)
    for site, kit in made.kits.items():
        typer.echo(f"{'new ' if site in made.made else ''}kit for {site}: {kit}")
    for site in made.ended:
        typer.echo(f"the kit of {site} has expired: make another with --new-kit {site}")
    say("Send each kit to its site in a way that you trust; a kit admits one site, once.")
    typer.echo(f"SHA-256 of the authority, for the sites to compare: {made.authority}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run that has ended.")],
) -> None:
    """Write RUN/report.html: curves, sites, mining, roster and digests on one printable page.

    It contains no images and no counts of fewer than five test images, so every site may have it.
    Example: knowmine-server report fed/run
    """
    from knowmine.deploy.report.federation_report import write_federation_report

    typer.echo(f"Report: {write_federation_report(run)}")


def _write_example(file: Path) -> None:
    """Write the package's example with its comments; never over an existing file."""
    if file.exists():
        raise UsageError(f"{file} already exists: leave out --example to provision from it")
    try:
        file.write_bytes(Path(__file__).with_name("federation.yaml").read_bytes())
    except OSError as error:
        raise CannotWrite(f"cannot write {file} ({error.strerror})") from error


def server() -> None:
    """Run the command."""
    main()
