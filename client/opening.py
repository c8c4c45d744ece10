"""A site from its data and its settings, the same in every way to run it."""

from collections.abc import Callable
from pathlib import Path

from knowmine.client.compute import Compute
from knowmine.client.dataset import HiddenMasks, SiteData
from knowmine.client.sam import Sam
from knowmine.client.sam_weights import default_cache
from knowmine.client.scoring import Scorer
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site import Site
from knowmine.shared.log import Progress
from knowmine.shared.settings import ModelSettings


def opened(
    data: SiteData,
    hidden: HiddenMasks,
    model: ModelSettings,
    split: DataSettings,
    sam: SamSettings,
    *,
    folder: Path,
    open_sam: Callable[[], Sam],
    compute: Compute,
    progress: Progress | None = None,
) -> Site:
    """The site, its images decoded; `folder` is its own."""
    return Site(
        data,
        Scorer(hidden, model.classes, max_image_px=split.max_image_px),
        model,
        folder=folder,
        embeddings=cache_of(sam) / "embeddings",
        open_sam=open_sam,
        compute=compute,
        max_image_px=split.max_image_px,
        max_bad_share=split.max_bad_share,
        progress=progress,
    )


def cache_of(sam: SamSettings) -> Path:
    """Where weights and embeddings are kept."""
    return sam.cache or default_cache()
