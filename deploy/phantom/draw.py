"""Draw endoscopy-like phantom images with their masks, so that everything runs without patients' images.

A phantom is a bowel wall as a height field, lit from the camera: haustral folds around a dark lumen,
vessels, wet highlights, and lesions, which are domes with another skin. Red patches, bubbles, residue
and knobs of ordinary skin resemble lesions in one respect each, so no single cue finds the lesions.
The demo and the tests use phantoms; results on them say nothing about real images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from knowmine.deploy.phantom.wall import Field, Look, Wall, rgb

EMPTY_FRACTION = 0.12
"""Fraction of images without a lesion."""


def make_folder(
    folder: Path, images: int, seed: int = 0, style: int = 0, masks: int | None = None
) -> None:
    """Draw a data folder of `images` images: images/*.jpg, and a mask of each in masks/*.png.

    masks: the first so many images get a mask; None gives one to each.

    Image number i depends only on the seed, the style and i, so a larger folder begins with the
    images of a smaller one. Other files in the folder stay.
    """
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(images):
        image, mask = draw(index, seed, style)
        case = f"phantom-{index:04d}"
        Image.fromarray(image).save(folder / "images" / f"{case}.jpg", quality=92)
        if masks is None or index < masks:
            Image.fromarray(mask).save(folder / "masks" / f"{case}.png")


def draw(index: int, seed: int = 0, style: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One phantom: image (H, W, 3) and mask (H, W), 255 on lesions, 300 to 420 pixels a side.

    style: the look of one hospital's endoscope: colour, exposure, contrast, texture and the frame
    around the image. 0 is neutral; each other number is another look.
    """
    rng = np.random.default_rng([seed, style, index])
    look = _look(style)
    height, width = (int(side) for side in rng.integers(300, 421, size=2))
    wall = Wall(rng, height, width, look)

    lesions = 0 if rng.random() < EMPTY_FRACTION else int(rng.choice([1, 1, 1, 2, 2, 3]))
    wall.add_folds()
    wall.add_vessels()
    wall.add_flush()
    wall.add_knobs()
    for _ in range(lesions):
        wall.add_lesion()
    wall.add_residue()
    image = _as_photographed(wall.render(), wall.frame, rng, look)
    return image, (wall.truth & wall.frame).astype(np.uint8) * np.uint8(255)


def _look(style: int) -> Look:
    if style == 0:
        return Look()
    rng = np.random.default_rng([7, style])
    return Look(
        tint=(
            float(rng.uniform(0.86, 1.04)),
            float(rng.uniform(0.84, 1.20)),
            float(rng.uniform(0.80, 1.35)),
        ),
        brightness=float(rng.uniform(0.78, 1.15)),
        contrast=float(rng.uniform(0.8, 1.35)),
        texture=float(rng.uniform(0.6, 1.6)),
        grain=float(rng.uniform(0.7, 1.5)),
        frame=("circle", "octagon", "full")[style % 3],
    )


def _as_photographed(
    lit: Field, frame: NDArray[np.bool_], rng: np.random.Generator, look: Look
) -> NDArray[np.uint8]:
    """Add exposure, colour, slight blur, sensor noise and the black frame."""
    exposure = look.brightness * rng.uniform(0.88, 1.12)
    shot = 255 - 255 * np.exp(-1.9 * exposure * rgb(*look.tint) * lit)
    blurred = Image.fromarray(np.stack(list(shot.astype(np.uint8)), axis=-1)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))
    )
    grain = 2.5 * rng.standard_normal(frame.shape, np.float32)
    image = (np.asarray(blurred, np.float32) + grain[..., None]) * frame[..., None] + 3
    photograph: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return photograph


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a data folder from the command line."""
    parser = argparse.ArgumentParser(prog="phantom", description="Draw a phantom data folder.")
    parser.add_argument("folder", type=Path, help="folder to write images/ and masks/ into")
    parser.add_argument("--images", type=int, default=150, help="number of images (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal images")
    parser.add_argument("--style", type=int, default=0, help="look of one hospital; 0 is neutral")
    parser.add_argument("--masks", type=int, help="number of images that get a mask (default: all)")
    parser.add_argument(
        "--site",
        action="append",
        metavar="NAME",
        help="draw into FOLDER/NAME, each site in another style; repeatable",
    )
    wanted = parser.parse_args(arguments)
    if wanted.site is None:
        folders = [(wanted.folder, wanted.style)]
    else:
        folders = [(wanted.folder / n, wanted.style + i) for i, n in enumerate(wanted.site, 1)]
    for folder, style in folders:
        make_folder(folder, wanted.images, wanted.seed, style, wanted.masks)
        print(f"{wanted.images} phantom images in {folder}")


if __name__ == "__main__":
    main()
