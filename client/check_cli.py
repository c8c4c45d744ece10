"""The command line of `knowmine-client check`."""

import itertools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from knowmine.shared.command import checked_format, say_json
from knowmine.shared.settings import read_settings

MARKS = {
    "good": ("green", "ok"),
    "note": ("cyan", "--"),
    "warning": ("yellow", "!"),
    "error": ("red", "x"),
}


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
