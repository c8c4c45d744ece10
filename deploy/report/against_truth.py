"""Compare a simulation's pseudo-labels with the masks that it hid.

Only a few sites and their last rounds are compared, so that the report of a large run stays small.
"""

import itertools
from collections.abc import Iterable

from knowmine.client.data.metrics import dice
from knowmine.client.site.site import Site
from knowmine.client.storage.report_samples import load_gallery, load_sample
from knowmine.deploy.report.mining_figures import Measured
from knowmine.deploy.report.report import GalleryItem

SITES, ROUNDS = 8, 4


def gallery_of(sites: Iterable[Site]) -> list[GalleryItem]:
    """The pseudo-labels that sites kept for the report, with the true mask if it is known."""
    items = []
    for site in itertools.islice(sites, SITES):
        for kept in load_gallery(site.state.folder, ROUNDS):
            truth = site.scorer.truth(kept.case_id, kept.image.shape[0])
            known = None if truth is None else dice(kept.label > 0.5, truth > 0)
            items.append(
                GalleryItem(
                    site=site.name,
                    round=kept.round,
                    case=kept.case_id,
                    predicted=kept.quality,
                    kept=kept.kept,
                    true_dice=known,
                    image=kept.image,
                    unet=kept.unet,
                    sam=kept.sam,
                    fused=kept.label,
                    truth=truth,
                )
            )
    return items


def measured_of(sites: Iterable[Site]) -> list[Measured]:
    """Predicted and true Dice of a sample of the pseudo-labels whose true mask is known."""
    return [
        Measured(site.name, one.round, one.quality, dice(one.mask, truth > 0), one.kept)
        for site in itertools.islice(sites, SITES)
        for one in load_sample(site.state.folder, ROUNDS)
        if (truth := site.scorer.truth(one.case_id, one.mask.shape[0])) is not None
    ]
