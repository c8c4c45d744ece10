"""A site's images in memory, by purpose; their pixels can be dropped and read again.

A simulation of many sites drops the pixels of sites that wait for their turn; see `rest`.
"""

import torch

from knowmine.client.data.dataset import Case, SiteData, load_images, refuse_many_bad
from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.withdrawn import withdrawn_in
from knowmine.client.settings import DataSettings
from knowmine.shared.settings import ModelSettings

PURPOSES = ("labelled", "calibration", "unlabelled", "test")
WITH_TRUTH = ("labelled", "calibration")
"""Purposes whose masks the site may see."""


class SiteImages:
    """The images of one site, divided by purpose.

    left_out: each image that takes no part, as "case: reason".

    Raises `DataError` when too many images cannot be used.
    """

    def __init__(self, data: SiteData, model: ModelSettings, split: DataSettings) -> None:
        self._model, self._max_image_px = model, split.max_image_px
        self._withdrawn = data.withdrawn
        self.left_out, self.warnings = list(data.left_out), list(data.warnings)
        self._sets = {name: self._load(name, getattr(data, name)) for name in PURPOSES}
        self._resting: set[str] = set()
        usable = sum(map(len, self._sets.values()))
        total = usable + len(self.left_out)
        refuse_many_bad(data.name, self.left_out, total, split.max_bad_fraction)

    @property
    def labelled(self) -> ImageSet:
        """Labelled images outside the calibration set."""
        return self._awake("labelled")

    @property
    def calibration(self) -> ImageSet:
        """Labelled images on which pseudo-labels are measured."""
        return self._awake("calibration")

    @property
    def unlabelled(self) -> ImageSet:
        """Images to mine."""
        return self._awake("unlabelled")

    @property
    def test(self) -> ImageSet:
        """Images to score the global model on."""
        return self._awake("test")

    @property
    def pixel_bytes(self) -> int:
        """Memory that images and masks take now."""
        return sum(images.pixel_bytes for images in self._sets.values())

    def count(self, purpose: str) -> int:
        """How many images there are for a purpose; no pixel is read for it."""
        return len(self._sets[purpose])

    def digests(self, *purposes: str) -> set[str]:
        """SHA-256 of the image files for these purposes; no pixel is read for it."""
        return {digest for name in purposes for digest in self._sets[name].digests}

    def rest(self) -> None:
        """Drop all pixels; each set is read again when it is next used."""
        for name, images in self._sets.items():
            self._sets[name] = images.emptied()
            self._resting.add(name)

    def leave_out_withdrawn(self) -> None:
        """Drop the cases of withdrawn.txt: they take no part from here on.

        Raises `DataError` if the list cannot be read.
        """
        if case_ids := withdrawn_in(self._withdrawn):
            for name in PURPOSES:
                self._sets[name] = self._awake(name).without(case_ids)

    def _awake(self, name: str) -> ImageSet:
        """A set with its pixels."""
        if name in self._resting:
            # The same cases: a withdrawn one stays out, and a file that is gone is left out.
            self._sets[name] = self._load(name, self._sets[name].cases)
            self._resting.discard(name)
        return self._sets[name]

    def _load(self, name: str, cases: tuple[Case, ...]) -> ImageSet:
        px, classes, with_truth = self._model.image_px, self._model.classes, name in WITH_TRUTH
        loaded = load_images(cases, px, self._max_image_px, classes=classes if with_truth else None)
        self.left_out += [line for line in loaded.left_out if line not in self.left_out]
        self.warnings += [line for line in loaded.warnings if line not in self.warnings]
        images = torch.from_numpy(loaded.images).permute(0, 3, 1, 2).contiguous()
        truth = torch.zeros((0, classes, px, px), dtype=torch.bool)
        if with_truth and loaded.masks is not None:
            values = torch.arange(1, classes + 1).view(1, -1, 1, 1)
            truth = torch.from_numpy(loaded.masks)[:, None] == values
        sizes = tuple((int(height), int(width)) for height, width in loaded.sizes)
        return ImageSet(loaded.cases, images, truth, loaded.digests, sizes)
