"""`knowmine-server run`: run a federation and print a line for each event."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from knowmine.server.commands.options import Format, SettingsFile
from knowmine.shared import verbosity
from knowmine.shared.command import checked_format, say_json
from knowmine.shared.settings import read_settings


def run(
    settings: SettingsFile,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; an unfinished run in it goes on.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    format_: Format = "text",
) -> None:
    """Run the federation's rounds, or go on with an unfinished run.

    Exit code 0: done; 3: failed or paused, with the reason in the last line; 130: interrupted, the
    same command goes on. Example: knowmine-server run fed/server.yaml
    """
    from knowmine.server.federation import run_federation
    from knowmine.server.settings import ServerSettings

    checked_format(format_)
    flags = {"out": out, "listen.port": port, "run.rounds": rounds}
    ready = read_settings(ServerSettings, settings, flags)
    lines = _Lines(quiet=format_ == "json" or verbosity.quiet())
    lines.begun(ready.federation, ready.listen.host, ready.listen.port)
    summary = run_federation(ready, lines)
    if format_ == "json":
        say_json(summary)
    else:
        typer.echo(_result(summary, ready.out))


class _Lines:
    """Prints a line for each event."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def begun(self, federation: str, host: str, port: int) -> None:
        """The server listens."""
        self._say(f"federation {federation}: waiting for sites on {host}:{port}")

    def round_started(self, round_: int, rounds: int) -> None:
        """A round begins."""
        self._say(f"round {round_}/{rounds} begins")

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was committed."""
        dice = "-" if record["dice"] is None else f"{record['dice']:.3f}"
        sites = ", ".join(record["sites"]) or "none"
        self._say(f"round {record['round']}  Dice {dice}  {record['seconds']:.1f} s  from {sites}")
        for site, reason in record["refused"].items():
            self._say(f"  left out: {site}: {reason}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            typer.echo(line)


def _result(summary: Mapping[str, Any], run: Path) -> str:
    """The model's file, and the scores over all sites and of each site."""
    lines = [f"Done: {summary['rounds']} rounds; the model is {run / 'model.safetensors'}"]
    if (whole := summary["global"]) and whole["dice"] is not None:
        lines.append(f"  all     Dice {whole['dice']:.3f} on {whole['test_images']} test images")
    for site, scores in summary["per_site"].items():
        lines.append(f"  {site:<7} Dice {scores['dice']:.3f} on {scores['test_images']}")
    return "\n".join(lines)
