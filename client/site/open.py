"""A site from its data and its settings, the same in every way to run it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from knowmine.client.data.dataset import HiddenMasks, SiteData, open_site
from knowmine.client.data.scoring import Scorer
from knowmine.client.device import Compute, pick_compute, settle
from knowmine.client.paths import REHEARSAL, SITE, VAULT_KEYS, cache_of, embeddings_of
from knowmine.client.sam.interface import Sam
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.session import SamSession
from knowmine.client.sam.weights import find_weights
from knowmine.client.settings import ClientSettings, DataSettings, MachineSettings, SamSettings
from knowmine.client.site.images import SiteImages
from knowmine.client.site.models import SiteModels
from knowmine.client.site.site import Site
from knowmine.client.site.state import SiteState
from knowmine.client.storage.encryption import Seal
from knowmine.shared.files import FolderLock
from knowmine.shared.log import Progress, Silent
from knowmine.shared.settings import ModelSettings
from knowmine.shared.trust.keys import make_private_folder


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
    seal: Seal | None = None,
    embeddings_bytes: int = 0,
    network: nn.Module | None = None,
) -> Site:
    """The site, its images decoded; `folder` is its own.

    network: see `SiteModels`; embeddings_bytes: most that SAM's embeddings may take, 0 is no limit.
    """
    scorer = Scorer(hidden, model.classes, max_image_px=split.max_image_px)
    images = SiteImages(data, model, split)
    scorer.check(images.test.cases)
    session = SamSession(
        open_sam, embeddings_of(sam), split.max_image_px, seal=seal, quota_bytes=embeddings_bytes
    )
    models = SiteModels(model, session, compute, network)
    return Site(data.name, images, models, SiteState(folder, seal), scorer, progress or Silent())


def open_site_of(settings: ClientSettings, progress: Progress | None = None) -> Site:
    """A hospital's site from its settings file.

    Raises `UsageError` where data, weights or machine will not do.
    """
    settle(settings.machine.threads)
    data, hidden = open_site(
        settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
    )

    return _of(
        settings,
        data,
        hidden,
        settings.state / SITE,
        sam_opener(settings.sam, settings.machine, settings.model.image_px),
        progress,
    )


@contextmanager
def rehearsal(
    settings: ClientSettings,
    data: SiteData,
    hidden: HiddenMasks,
    open_sam: Callable[[], Sam] | None = None,
    progress: Progress | None = None,
) -> Iterator[Site]:
    """The site for a round that only pretends: sealed as ever, and its folder goes at the end.

    Raises `UsageError` while another one is under way.
    """
    folder = settings.state / SITE / REHEARSAL
    make_private_folder(folder)
    lock = FolderLock(folder)
    try:
        for left in folder.glob("[!.]*"):  # of one that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        open_sam = open_sam or sam_opener(settings.sam, settings.machine, settings.model.image_px)
        yield _of(settings, data, hidden, folder, open_sam, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _of(
    settings: ClientSettings,
    data: SiteData,
    hidden: HiddenMasks,
    folder: Path,
    open_sam: Callable[[], Sam],
    progress: Progress | None,
) -> Site:
    make_private_folder(folder)
    return opened(
        data,
        hidden,
        settings.model,
        settings.split,
        settings.sam,
        folder=folder,
        open_sam=open_sam,
        compute=pick_compute(settings.machine.device),
        progress=progress,
        seal=seal_of(settings) if settings.at_rest.encrypt else None,
        embeddings_bytes=int(settings.at_rest.quota_gb * 1e9),
    )


def sam_opener(sam: SamSettings, machine: MachineSettings, image_px: int) -> Callable[[], Sam]:
    """Finds SAM's weights and loads them, when it is called. image_px: side of the model frame."""

    def open_sam() -> Sam:
        weights = find_weights(sam.weights, cache_of(sam))
        return load_sam(weights, input_px=sam.side(image_px), device=machine.device)

    return open_sam


def seal_of(settings: ClientSettings) -> Seal:
    """The project's key, which the process that sees the images makes and keeps."""
    # Not in the folder of the network's keys: that one is out of the vault's reach.
    return Seal(settings.state / VAULT_KEYS)
