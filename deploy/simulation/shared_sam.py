"""One SAM for all simulated sites: found before the run, loaded once."""

import threading
from collections.abc import Iterable
from typing import Any, Self

from knowmine.client.paths import cache_of
from knowmine.client.sam.interface import Sam
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import SamWeights, find_weights
from knowmine.client.site.site import Site
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.shared.errors import UsageError
from knowmine.shared.log import Progress


class SharedSam:
    """SAM, loaded at its first use.

    weights: None if the run's method uses no SAM.
    """

    def __init__(self, weights: SamWeights | None, settings: SimulationSettings) -> None:
        self._weights, self._settings = weights, settings
        self._loaded: Sam | None = None

    @classmethod
    def find(cls, settings: SimulationSettings, progress: Progress) -> Self:
        """Find the weights, or download them, and load them once as a check.

        Raises `WeightsError` if they cannot be used: before the first round rather than in the
        first that mines.
        """
        if not settings.plan.uses_sam:
            return cls(None, settings)
        sam = settings.sam
        found = cls(find_weights(sam.weights, cache_of(sam), DownloadProgress(progress)), settings)
        found.open()
        return found

    def open(self) -> Sam:
        """SAM, ready to use."""
        if self._weights is None:
            raise UsageError("SAM was requested by a run whose method uses none")
        if self._loaded is None:
            settings = self._settings
            self._loaded = load_sam(
                self._weights,
                input_px=settings.sam.side(settings.plan.model.image_px),
                device=settings.machine.device,
            )
        return self._loaded

    def facts(self, sites: Iterable[Site]) -> dict[str, Any] | None:
        """The summary's entry: SAM's name, its digest and the number of images it encoded."""
        if self._weights is None:
            return None
        images = sum(site.embedded for site in sites)
        return {"name": self._weights.name, "sha256": self._weights.digest, "images": images}


class DownloadProgress:
    """Shows a download as one step of a progress display."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._lock = progress, 0, threading.Lock()

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of `file` have arrived."""
        with self._lock:
            if not self._done:
                self._progress.start(f"fetching {file}", total or 0)
            self._progress.advance(done - self._done)
            self._done = done
            if total is not None and done >= total:
                self._progress.done()
                self._done = 0
