"""`knowmine-server` as it is installed: the server's own commands, provisioning and the report.

Provisioning writes the settings of both roles and the report is the simulation's, so they belong
to neither.
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
    federation: Annotated[Path, typer.Argument(help="The federation's file: who, what, where.")],
    out: Annotated[Path, typer.Option(help="Folder to make or complete.")],
    new_kit: Annotated[
        str | None, typer.Option(metavar="SITE", help="Another kit for this site.")
    ] = None,
    example: Annotated[
        bool,
        typer.Option("--example", help="Write FEDERATION first: two sites on this machine."),
    ] = False,
) -> None:
    """Make a federation: its authority, the server's settings, and a kit for each site.

    Doing it again adds what is missing and drops nothing.
    Example: knowmine-server provision federation.yaml --out fed
    """
    from knowmine.deploy.provision.provision import provision as make

    if example:
        _write_example(federation)
    if not federation.is_file():
        raise UsageError(f"no file {federation}: write one; --example gives one to begin with")
    made = make(federation, out, new_kit=new_kit)
    for site, kit in made.kits.items():
        typer.echo(f"{'new ' if site in made.made else ''}kit for {site}: {kit}")
    for site in made.ended:
        typer.echo(f"the kit of {site} has ended: make another with --new-kit {site}")
    say("Send each kit to its site by a way that you trust; it lets one site in, once.")
    typer.echo(f"SHA-256 of the authority, for the sites to compare: {made.authority}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run that has ended.")],
) -> None:
    """Write RUN/report.html: curves, sites, mining, roster and digests on one page that prints.

    It holds no picture and no count of fewer than five test images, so every site may have it.
    Example: knowmine-server report fed/run
    """
    from knowmine.deploy.report.federation_report import write_federation_report

    typer.echo(f"Report: {write_federation_report(run)}")


def _write_example(file: Path) -> None:
    """The example in the package, with its comments; never over a file that is there."""
    if file.exists():
        raise UsageError(f"{file} is there already: leave out --example to provision from it")
    try:
        file.write_bytes(Path(__file__).with_name("federation.yaml").read_bytes())
    except OSError as error:
        raise CannotWrite(f"cannot write {file} ({error.strerror})") from error


def server() -> None:
    """Run the command."""
    main()
