"""`knowmine-client predict`: pass arguments to `predict_files`, print its outcome."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from knowmine.shared import verbosity
from knowmine.shared.command import checked_format, say_json

if TYPE_CHECKING:
    from knowmine.client.predict.predict import Outcome


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that `knowmine-server export` wrote.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="PNG, JPEG, TIFF, BMP, DICOM, NIfTI, or folders."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for masks, overlays and areas.csv.")],
    key: Annotated[
        Path | None,
        typer.Option(help="The coordinator's public key (PEM); the model must be signed with it."),
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Accept a model without a signature: your own.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")] = 0,
    format_: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Segment images on this machine with a model that the federation made.

    Nothing is sent anywhere. Example:
    knowmine-client predict polyps-model case.dcm more/ --out masks --key coordinator.pub
    """
    # Imported late, because decoders take half a second to import and --help must be fast.
    from knowmine.client.predict.predict import predict_files

    checked_format(format_)
    console = Console(stderr=True)
    with _Shown(console) as shown:
        outcome = predict_files(
            model,
            inputs,
            out,
            public_key=key,
            unsigned=unsigned,
            threads=threads,
            progress=shown,
        )
    if format_ == "json":
        say_json(report_of(outcome))
    else:
        _say(outcome, Console())
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def report_of(outcome: "Outcome") -> dict[str, Any]:
    """The outcome for `--format json`."""
    package = outcome.package
    return {
        "images": outcome.images,
        "doubted": outcome.doubted,
        "failed": outcome.failed,
        "without_seg": outcome.without_seg,
        "out": str(outcome.out),
        "model": package.card.name,
        "weights_sha256": package.card.weights_sha256,
        "signer": package.signer,
        "trusted": package.trusted,
    }


def _say(outcome: "Outcome", console: Console) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def nice(text: str, style: str = "") -> None:
        if not verbosity.quiet():
            line(text, style)

    from knowmine.shared.package import PUBLIC_KEY

    package = outcome.package
    if package.trusted:
        nice(f"Model {package.card.name}, signed with the key that you gave", "green")
    elif package.signer:
        line(
            f"Model {package.card.name} has not changed since it was signed with the key of fingerprint "
            f"{package.signer}; that key came with the model, so it does not show who signed: "
            "compare the fingerprint with the coordinator's by telephone, keep a copy of "
            f"{package.folder / PUBLIC_KEY} elsewhere, and give it as --key from then on",
            "yellow",
        )
    else:
        line(f"Model {package.card.name} is not signed: its origin is unknown", "yellow")
    for error in outcome.failed.values():
        line(error, "red")
    for file, reason in outcome.without_seg.items():
        line(f"{file}: {reason}; its masks are only written as PNG", "yellow")
    nice(f"{outcome.images} masks in {outcome.out}, areas in {outcome.out / 'areas.csv'}")
    if outcome.doubted:
        first = ", ".join(outcome.doubted[:5]) + (", ..." if len(outcome.doubted) > 5 else "")
        line(f"{len(outcome.doubted)} in doubt, check these first: {first}", "yellow")
    nice("Research software, not a medical device: look at every mask.")


class _Shown:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=verbosity.quiet() or not console.is_terminal,
        )

    def start(self, step: str, total: int) -> None:
        self._task = self._bar.add_task(step, total=total)

    def advance(self, n: int = 1) -> None:
        self._bar.advance(self._task, n)

    def done(self) -> None:
        """The bar disappears when its context ends."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
