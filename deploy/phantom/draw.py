"""Draw endoscopy-like phantom images with their masks, so that everything runs without patients.

A phantom is a bowel wall as a height field under a headlight: haustral folds round a dark lumen,
vessels, wet highlights, and domes with another skin, the lesions. Flushed patches, bubbles,
residue and knobs of ordinary skin look like lesions in one respect each, so no single cue finds
them. The pictures stand in for real ones in the demo and the tests; they prove nothing about
real ones.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from knowmine.deploy.phantom.wall import Field, Look, Wall, rgb

EMPTY_SHARE = 0.12
"""Share of images without a lesion."""


def make_folder(
    folder: Path, images: int, seed: int = 0, style: int = 0, masks: int | None = None
) -> None:
    """Draw a data folder of `images` images: images/*.jpg, and a mask of each in masks/*.png.

    masks: so many of the images get one, and the others are unlabelled; all, if not given.

    Image number i depends on the seed, the style and i alone, so a larger folder begins with a
    smaller one. What else is in the folder stays.
    """
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(images):
        image, mask = draw(index, seed, style)
        stem = f"phantom-{index:04d}"
        Image.fromarray(image).save(folder / "images" / f"{stem}.jpg", quality=92)
        if masks is None or index < masks:
            Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")


def draw(index: int, seed: int = 0, style: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One phantom: image (H, W, 3) and mask (H, W), 255 on lesions, 300 to 420 pixels a side.

    `style` sets the look of one hospital's endoscope: colour, exposure, contrast, texture and
    the frame round the picture. Style 0 is neutral; any other number is a look of its own.
    """
    rng = np.random.default_rng([seed, style, index])
    look = _look(style)
    height, width = (int(side) for side in rng.integers(300, 421, size=2))
    wall = Wall(rng, height, width, look)

    lesions = 0 if rng.random() < EMPTY_SHARE else int(rng.choice([1, 1, 1, 2, 2, 3]))
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
    """Exposure, colour, a touch of blur, sensor noise and the black frame."""
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
    parser.add_argument("folder", type=Path, help="where images/ and masks/ go")
    parser.add_argument("--images", type=int, default=150, help="how many (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds, equal images")
    parser.add_argument("--style", type=int, default=0, help="look of one hospital, 0 is neutral")
    parser.add_argument("--masks", type=int, help="images that get a mask; not given: all")
    parser.add_argument(
        "--site",
        action="append",
        metavar="NAME",
        help="draw into FOLDER/NAME, in a look of its own; give it once for each site",
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
