"""Draw what a reviewer sees of a case, as PNG: the image, the models' masks, the own masks."""

import numpy as np
from PIL import Image

from knowmine.client.review.cases import Cases, ReviewCase, UnknownCase, original_image
from knowmine.client.review.decisions import Decision, draft_path, label_path
from knowmine.client.review.mask_png import png_of, resized_mask


def image_png(cases: Cases, case: ReviewCase) -> bytes:
    """The image in the frame shown: from the data folder, else the small copy of the round."""
    image = original_image(case)
    height, width = case.shown
    shown = Image.fromarray(cases.pixels(case).image if image is None else image)
    if shown.size != (width, height):
        shown = shown.resize((width, height), Image.Resampling.BILINEAR)
    return png_of(np.asarray(shown))


def model_mask_png(cases: Cases, case: ReviewCase, which: str) -> bytes | None:
    """A mask of the models in the frame shown: unet, sam or label (the fused one); None if none."""
    pixels = cases.pixels(case)
    masks = {"unet": pixels.unet, "sam": pixels.sam, "label": pixels.label}
    if which not in masks:
        raise UnknownCase(f"no mask {which!r}: expected unet, sam or label")
    mask = masks[which]
    if mask is None:
        return None
    height, width = case.shown
    smooth = Image.fromarray(np.asarray(mask, np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return png_of(np.asarray(smooth) > 0.5)


def draft_png(case: ReviewCase, window: str) -> bytes | None:
    """A window's strokes without a decision yet, in the frame shown; None if there are none."""
    try:
        png = draft_path(case.site.folder, case.label.case_id, window).read_bytes()
    except FileNotFoundError:
        return None
    return resized_mask(png, case.shown)


def accepted_png(case: ReviewCase, decision: Decision | None) -> bytes | None:
    """The mask that a decision made the case's label, in the frame shown; None if there is none."""
    path = None if decision is None else label_path(case.site.folder, decision)
    return None if path is None else resized_mask(path.read_bytes(), case.shown)
