"""`knowmine-client check`: print what would go wrong, and how to fix it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from knowmine.shared import verbosity
from knowmine.shared.command import checked_format, say_json
from knowmine.shared.settings import read_settings

if TYPE_CHECKING:
    from knowmine.client.check.findings import Finding
    from knowmine.client.settings import ClientSettings

MARKS = {
    "good": ("green", "ok"),
    "note": ("cyan", "--"),
    "warning": ("yellow", "!"),
    "error": ("red", "x"),
}


def check(
    settings: Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")],
    with_canary: Annotated[
        bool,
        typer.Option(
            "--canary", help="Also run one round on eight images of each kind; nothing is sent."
        ),
    ] = False,
    with_leaves: Annotated[
        bool,
        typer.Option("--what-leaves", help="Also list what a round would send, and attack it."),
    ] = False,
    attack_steps: Annotated[
        int, typer.Option(min=1, help="Steps of each gradient inversion; more take longer.")
    ] = 32,
    format_: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Check data, weights, machine, keys and network, and say how to fix what is wrong.

    Exit code 0: no error; 2: an error was found. Example: knowmine-client check
    lyon/client.yaml
    """
    from knowmine.client.check.check import canary, check_site
    from knowmine.client.check.findings import as_json, worst
    from knowmine.client.settings import ClientSettings

    read = read_settings(ClientSettings, settings, {})
    text = checked_format(format_) == "text"
    console, found = Console(), []
    for finding in itertools.chain(
        check_site(read),
        canary(read) if with_canary else (),
        _leaving(read, attack_steps, text) if with_leaves else (),
    ):
        found.append(finding)
        if text and not (verbosity.quiet() and finding.level in ("good", "note")):
            colour, mark = MARKS[finding.level]
            console.print(f"[{colour}]{mark:>2}[/] [bold]{finding.area}[/]: ", end="")
            console.print(finding.what, markup=False, highlight=False, soft_wrap=True)
            for line in filter(None, (finding.why, finding.repair and f"-> {finding.repair}")):
                console.print(f"     {line}", markup=False, highlight=False, soft_wrap=True)
    if not text:
        say_json(as_json(found))
    if worst(found) == "error":
        raise typer.Exit(2)


def _leaving(settings: "ClientSettings", steps: int, text: bool) -> Iterator["Finding"]:
    """The findings about what would leave; progress goes to standard error."""
    from knowmine.client.check.disclosure import what_leaves

    yield from what_leaves(settings, steps=steps, progress=_Steps() if text else None)


class _Steps:
    """A `Progress` that prints one line a step to standard error."""

    def start(self, step: str, total: int) -> None:
        typer.echo(f"     {step} ({total}) ...", err=True)

    def advance(self, n: int = 1) -> None:
        pass

    def done(self) -> None:
        pass
