"""`knowmine-server status`: the state of a run as a table, as JSON or as a live page."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from knowmine.server.commands.options import Format, SettingsFile
from knowmine.shared.command import checked_format, say, say_json
from knowmine.shared.settings import read_settings


def status(
    settings: SettingsFile,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, if it is not the one in the file.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a live page, and /metrics for Prometheus.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8738,
    host: Annotated[
        str,
        typer.Option(
            help="Address of the page; with any other than 127.0.0.1, other machines can read it."
        ),
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name that may be used for the page, such as a proxy's; repeatable."
        ),
    ] = None,
    format_: Format = "text",
) -> None:
    """Show which sites are connected, what each site does, and the run's progress.

    Example: knowmine-server status fed/server.yaml --serve
    """
    from knowmine.server.settings import ServerSettings
    from knowmine.server.status.figures import figures_of
    from knowmine.server.status.page import serve_status
    from knowmine.server.status.status import EVERY_S, read_status

    folder = read_settings(ServerSettings, settings, {"out": out}).out
    if checked_format(format_) == "json":
        say_json(figures_of(folder))
        return
    if serve:
        read_status(folder)  # raises an error now if there is no run
        say(f"Status of {folder} at http://{host}:{port}/ and /metrics. Ctrl-C ends it.")
        serve_status(folder, host, port, allow_host or ())
        return
    console = Console()
    if not watch:
        console.print(_table(figures_of(folder)))
        return
    with Live(_table(figures_of(folder)), console=console) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(_table(figures_of(folder)))


def _table(status: Mapping[str, Any]) -> Table:
    dice = "-" if status["dice"] is None else f"{status['dice']:.3f}"
    rounds = f"round {status['round']}/{status['rounds'] or '-'}"
    title = f"{status['federation']}: {status['status']}, {rounds}, Dice {dice} (sites shown)"
    table = Table(title=title, caption=status["reason"] or None, title_justify="left")
    for column in ("site", "connected", "version", "doing", "last round", "certificate", "error"):
        table.add_column(column)
    for name, site in status["sites"].items():
        doing = site["task"] or "waiting"
        if site["task"]:
            expected = site["task_expected_seconds"]
            about = f" of about {expected:.0f}" if expected else ""
            doing = f"{site['task']}, {site['task_seconds']}{about} s"
        connected = "revoked" if site["revoked"] else ("yes" if site["connected"] else "no")
        table.add_row(
            name,
            connected,
            site["version"] or "-",
            doing if site["connected"] else "-",
            str(site["last_round"] or "-"),
            site["certificate_warning"] or f"until {site['certificate_expires'][:10]}",
            site["error"],
        )
    return table
