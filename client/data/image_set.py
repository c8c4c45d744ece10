"""Images of one purpose (to learn from, to mine, to test on), decoded once for the run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from knowmine.client.data.dataset import Case


@dataclass(frozen=True)
class ImageSet:
    """N images of one purpose.

    images: (N, 3, S, S) uint8, model frame. truth: (N, C, S, S) bool; (0, C, S, S) if the site may
    not see the masks. digests, sizes: SHA-256 and (H, W) of the image files, in the same order.
    """

    cases: tuple[Case, ...]
    images: Tensor
    truth: Tensor
    digests: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.cases)

    def without(self, case_ids: frozenset[str]) -> "ImageSet":
        """The set without the cases of these ids."""
        rows = [i for i, case in enumerate(self.cases) if case.case_id not in case_ids]
        return self if len(rows) == len(self) else self.at(rows)

    def at(self, rows: Sequence[int]) -> "ImageSet":
        """Some rows of the set."""
        rows = list(rows)
        return ImageSet(
            tuple(self.cases[i] for i in rows),
            self.images[rows],
            self.truth[rows] if len(self.truth) else self.truth,
            tuple(self.digests[i] for i in rows),
            tuple(self.sizes[i] for i in rows),
        )

    def emptied(self) -> "ImageSet":
        """The same cases without their pixels."""
        # Copies: a part of a tensor keeps all of its memory.
        return replace(self, images=self.images[:0].clone(), truth=self.truth[:0].clone())

    @property
    def pixel_bytes(self) -> int:
        """Memory that images and masks take."""
        return self.images.nbytes + self.truth.nbytes
