"""`knowmine-server admit` and `revoke`: which sites may take part."""

from pathlib import Path
from typing import Annotated

import typer


def admit(
    requests: Annotated[list[Path], typer.Argument(help="Files NAME.request from the sites.")],
    federation: Annotated[
        Path, typer.Option(help="The federation's folder, made by provision.")
    ] = Path(),
) -> None:
    """Admit sites by the requests that they made with their kits.

    A running server needs no restart. Example: knowmine-server admit lyon.request --federation fed
    """
    from knowmine.server.enrolment.enrolments import admit_request

    for request in requests:
        site = admit_request(request, federation)
        typer.echo(f"{site.site} is admitted; its certificate ends on {site.expires():%Y-%m-%d}")


def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    federation: Annotated[Path, typer.Option(help="The federation's folder.")] = Path(),
) -> None:
    """Exclude a site from now on; its contributions so far stay in the model.

    Example: knowmine-server revoke lyon --federation fed
    """
    from knowmine.server.enrolment.allow_list import AllowList

    AllowList(federation / "sites").revoke(site)
    typer.echo(f"{site} is revoked")
