"""`knowmine-server`: arguments to settings, errors to exit codes; the only place that prints."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from knowmine.server.commands.export_cli import export
from knowmine.shared import talk
from knowmine.shared.command import checked_format, run_command, say, say_json, say_version
from knowmine.shared.settings import read_settings

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    suggest_commands=False,  # click does, and would say it twice
    pretty_exceptions_enable=False,
    help="The coordinator of a federation: it sees weights, counts and means, never an image.",
)
Format = Annotated[str, typer.Option("--format", help="text or json.")]
SettingsFile = Annotated[Path, typer.Argument(help="The server's settings, such as server.yaml.")]


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=say_version, is_eager=True, help="Say version and digests."
        ),
    ] = False,
) -> None:
    """Coordinate a federation."""


@app.command()
def admit(
    requests: Annotated[list[Path], typer.Argument(help="Files NAME.request from the sites.")],
    federation: Annotated[
        Path, typer.Option(help="The federation's folder, made by provision.")
    ] = Path(),
) -> None:
    """Let sites take part, by the requests that they made with their kits.

    A running server needs no restart. Example: knowmine-server admit lyon.request --federation fed
    """
    from knowmine.server.enrolment.enrolments import admit_request

    for request in requests:
        site = admit_request(request, federation)
        typer.echo(f"{site.site} is admitted; its certificate ends on {site.expires():%Y-%m-%d}")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    federation: Annotated[Path, typer.Option(help="The federation's folder.")] = Path(),
) -> None:
    """Turn a site away, from this moment on; its contributions so far stay in the model.

    Example: knowmine-server revoke lyon --federation fed
    """
    from knowmine.server.enrolment.allow_list import AllowList

    AllowList(federation / "sites").revoke(site)
    typer.echo(f"{site} is revoked")


@app.command()
def run(
    settings: SettingsFile,
    out: Annotated[Path | None, typer.Option(help="The run's folder; an old run goes on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the run.")] = None,
    format_: Format = "text",
) -> None:
    """Run the federation's rounds, or go on where they were stopped.

    Exit code 0: done; 3: failed or paused, the reason is the last line; 130: interrupted, goes on
    when started again. Example: knowmine-server run fed/server.yaml
    """
    from knowmine.server.federation import run_federation
    from knowmine.server.settings import ServerSettings

    checked_format(format_)
    flags = {"out": out, "listen.port": port, "run.rounds": rounds}
    ready = read_settings(ServerSettings, settings, flags)
    lines = _Lines(quiet=format_ == "json" or talk.quiet())
    lines.begun(ready.federation, ready.listen.host, ready.listen.port)
    summary = run_federation(ready, lines)
    if format_ == "json":
        say_json(summary)
    else:
        typer.echo(_result(summary, ready.out))


@app.command()
def status(
    settings: SettingsFile,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, if not that of the file.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="A live page, and /metrics for Prometheus.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8738,
    host: Annotated[
        str, typer.Option(help="Address of the page; other than 127.0.0.1 lets others read it.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name by which others ask for the page, such as a proxy's; repeatable."),
    ] = None,
    format_: Format = "text",
) -> None:
    """Which sites are connected, what each is about, and how far the run is.

    Example: knowmine-server status fed/server.yaml --serve
    """
    from knowmine.server.settings import ServerSettings
    from knowmine.server.status.page import figures_of, serve_status
    from knowmine.server.status.status import EVERY_S, read_status

    folder = read_settings(ServerSettings, settings, {"out": out}).out
    if checked_format(format_) == "json":
        say_json(figures_of(folder))
        return
    if serve:
        read_status(folder)  # no run: say so at once
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


class _Lines:
    """Says what happens, a line each."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def begun(self, federation: str, host: str, port: int) -> None:
        """Say where sites are waited for."""
        self._say(f"federation {federation}: waiting for sites on {host}:{port}")

    def round_started(self, round_: int, rounds: int) -> None:
        """Say that the sites are asked."""
        self._say(f"round {round_}/{rounds} begins")

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Say what came of it."""
        dice = "-" if record["dice"] is None else f"{record['dice']:.3f}"
        sites = ", ".join(record["sites"]) or "none"
        self._say(f"round {record['round']}  Dice {dice}  {record['seconds']:.1f} s  from {sites}")
        for site, reason in record["refused"].items():
            self._say(f"  left out: {site}: {reason}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            typer.echo(line)


def _result(summary: Mapping[str, Any], run: Path) -> str:
    """The model and how good it is, for the whole and for each site."""
    lines = [f"Done: {summary['rounds']} rounds; the model is {run / 'model.safetensors'}"]
    if (whole := summary["global"]) and whole["dice"] is not None:
        lines.append(f"  all     Dice {whole['dice']:.3f} on {whole['test_images']} test images")
    for site, scores in summary["per_site"].items():
        lines.append(f"  {site:<7} Dice {scores['dice']:.3f} on {scores['test_images']}")
    return "\n".join(lines)


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


app.command()(export)


def main() -> None:
    """Run the command."""
    run_command(app, "knowmine-server")
