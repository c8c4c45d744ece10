"""`knowmine-client review`: open a page on this machine to review a run's pseudo-labels."""

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
        str, typer.Option(help="Role of the person who decides; part of every decision.")
    ] = "reviewer",
    data: Annotated[
        Path | None, typer.Option(help="Data folder with the images, if it was moved.")
    ] = None,
    sam: Annotated[str | None, typer.Option(help="SAM for clicks: a name or a file.")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")
    ] = 8737,
    open_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Review pseudo-labels, worst first: accept, reject or correct them.

    The page is only on this machine and needs no network. Decisions count from the next round on.
    Example: knowmine-client review lyon/client.yaml --role radiologist
    """
    # Imported late, because torch takes seconds to import and --help must be fast.
    from knowmine.client.device import settle
    from knowmine.client.review.server import ReviewServer
    from knowmine.client.review.session import Review
    from knowmine.client.review.sources import find_run, is_running
    from knowmine.client.sam.interface import Sam
    from knowmine.client.sam.model import load_sam
    from knowmine.client.sam.weights import find_weights
    from knowmine.shared.files import FolderLock

    if not role.strip() or len(role) > 40 or not role.isprintable():
        raise UsageError(f"--role {role!r}: expected up to 40 letters, such as radiologist")
    found = find_run(run, data, sam)
    settle(found.machine.threads)

    def open_sam() -> Sam:
        weights = find_weights(found.sam.weights, found.cache)
        side = found.sam.side(found.image_px)
        return load_sam(weights, input_px=side, device=found.machine.device)

    with ExitStack() as stack:
        # Only one review at a time may write in a site's folder; a running round only reads there.
        for site in found.sites:
            stack.callback(FolderLock(site.folder).release)
        work = Review(found.sites, open_sam, found.cache / "embeddings", role.strip())
        cases = work.cases.listed()
        server = ReviewServer(work, found.title, lambda: is_running(run), port)
        if found.running:
            typer.echo("The run is in progress: your decisions count from its next round on.")
        typer.echo(f"{len(cases)} pseudo-labels to review. Open {server.url}")
        say("The address works once, and only on this machine. Ctrl-C ends the review.")
        if open_browser:
            webbrowser.open(server.url)
        server.run()
