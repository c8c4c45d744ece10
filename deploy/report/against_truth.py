"""A simulation's pseudo-labels beside the masks that it hid: pictures, and what judging was worth.

Of a few sites and their last rounds, so that a large run's report stays as small as another's.
"""

import itertools
from collections.abc import Iterable

from knowmine.client.data.metrics import dice
from knowmine.client.site.site import Site
from knowmine.client.storage.report_samples import load_gallery, load_sample
from knowmine.deploy.report.mining_figures import Judged
from knowmine.deploy.report.report import GalleryItem

SITES, ROUNDS = 8, 4


def gallery_of(sites: Iterable[Site]) -> list[GalleryItem]:
    """Pseudo-labels that sites kept for people to see, with the truth where it is known."""
    items = []
    for site in itertools.islice(sites, SITES):
        for kept in load_gallery(site.folder, ROUNDS):
            truth = site.scorer.truth(kept.stem, kept.image.shape[0])
            known = None if truth is None else dice(kept.label > 0.5, truth > 0)
            items.append(
                GalleryItem(
                    site=site.name,
                    round=kept.round,
                    stem=kept.stem,
                    quality=kept.quality,
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


def judged_of(sites: Iterable[Site]) -> list[Judged]:
    """How good a sample of the pseudo-labels was thought to be and was, where that is known."""
    return [
        Judged(site.name, one.round, one.quality, dice(one.mask, truth > 0), one.kept)
        for site in itertools.islice(sites, SITES)
        for one in load_sample(site.folder, ROUNDS)
        if (truth := site.scorer.truth(one.stem, one.mask.shape[0])) is not None
    ]
