"""A simulation's pseudo-labels beside the masks that it hid: pictures, and what judging was worth.

Of a few sites and their last rounds, so that a large run's report stays as small as another's.
"""

import itertools
from collections.abc import Iterable

from knowmine.client.gallery import load_gallery, load_sample
from knowmine.client.site import Site
from knowmine.deploy.mining_figures import Judged
from knowmine.deploy.report import GalleryItem
from knowmine.shared.metrics import dice

SITES, ROUNDS = 8, 4


def gallery_of(sites: Iterable[Site]) -> list[GalleryItem]:
    """Pseudo-labels that sites kept for people to see, with the truth where it is known."""
    items = []
    for site in itertools.islice(sites, SITES):
        for mined, seen in load_gallery(site.folder, ROUNDS):
            truth = site.scorer.truth(mined.stem, seen.image.shape[0])
            known = None if truth is None else dice(seen.label > 0.5, truth > 0)
            items.append(
                GalleryItem(
                    site=site.name,
                    round=mined.round,
                    stem=mined.stem,
                    quality=mined.quality,
                    kept=mined.kept,
                    true_dice=known,
                    image=seen.image,
                    unet=seen.unet,
                    sam=seen.sam,
                    fused=seen.label,
                    truth=truth,
                )
            )
    return items


def judged_of(sites: Iterable[Site]) -> list[Judged]:
    """How good a sample of the pseudo-labels was thought to be and was, where that is known."""
    return [
        Judged(site.name, one.round, one.quality, dice(mask, truth > 0), one.kept)
        for site in itertools.islice(sites, SITES)
        for one, mask in load_sample(site.folder, ROUNDS)
        if (truth := site.scorer.truth(one.stem, mask.shape[0])) is not None
    ]
