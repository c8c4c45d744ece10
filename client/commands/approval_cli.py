"""`knowmine-client approve`: list the updates that wait, let one leave or keep it here."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from knowmine.shared.command import checked_format, say_json
from knowmine.shared.settings import read_settings


def approve(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    name: Annotated[
        str | None, typer.Argument(help="The update to decide on. Not set: list those that wait.")
    ] = None,
    refuse: Annotated[bool, typer.Option("--refuse", help="Keep it here.")] = False,
    format_: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Approve an update that waits for a person, or refuse it.

    Without a name it lists the updates that wait, each with a page that shows what would leave.

    Example: knowmine-client approve lyon/client.yaml 0003-5f0a91c2d4e7
    """
    from knowmine.client.egress import approval
    from knowmine.client.paths import PENDING
    from knowmine.client.settings import ClientSettings

    folder = read_settings(ClientSettings, settings, {}).state / PENDING
    text = checked_format(format_) == "text"
    if name is not None:
        decide = approval.refuse if refuse else approval.approve
        decided = decide(folder, name, by=getpass.getuser())
        done = "leaves" if decided.decision == "approve" else "stays here"
        if text:
            typer.echo(f"Update {name} {done}, as {decided.by} decided.")
        else:
            say_json({"name": name, "decision": decided.decision, "by": decided.by})
        return
    waiting = approval.waiting_in(folder)
    if not text:
        say_json({"waiting": [dict(vars(one), facts=dict(one.facts)) for one in waiting]})
        return
    for one in waiting:
        typer.echo(f"{one.name}  waits since {one.since}, until {one.until}")
        for what, value in one.facts.items():
            typer.echo(f"    {what}: {value}")
        typer.echo(f"    page: {folder / one.name}.html")
    if not waiting:
        typer.echo("Nothing waits for approval.")
