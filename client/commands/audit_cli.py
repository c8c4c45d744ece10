"""`knowmine-client audit`: show, verify and export the audit log of what left the site."""

from pathlib import Path
from typing import Annotated

import typer

from knowmine.shared.command import checked_format, say_json
from knowmine.shared.errors import Refused
from knowmine.shared.settings import read_settings

audit = typer.Typer(no_args_is_help=True, help="The signed audit log of what left this site.")

_Settings = Annotated[Path, typer.Argument(help="This site's settings, such as client.yaml.")]
_Format = Annotated[str, typer.Option("--format", help="text or json.")]


@audit.command()
def show(
    settings: _Settings,
    case: Annotated[
        str | None, typer.Option(help="Case id: show the rounds that used this case.")
    ] = None,
    format_: _Format = "text",
) -> None:
    """What left this site, on one screen. Example: knowmine-client audit show lyon/client.yaml"""
    from knowmine.client.audit.report import rounds_of, screen, summary_of
    from knowmine.client.egress.policy import policy_of
    from knowmine.client.settings import ClientSettings

    read = read_settings(ClientSettings, settings, {})
    text = checked_format(format_) == "text"
    if case is not None:
        took = rounds_of(read, case)
        if not text:
            say_json({"took_part": [one._asdict() for one in took]})
        for one in took if text else []:
            typer.echo(f"{one.time}  round {one.round}: {one.as_}")
        if text and not took:
            typer.echo("No recorded round used this case.")
        return
    summary = summary_of(read, policy_of(read))
    if text:
        typer.echo(screen(summary))
    else:
        say_json(summary)
    if not summary["verdict"]["ok"]:
        raise typer.Exit(Refused.exit_code)


@audit.command()
def verify(
    record: Annotated[
        Path, typer.Argument(help="The file receipts.jsonl, with older parts beside it.")
    ],
    key: Annotated[list[Path], typer.Option(help="The site's public key; may be repeated.")],
    server_key: Annotated[
        list[Path] | None,
        typer.Option(help="The server's certificate or public key, for its confirmations."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="A checkpoint that the site published; it must be in the audit log."),
    ] = None,
    rounds: Annotated[
        Path | None,
        typer.Option(
            help="The server's RUN/rounds; its checkpoints of this site must be in the audit log."
        ),
    ] = None,
    format_: _Format = "text",
) -> None:
    """Check an audit log with only its files and public keys; no network, no settings.

    Exit code 0: valid; 4: invalid, with the first wrong line. Example: knowmine-client audit verify
    receipts.jsonl --key audit.pub --server-key server.crt --rounds RUN/rounds
    """
    from knowmine.client.audit.heads import heads_in, heads_of
    from knowmine.client.audit.report import read_public
    from knowmine.client.audit.verify import verify as check

    servers = [read_public(path) for path in server_key or []]
    keys = [read_public(path) for path in key]
    published = heads_of(head or []) + (heads_in(rounds, record) if rounds else [])
    verdict = check(record, keys, server_keys=servers, published=published)
    if checked_format(format_) == "json":
        say_json(verdict.as_json())
    else:
        typer.echo(str(verdict))
        typer.echo(f"Checkpoint: {verdict.head}")
    if not verdict.ok:
        raise typer.Exit(Refused.exit_code)


@audit.command()
def export(
    settings: _Settings,
    out: Annotated[Path, typer.Argument(help="New .zip file for the auditor.")],
) -> None:
    """Export the audit log, its public key and instructions, for the auditor of this site.

    It names no case. Example: knowmine-client audit export lyon/client.yaml lyon-audit.zip
    """
    from knowmine.client.audit.report import export as write
    from knowmine.client.egress.policy import policy_of
    from knowmine.client.settings import ClientSettings

    read = read_settings(ClientSettings, settings, {})
    files = write(read, policy_of(read), out)
    typer.echo(f"{files} files in {out}. Check it: knowmine-client audit verify --help")
