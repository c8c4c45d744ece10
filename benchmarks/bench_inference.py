"""One 1280 x 1024 image, file to mask, with a finished model: ours against smp in PyTorch float32.

    python -m benchmarks.bench_inference [--quick]

Theirs is plain_inference.py: PyTorch as it comes, the same two mirrored views, so that the masks are
equal. Ours is what `knowmine-client predict` runs, from an ONNX export (ONNX Runtime) and from a
safetensors export (PyTorch, channels_last). First with the programs warm, image after image; then
as a person meets it, the whole command for one image, start and imports included (ours also checks
the model's signed list and writes the overlay and the areas).
Writes benchmarks/results/inference.json and its rows in docs/performance.md.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import plain_inference
from benchmarks.measuring import HERE, arguments, in_turns, machine, row, write
from knowmine.client.data.images import read_image
from knowmine.client.predict.areas import segment
from knowmine.client.predict.networks import load_network
from knowmine.deploy.phantom.draw import draw, make_folder
from knowmine.deploy.simulation.progress import make_display
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.simulate import simulate
from knowmine.server.release.release import export
from knowmine.shared.package import open_package
from knowmine.shared.settings import read_settings

WIDTH, HEIGHT, PX = 1280, 1024, 224


def main() -> None:
    """Measure both backends, warm and as a command."""
    quick = arguments(__doc__, "fewer repeats").parse_args().quick
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        image = home / "image.jpg"
        Image.fromarray(draw(0)[0]).resize((WIDTH, HEIGHT)).save(image, quality=92)
        models = finished(home)
        rows = warm(home, image, models, 5 if quick else 12)
        rows += commands(home, image, models, 1 if quick else 3)
    write("inference", rows, before, quick=quick)


def finished(home: Path) -> dict[str, Path]:
    """A finished run of a few steps, exported both ways."""
    make_folder(home / "data", 8)
    flags = {
        "plan.method": "supervised",
        "plan.training": {"steps": 8, "batch": 4},
        "sites.data": home / "data",
        "sites.count": 1,
        "run.rounds": 1,
    }
    with make_display("json") as display:
        settings = read_settings(SimulationSettings, None, flags)
        simulate(settings, home / "run", resume=False, display=display)
    for form in ("onnx", "safetensors"):
        export(home / "run", form, home / form)
    return {form: home / form for form in ("onnx", "safetensors")}


def warm(home: Path, image: Path, models: dict[str, Path], repeats: int) -> list[dict[str, Any]]:
    """Image file to mask file in a process that has the model loaded."""
    theirs = plain_inference.load(models["safetensors"] / "model.safetensors")
    plain_file, rows = home / "theirs.png", []

    def plain() -> None:
        plain_inference.segment(theirs, image, plain_file)

    for form, runtime in (("onnx", "ONNX Runtime"), ("safetensors", "PyTorch")):
        network, file = (
            load_network(open_package(models[form], unsigned=True)),
            home / f"{form}.png",
        )

        def ours(network: Any = network, file: Path = file) -> None:
            mask = segment(network, read_image(image), PX).mask
            Image.fromarray(mask * np.uint8(255)).save(file)

        ours()
        plain()
        same = agreement(file, plain_file)
        seconds = in_turns(repeats, partial(ms, ours), partial(ms, plain))
        print(runtime, *map(np.median, seconds), same, flush=True)
        goal = 3 if form == "onnx" else None
        covered = 100 * read_mask(file).mean()
        note = f"masks agree, IoU {same:.4f}; they cover {covered:.0f} % of the image"
        name = f"one {WIDTH}x{HEIGHT} image, file to mask, {runtime}"
        rows.append(row(name, *seconds, "ms", goal, note=note))
        alone = networks_alone(network, theirs, repeats)
        rows.append(row(f"of that the network, two views, {runtime}", *alone, "ms"))
    return rows


def networks_alone(network: Any, theirs: Any, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both views through each side's network."""
    small = np.random.default_rng(0).random((2, 3, PX, PX), np.float32)
    x = torch.from_numpy(small)
    with torch.no_grad():
        return in_turns(
            repeats,
            lambda: ms(lambda: network(small)),
            lambda: ms(lambda: (theirs(x[:1]), theirs(x[1:]))),
        )


def commands(
    home: Path, image: Path, models: dict[str, Path], repeats: int
) -> list[dict[str, Any]]:
    """The whole command for one image, from nothing."""
    count = iter(range(1000))
    main_of = "from knowmine.client.cli import main; main()"
    model = models["safetensors"] / "model.safetensors"

    def ours() -> None:
        out = home / f"out-{next(count)}"
        run("-c", main_of, "predict", models["onnx"], image, "--out", out, "--unsigned")

    def plain() -> None:
        run(HERE / "plain_inference.py", model, image, home / "theirs.png")

    ours()
    plain()
    seconds = in_turns(repeats, lambda: ms(ours) / 1000, lambda: ms(plain) / 1000)
    print("commands", seconds, flush=True)
    return [row("the whole command for one image", *seconds, "s", 3)]


def run(*words: Any) -> None:
    """Python with these arguments, to its end."""
    subprocess.run(
        [sys.executable, *map(str, words)], check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL
    )


def agreement(ours: Path, theirs: Path) -> float:
    """IoU of two masks."""
    a, b = (read_mask(file) for file in (ours, theirs))
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 1.0


def read_mask(file: Path) -> NDArray[np.bool_]:
    """Foreground of a mask's file."""
    return np.asarray(Image.open(file)) > 0


def ms(work: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
