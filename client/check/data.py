"""Check a data folder: counts, sizes, near-duplicates, identifying content, masks.

Counts and pairs come from the same code as in a run. The other findings are signs, not proofs. A
person should look at images that may have burned-in text, and at the contact sheet.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from knowmine.client.check.findings import Finding
from knowmine.client.check.inspection import (
    SHEET_COLUMNS,
    SHEET_ROWS,
    Inspected,
    contact_sheet,
    inspect_images,
)
from knowmine.client.data.dataset import SiteData, open_site
from knowmine.client.paths import save_picture
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import DataError

NEAR = 3
"""Most bits, of 64, in which the difference hashes of near-duplicates differ."""
FEW_LABELS = 8


def check_data(settings: ClientSettings) -> list[Finding]:
    """Findings about the folder. Writes a contact sheet into the vault's part of the state folder."""
    try:
        data, _ = open_site(
            settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
        )
    except DataError as error:
        return [
            Finding("data", "error", str(error), "the site cannot take part", "correct the folder")
        ]
    images = inspect_images(data, settings.model.classes, settings.split.max_image_px)
    sheet = save_picture(settings.state, "contact-sheet.png", contact_sheet(images))
    return [
        *counted(data),
        *sizes_of(images),
        *near_duplicates(images),
        *identifying(images),
        *balance(images),
        Finding(
            "data",
            "note",
            f"a contact sheet of {min(len(images), SHEET_COLUMNS * SHEET_ROWS)} images: {sheet}",
            "it shows patients' images; only this account can read it, and `forget` removes it",
        ),
    ]


def counted(data: SiteData) -> list[Finding]:
    """The number of images of each kind, and what was left out."""
    kinds = {
        "labelled": len(data.labelled) + len(data.calibration),
        "unlabelled": len(data.unlabelled),
        "calibration": len(data.calibration),
        "test": len(data.test),
    }
    what = (
        f"{kinds['labelled']} labelled ({kinds['calibration']} of them for calibration), "
        f"{kinds['unlabelled']} unlabelled, {kinds['test']} test images"
    )
    found = [Finding("data", "good", what, facts=kinds)]
    if kinds["labelled"] < FEW_LABELS:
        found.append(
            Finding(
                "data",
                "warning",
                f"{kinds['labelled']} labelled images",
                "with few labels, training depends on the other sites, and so does the quality estimate",
                "add masks for some more images",
            )
        )
    if not kinds["unlabelled"]:
        found.append(
            Finding(
                "data",
                "note",
                "no unlabelled images",
                "there is nothing to mine here; the site takes part only with its labels",
                "add images without masks",
            )
        )
    for line in data.left_out[:5]:
        found.append(Finding("data", "warning", f"left out: {line}", repair="export it again"))
    found += [Finding("data", "note", warning) for warning in data.warnings]
    return found


def sizes_of(images: Sequence[Inspected]) -> list[Finding]:
    """Images much larger or smaller than usual in this folder."""
    if not images:
        return []
    heights = np.array([image.size[0] for image in images])
    usual = float(np.median(heights))
    odd = [image.case_id for image in images if not usual / 3 < image.size[0] < usual * 3]
    (size, count), *_ = Counter(image.size for image in images).most_common(1)
    smallest, largest = min(image.size for image in images), max(image.size for image in images)
    what = f"{count} of {len(images)} images are {size[1]} x {size[0]} pixels"
    if count < len(images) / 2:
        what = f"images from {smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]} pixels"
    found = [Finding("data", "good", what)]
    if odd:
        found.append(
            Finding(
                "data",
                "note",
                f"{len(odd)} images of an unusual size, such as {odd[0]}",
                "exports sometimes contain thumbnails and screenshots",
                "look at them on the contact sheet",
            )
        )
    return found


def near_duplicates(images: Sequence[Inspected]) -> list[Finding]:
    """Pairs that look the same. They count double, and they leak if one of them is a test image."""
    hashes = np.array([image.hash for image in images], np.uint64)
    pairs = []
    for i in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(distance <= NEAR)]
    if not pairs:
        return [Finding("data", "good", "no near-duplicates")]
    first, second = (images[n].case_id for n in pairs[0])
    return [
        Finding(
            "data",
            "warning",
            f"{len(pairs)} pairs of images look the same, such as {first} and {second}",
            "frames of one recording in both training and test make the scores too good",
            "group them by a column of index.csv (split.group_by), or remove one of each pair",
            {"pairs": len(pairs)},
        )
    ]


def identifying(images: Sequence[Inspected]) -> list[Finding]:
    """Signs of a patient's identity in pixels or tags. Neither is ever sent."""
    found = []
    text = [image.case_id for image in images if image.text]
    if text:
        found.append(
            Finding(
                "data",
                "warning",
                f"{len(text)} images may have burned-in text, such as {text[0]}",
                "a network can learn it, and exported overlays would show it",
                "look at them; blank the text or remove the images",
                {"images": len(text)},
            )
        )
    tagged = sum(image.identifying for image in images)
    if tagged:
        found.append(
            Finding(
                "data",
                "note",
                f"{tagged} DICOM files contain a patient's name, number or similar",
                "tags are never read for training and never sent",
                "pseudonymise them if your rules require it",
                {"files": tagged},
            )
        )
    return found or [Finding("data", "good", "no sign of burned-in text or identifying tags")]


def balance(images: Sequence[Inspected]) -> list[Finding]:
    """The fraction of foreground in the labelled images."""
    fractions = [image.foreground for image in images if image.foreground is not None]
    if not fractions:
        return []
    empty = sum(fraction == 0 for fraction in fractions)
    what = (
        f"foreground covers {np.median(fractions):.1%} of a labelled image (median); {empty} empty"
    )
    if empty > len(fractions) / 2:
        why = "most masks are empty, and the network may learn to predict nothing"
        return [Finding("data", "warning", what, why, "label more images with foreground")]
    if max(fractions) > 0.98:
        why = "a mask that covers the whole image is often inverted"
        return [
            Finding(
                "data", "warning", what + "; one covers the whole image", why, "look at the masks"
            )
        ]
    return [Finding("data", "good", what)]
