"""`knowmine-client forget`: destroy what the site keeps of a case or of the project."""

from pathlib import Path
from typing import Annotated

import typer

from knowmine.shared.errors import UsageError
from knowmine.shared.settings import read_settings


def forget(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    case: Annotated[str | None, typer.Option(help="The case id.")] = None,
    project: Annotated[
        bool, typer.Option("--project", help="Everything that the project kept.")
    ] = False,
) -> None:
    """Destroy what is kept of a case or of the project: keys, embeddings, pseudo-labels, scores.

    Images and receipts stay. The site must be stopped. Example: knowmine-client forget
    lyon/client.yaml --case scan-0012
    """
    if (case is None) == (not project):
        raise UsageError("forget what? give either --case CASE or --project")
    from knowmine.client.settings import ClientSettings
    from knowmine.client.site.forget import forget_case, forget_project

    read = read_settings(ClientSettings, settings, {})
    files = forget_project(read) if case is None else forget_case(read, case)
    typer.echo(f"{files} files were destroyed or cleaned; a receipt records it.")
    if case is not None:
        typer.echo(f"To exclude it from later rounds, add it to {read.data / 'withdrawn.txt'}.")
