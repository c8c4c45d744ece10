"""SAM for one site: loaded on first use, with the embeddings of the site's images kept on disk."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import read_image
from knowmine.client.sam.embeddings import EmbeddingStore, Seal
from knowmine.client.sam.interface import Sam


class SamSession:
    """SAM and its embeddings of one site's images.

    open_sam: loads SAM when a round first needs it; some methods never do. folder: of the
    embeddings. seal: encrypts them. quota_bytes: most that they may take together; 0 is no limit.
    """

    def __init__(
        self,
        open_sam: Callable[[], Sam],
        folder: Path,
        max_image_px: int,
        *,
        seal: Seal | None = None,
        quota_bytes: int = 0,
    ) -> None:
        self._open_sam, self._folder, self._max_image_px = cache(open_sam), folder, max_image_px
        self._seal, self._quota_bytes = seal, quota_bytes

    @property
    def model(self) -> Sam:
        """SAM, loaded when it is first needed."""
        return self._open_sam()

    @cached_property
    def store(self) -> EmbeddingStore:
        """The embeddings on disk."""
        return EmbeddingStore(
            self._folder, self.model, seal=self._seal, quota_bytes=self._quota_bytes
        )

    @property
    def encoded(self) -> int:
        """Images that SAM's encoder has encoded since the site was opened."""
        return self.store.encoded if "store" in self.__dict__ else 0

    def embedded(self, digests: Iterable[str]) -> int:
        """How many different images of these digests have an embedding on disk."""
        return sum(map(self.store.has, set(digests)))

    def embeddings(self, pairs: Iterable[tuple[ImageSet, int]]) -> Tensor:
        """SAM's embeddings (N, 256, G, G) float16 of N rows of image sets.

        The next image is read and resized while SAM encodes one.
        """
        pairs = list(pairs)
        digests = [images.digests[row] for images, row in pairs]
        once = dict(zip(digests, pairs, strict=True))  # copies of an image are embedded once
        pool = ThreadPoolExecutor(2, "embedding")
        try:
            kept = dict(zip(once, pool.map(self.store.find, once), strict=True))
            found = {digest: half for digest, half in kept.items() if half is not None}
            missing = [digest for digest in once if digest not in found]
            reads = deque[Future[NDArray[np.uint8]]]()
            for place, digest in enumerate(missing):
                for later in missing[place + len(reads) : place + 2]:
                    images, row = once[later]
                    path = images.cases[row].image
                    reads.append(pool.submit(read_image, path, max_image_px=self._max_image_px))
                # The encoder runs in one thread: each other would start threads of its own for it.
                found[digest] = self.store.make(digest, reads.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
        return torch.stack([torch.from_numpy(found[digest]) for digest in digests])
