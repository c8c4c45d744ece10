"""`knowmine-server export`: write a finished run's model as a signed folder."""

from pathlib import Path
from typing import Annotated

import typer

from knowmine.shared.command import checked_format, say, say_json
from knowmine.shared.model_card import ModelFormat


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[ModelFormat, typer.Option(help="onnx suits `knowmine-client predict` best.")],
    out: Annotated[Path, typer.Option(help="New folder for the exported model.")],
    key: Annotated[
        Path | None, typer.Option(help="Private Ed25519 key (PEM) to sign the export with.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "knowmine U-Net++",
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name of a class, in the order of values; repeatable."),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="DICOM modality that predict accepts, such as DX; repeatable."),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights.")
    ] = "not stated: ask the coordinator",
    format_: Annotated[str, typer.Option("--format", help="text, or json: the card.")] = "text",
) -> None:
    """Write a finished run's model with its card and signature, ready for the sites.

    Example: knowmine-server export run --to onnx --out polyps-model --key signing.pem --class polyp
    """
    # Imported late, because it takes a moment: --help should answer at once.
    from knowmine.server.release.release import export as export_run
    from knowmine.shared.package import PUBLIC_KEY, fingerprint_of, read_public_key

    checked_format(format_)
    card = export_run(
        run,
        to,
        out,
        key,
        name=name,
        class_names=class_ or (),
        modalities=modality or (),
        licence=licence,
    )
    if format_ == "json":
        say_json(card.model_dump(mode="json"))
        return
    say(f"{card.name} as {card.model_format} in {out}; read MODEL_CARD.md there")
    if key is None:
        typer.echo(
            "Not signed: give --key, or `knowmine-client predict` refuses it without --unsigned",
            err=True,
        )
    else:
        signer = fingerprint_of(read_public_key(out / PUBLIC_KEY))
        say(
            f"Signed by the key {signer}: send the sites {PUBLIC_KEY}, or that fingerprint, by another "
            "way than the model"
        )
