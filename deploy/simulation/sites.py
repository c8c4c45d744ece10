"""Open the simulated sites: each has its own images; all share one U-Net++ and one SAM."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from knowmine.client.data.dataset import HiddenMasks, SiteData, open_site, split_sites
from knowmine.client.device import Compute
from knowmine.client.site.open import opened
from knowmine.client.site.site import Site
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.shared_sam import SharedSam
from knowmine.shared.errors import UsageError
from knowmine.shared.log import Progress
from knowmine.shared.unetplusplus import build_model


def site_openers(
    settings: SimulationSettings, run: Path, sam: SharedSam, compute: Compute, progress: Progress
) -> Iterator[Callable[[], Site]]:
    """A function for each site that opens it.

    The sites share one U-Net++, because only one site works at a time.
    """
    network = build_model(settings.plan.model.model_copy(update={"pretrained": False}), seed=0)
    for data, hidden in open_folders(settings).values():
        yield partial(
            opened,
            data,
            hidden,
            settings.plan.model,
            settings.split,
            settings.sam,
            folder=run / "sites" / data.name,
            open_sam=sam.open,
            compute=compute,
            progress=progress,
            network=network,
        )


def open_folders(settings: SimulationSettings) -> dict[str, tuple[SiteData, HiddenMasks]]:
    """Each site's images by its name, and the masks that only its scorer may open.

    Raises `UsageError` if the settings name no data.
    """
    common = {**settings.split.arguments(), "seed": settings.plan.seed}
    if settings.sites.data:
        return split_sites(
            settings.sites.data,
            settings.sites.count,
            dirichlet_alpha=settings.sites.alpha,
            **common,
        )
    if not settings.sites.folders:
        raise UsageError(
            "no data: give --data FOLDER (divided into --sites N) or --site NAME=FOLDER for each"
        )
    return {
        name: open_site(name, folder, **common) for name, folder in settings.sites.folders.items()
    }
