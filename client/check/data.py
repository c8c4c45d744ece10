"""Look at a data folder as a careful colleague would, before a federation does.

Counts and pairs come from the same code as a run's. The rest are signs, not proofs: what looks
like burned-in text is for a person to look at, and so is the contact sheet.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import dcmread

from knowmine.client.check.findings import Finding
from knowmine.client.data import dicom
from knowmine.client.data.dataset import Case, SiteData, open_site
from knowmine.client.data.images import read_image, read_mask
from knowmine.client.paths import save_picture
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import DataError

NEAR = 3
"""Bits of 64 by which the difference hashes of near-duplicates differ at most."""
LOOKED_AT = 2000
"""Images that are decoded; of larger folders an even choice."""
FEW_LABELS = 8
COARSE_PX = 512
"""About the long side of what thumbnails and hashes are made from: all pixels take longer."""
SHEET_COLUMNS, SHEET_ROWS, THUMB_PX = 8, 6, 128
IDENTIFYING = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "InstitutionName")


@dataclass(frozen=True)
class Look:
    """What one image looks like. hash: 64 bits; two of near-duplicates differ in few."""

    stem: str
    size: tuple[int, int]
    hash: int
    text: bool
    identifying: bool
    foreground: float | None
    thumb: NDArray[np.uint8]


def check_data(settings: ClientSettings) -> list[Finding]:
    """Findings about the folder; keeps a contact sheet in the vault's part of the state folder."""
    try:
        data, _ = open_site(
            settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
        )
    except DataError as error:
        return [
            Finding("data", "error", str(error), "the site cannot take part", "mend the folder")
        ]
    looks = look_at(data, settings.model.classes, settings.split.max_image_px)
    sheet = save_picture(settings.state, "contact-sheet.png", contact_sheet(looks))
    return [
        *counted(data),
        *sizes_of(looks),
        *near_duplicates(looks),
        *identifying(looks),
        *balance(looks),
        Finding(
            "data",
            "note",
            f"a contact sheet of {min(len(looks), SHEET_COLUMNS * SHEET_ROWS)} images: {sheet}",
            "it shows patients' images, readable to this account alone; `forget` removes it",
        ),
    ]


def look_at(data: SiteData, classes: int, max_image_px: int) -> list[Look]:
    """Decode the images, or an even choice of very many."""
    cases = [*data.labelled, *data.probe, *data.unlabelled, *data.test]
    chosen = cases[:: max(1, len(cases) // LOOKED_AT)]

    def look(case: Case) -> Look | None:
        try:
            return _look(case, classes, max_image_px)
        except DataError:
            return None  # counted as left out when the site opens

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [found for found in pool.map(look, chosen) if found]


def counted(data: SiteData) -> list[Finding]:
    """How many images there are of each kind, and what was left out."""
    kinds = {
        "labelled": len(data.labelled) + len(data.probe),
        "unlabelled": len(data.unlabelled),
        "probe": len(data.probe),
        "test": len(data.test),
    }
    what = (
        f"{kinds['labelled']} labelled ({kinds['probe']} of them judge), {kinds['unlabelled']} "
        f"unlabelled, {kinds['test']} test images"
    )
    found = [Finding("data", "good", what, facts=kinds)]
    if kinds["labelled"] < FEW_LABELS:
        found.append(
            Finding(
                "data",
                "warning",
                f"{kinds['labelled']} labelled images",
                "a site with few labels learns mostly from the others, and cannot judge by itself",
                "put masks beside some more images",
            )
        )
    if not kinds["unlabelled"]:
        found.append(
            Finding(
                "data",
                "note",
                "no unlabelled images",
                "there is nothing to mine here; the site takes part with its labels alone",
                "add images without masks",
            )
        )
    for line in data.left_out[:5]:
        found.append(Finding("data", "warning", f"left out: {line}", mend="export it again"))
    found += [Finding("data", "note", warning) for warning in data.warnings]
    return found


def sizes_of(looks: Sequence[Look]) -> list[Finding]:
    """Images much larger or smaller than is usual here."""
    if not looks:
        return []
    heights = np.array([look.size[0] for look in looks])
    usual = float(np.median(heights))
    odd = [look.stem for look in looks if not usual / 3 < look.size[0] < usual * 3]
    (size, count), *_ = Counter(look.size for look in looks).most_common(1)
    smallest, largest = min(look.size for look in looks), max(look.size for look in looks)
    what = f"{count} of {len(looks)} images are {size[1]} x {size[0]} pixels"
    if count < len(looks) / 2:
        what = f"images from {smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]} pixels"
    found = [Finding("data", "good", what)]
    if odd:
        found.append(
            Finding(
                "data",
                "note",
                f"{len(odd)} images of an unusual size, such as {odd[0]}",
                "thumbnails and screenshots slip into exports",
                "look at them on the contact sheet",
            )
        )
    return found


def near_duplicates(looks: Sequence[Look]) -> list[Finding]:
    """Pairs that look the same: they count double, and leak where one of them is a test image."""
    hashes = np.array([look.hash for look in looks], np.uint64)
    pairs = []
    for i in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(distance <= NEAR)]
    if not pairs:
        return [Finding("data", "good", "no near-duplicates")]
    first, second = (looks[n].stem for n in pairs[0])
    return [
        Finding(
            "data",
            "warning",
            f"{len(pairs)} pairs of images look the same, such as {first} and {second}",
            "frames of one recording in training and test make the scores look better than they are",
            "group them by a column of index.csv (split.group_by), or leave one of each out",
            {"pairs": len(pairs)},
        )
    ]


def identifying(looks: Sequence[Look]) -> list[Finding]:
    """Signs of a patient's identity in pixels or tags. Nothing of either is ever sent."""
    found = []
    text = [look.stem for look in looks if look.text]
    if text:
        found.append(
            Finding(
                "data",
                "warning",
                f"{len(text)} images may have burned-in text, such as {text[0]}",
                "a network can learn from it, and overlays that you export would show it",
                "look at them; blank the text or leave them out",
                {"images": len(text)},
            )
        )
    tagged = sum(look.identifying for look in looks)
    if tagged:
        found.append(
            Finding(
                "data",
                "note",
                f"{tagged} DICOM files carry a patient's name, number or the like",
                "tags are never read for training and never sent",
                "pseudonymise them all the same where your rules ask for it",
                {"files": tagged},
            )
        )
    return found or [Finding("data", "good", "no sign of burned-in text or identifying tags")]


def balance(looks: Sequence[Look]) -> list[Finding]:
    """How much of the labelled images is foreground."""
    shares = [look.foreground for look in looks if look.foreground is not None]
    if not shares:
        return []
    empty = sum(share == 0 for share in shares)
    what = f"foreground covers {np.median(shares):.1%} of a labelled image (median); {empty} empty"
    if empty > len(shares) / 2:
        why = "most of the labels say that there is nothing, and the network may learn just that"
        return [Finding("data", "warning", what, why, "label more images with findings")]
    if max(shares) > 0.98:
        why = "a mask that covers the whole image is often an inverted one"
        return [Finding("data", "warning", what + "; one covers all", why, "look at the masks")]
    return [Finding("data", "good", what)]


def contact_sheet(looks: Sequence[Look]) -> Image.Image:
    """A grid of small images, evenly chosen; possible text is framed."""
    count = SHEET_COLUMNS * SHEET_ROWS
    chosen = [look for look in looks if look.text][: count // 2]
    chosen += [look for look in looks[:: max(1, len(looks) // count)] if not look.text]
    chosen = chosen[:count]
    rows = max(1, -(-len(chosen) // SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * THUMB_PX, rows * THUMB_PX), "#202124")
    draw = ImageDraw.Draw(sheet)
    for place, look in enumerate(chosen):
        left, top = place % SHEET_COLUMNS * THUMB_PX, place // SHEET_COLUMNS * THUMB_PX
        sheet.paste(Image.fromarray(look.thumb), (left, top))
        if look.text:
            box = (left, top, left + THUMB_PX - 1, top + THUMB_PX - 1)
            draw.rectangle(box, outline="#f9ab00", width=3)
    return sheet


def has_text(grey: NDArray[np.uint8]) -> bool:
    """Whether a part of an image, (H, W), looks like a line of computer text.

    Text is two-valued and full of upright edges: in a window of the height of a line, more than
    an eighth of all neighbours jump, and nearly all pixels are close to one of two values.
    """
    height, width = 16, 64
    left, right = grey[:, :-1], grey[:, 1:]
    jumps = np.maximum(left, right) - np.minimum(left, right) > 80
    rows, columns = grey.shape[0] // height, (grey.shape[1] - 1) // width
    if not rows or not columns:
        return False
    cut = jumps[: rows * height, : columns * width].view(np.uint8)
    # Sums in bytes first, along the rows: a mean of bools over two axes takes ten times as long.
    upright = cut.reshape(rows, height, columns * width).sum(1, dtype=np.uint8)
    density = upright.reshape(rows, columns, width).sum(2) / (height * width)
    for row, column in zip(*np.nonzero(density > 0.125), strict=True):
        window = grey[row * height : (row + 1) * height, column * width : (column + 1) * width]
        counts = np.bincount(window.ravel() >> 4, minlength=16)
        dark, bright = counts[:8], counts[8:]
        if dark.max() + bright.max() > 0.8 * counts.sum() and bright.max() > 0.05 * counts.sum():
            return True
    return False


def _look(case: Case, classes: int, max_image_px: int) -> Look:
    image = read_image(case.image, max_image_px=max_image_px)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    step = max(1, max(grey.shape) // COARSE_PX)
    small = Image.fromarray(image[::step, ::step])
    thumb = small.copy()
    thumb.thumbnail((THUMB_PX, THUMB_PX))
    tile = Image.new("RGB", (THUMB_PX, THUMB_PX))
    tile.paste(thumb, ((THUMB_PX - thumb.width) // 2, (THUMB_PX - thumb.height) // 2))
    tiny = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits((tiny[:, 1:] > tiny[:, :-1]).ravel())
    foreground = None
    if case.mask is not None:
        mask = read_mask(case.mask, classes, max_image_px=max_image_px)
        foreground = float((mask > 0).mean())
    return Look(
        stem=case.stem,
        size=(image.shape[0], image.shape[1]),
        hash=int.from_bytes(bits.tobytes()),
        text=has_text(grey),
        identifying=dicom.is_dicom(case.image) and _identifies(case.image),
        foreground=foreground,
        thumb=np.asarray(tile),
    )


def _identifies(path: Path) -> bool:
    header = dcmread(path, stop_before_pixels=True, specific_tags=list(IDENTIFYING))
    return any(str(header.get(tag) or "").strip() for tag in IDENTIFYING)
