"""`knowmine-client review`: a run's pseudo-labels on a page for one person on this machine."""

import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from knowmine.shared.command import say
from knowmine.shared.errors import UsageError


def review(
    run: Annotated[
        Path, typer.Argument(help="A simulation's run folder, client.yaml, or a state folder.")
    ],
    role: Annotated[
        str, typer.Option(help="Who decides, by role; it stands in every decision.")
    ] = "reviewer",
    data: Annotated[
        Path | None, typer.Option(help="Data folder with the images, if it was moved.")
    ] = None,
    sam: Annotated[str | None, typer.Option(help="SAM to click: a name or a file.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8737,
    open_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look at pseudo-labels, worst first: accept, reject or correct them.

    The page is on this machine only, and needs no network. What is decided counts from the next
    round on. Example: knowmine-client review lyon/client.yaml --role radiologist
    """
    # Imported late: torch takes seconds, and --help should not.
    from knowmine.client.device import settle
    from knowmine.client.review.server import ReviewServer
    from knowmine.client.review.session import Review
    from knowmine.client.review.sources import find_places, is_going
    from knowmine.client.sam.model import Sam, load_sam
    from knowmine.client.sam.weights import find_weights
    from knowmine.shared.lock import FolderLock

    if not role.strip() or len(role) > 40 or not role.isprintable():
        raise UsageError(f"--role {role!r}: expected up to 40 letters, such as radiologist")
    found = find_places(run, data, sam)
    settle(found.machine.threads)

    def open_sam() -> Sam:
        weights = find_weights(found.sam.weights, found.cache)
        return load_sam(weights, device=found.machine.device, threads=found.machine.threads)

    with ExitStack() as stack:
        # One review at a time writes in a site's folder; a running round only reads there.
        for place in found.places:
            stack.callback(FolderLock(place.folder).release)
        work = Review(found.places, open_sam, found.cache / "embeddings", role.strip())
        cases = work.cases()
        server = ReviewServer(work, found.title, lambda: is_going(run), port)
        if found.going:
            typer.echo("The run is not over: what you decide counts from its next round on.")
        typer.echo(f"{len(cases)} pseudo-labels to look at. Open {server.url}")
        say("The address works once, on this machine only. Ctrl-C ends the review.")
        if open_browser:
            webbrowser.open(server.url)
        server.run()
