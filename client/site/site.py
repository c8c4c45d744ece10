"""A site while a run lasts: its images in memory, its U-Net++ and SAM loaded once.

A simulation of many sites has one U-Net++ for all of them, and lets the pixels of sites that wait for
their turn go; see `Site.rest`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knowmine.client.data.dataset import Case, SiteData, load_images, refuse_many_bad
from knowmine.client.data.images import read_image
from knowmine.client.data.scoring import Scorer
from knowmine.client.device import Compute
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Tunable
from knowmine.client.sam.tuned_decoders import Decoders
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.participation import Participation, withdrawn_in
from knowmine.shared.errors import Refused
from knowmine.shared.log import Progress, Silent
from knowmine.shared.protocol import PROTOCOL, Hello
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import (
    batch_norm_names,
    build_model,
    manifest_of_model,
    put_weights,
)
from knowmine.shared.weights import (
    Weights,
    digest_of_manifest,
    load_weights,
    save_weights,
)

WITH_TRUTH = ("labelled", "probe")
"""Kinds whose masks are this site's to see."""


@dataclass(frozen=True)
class Kind:
    """Images of one kind (labelled, probe, unlabelled or test), decoded once for the run.

    images: (N, 3, S, S) uint8, model frame. truth: (N, C, S, S) bool, or (0, ...) where the
    truth is not this site's to see. digests and sizes (H, W) of the files, in the same order.
    """

    cases: tuple[Case, ...]
    images: Tensor
    truth: Tensor
    digests: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.cases)

    def without(self, stems: frozenset[str]) -> "Kind":
        """Itself, but for the cases of these stems."""
        rows = [i for i, case in enumerate(self.cases) if case.stem not in stems]
        if len(rows) == len(self):
            return self
        truth = self.truth[rows] if len(self.truth) else self.truth
        return replace(self.at(rows), truth=truth)

    def at(self, rows: list[int]) -> "Kind":
        """Some rows of a kind that has no truth."""
        return Kind(
            tuple(self.cases[i] for i in rows),
            self.images[rows],
            self.truth,
            tuple(self.digests[i] for i in rows),
            tuple(self.sizes[i] for i in rows),
        )


class Site:
    """One hospital's data and models; `client.round` says what it does with them.

    folder: the site's own folder of this run, made by who opens the site; nothing in it leaves.
    open_sam: loads SAM the first time a round needs it; some methods never do.
    seal: encrypts what is kept of images. embeddings_bytes: most that embeddings may take; 0 is no
    limit. network: a U-Net++ of these settings that sites who never work at the same time may share;
    not set, the site builds its own.
    Raises `DataError` when too many images cannot be used.
    """

    def __init__(
        self,
        data: SiteData,
        scorer: Scorer,
        model: ModelSettings,
        *,
        folder: Path,
        embeddings: Path,
        open_sam: Callable[[], Tunable],
        compute: Compute,
        max_image_px: int,
        max_bad_share: float,
        progress: Progress | None = None,
        seal: Seal | None = None,
        embeddings_bytes: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        self.name, self.scorer, self.settings = data.name, scorer, model
        self.folder, self.compute = folder, compute
        self.progress: Progress = progress or Silent()
        self._max_image_px = max_image_px
        self._embeddings, self._open_sam = embeddings, cache(open_sam)
        self.seal, self._embeddings_bytes, self._withdrawn = seal, embeddings_bytes, data.withdrawn
        self._left_out, self.warnings = list(data.left_out), list(data.warnings)
        self._kinds = {
            name: self._load(cases, with_truth=name in WITH_TRUTH)
            for name, cases in (
                ("labelled", data.labelled),
                ("probe", data.probe),
                ("unlabelled", data.unlabelled),
                ("test", data.test),
            )
        }
        self._resting: set[str] = set()
        # What a review at this site left to mine, and what it made labels of; see `improve`.
        self.to_mine: Kind = self.unlabelled
        self.reviewed: Kind | None = None
        scorer.check(self.test.cases)
        usable = sum(map(len, self._kinds.values()))
        refuse_many_bad(self.name, self._left_out, usable + len(self._left_out), max_bad_share)
        # Every task brings weights, so these need no start of their own.
        self.model = network or build_model(model.model_copy(update={"pretrained": False}), seed=0)
        self.manifest = manifest_of_model(self.model)
        self._batch_norm = batch_norm_names(self.model)
        self.decoders = Decoders(self.name, folder, self._open_sam, seal)

    @property
    def left_out(self) -> list[str]:
        """Each image that takes no part, as "stem: reason"."""
        return [*self._left_out, *self.scorer.left_out]

    @property
    def labelled(self) -> Kind:
        """Images to learn from."""
        return self._awake("labelled")

    @property
    def probe(self) -> Kind:
        """Labelled images on which pseudo-labels are judged."""
        return self._awake("probe")

    @property
    def unlabelled(self) -> Kind:
        """Images to mine."""
        return self._awake("unlabelled")

    @property
    def test(self) -> Kind:
        """Images to score the global model on."""
        return self._awake("test")

    @property
    def pixel_bytes(self) -> int:
        """Memory that the images and masks of this site take now."""
        return sum(kind.images.nbytes + kind.truth.nbytes for kind in self._kinds.values())

    def rest(self) -> None:
        """Let all pixels go; each kind of image is read again when it is asked for."""
        for name, kind in self._kinds.items():
            # Copies: a part of a tensor keeps the whole of it alive.
            images, truth = kind.images[:0].clone(), kind.truth[:0].clone()
            self._kinds[name] = replace(kind, images=images, truth=truth)
            self._resting.add(name)
        self.to_mine, self.reviewed = self._kinds["unlabelled"], None

    def leave_out_withdrawn(self) -> None:
        """Drop the cases of withdrawn.txt from memory: they take no part from here on.

        Raises `DataError` where the list cannot be read.
        """
        if stems := withdrawn_in(self._withdrawn):
            for name in self._kinds:
                self._kinds[name] = self._awake(name).without(stems)

    def note(self, round_: int, as_: str, kind: Kind) -> None:
        """Remember, by the project's key, which cases took part in a round and as what."""
        if self.seal:
            Participation(self.folder, self.seal).note(round_, as_, kind.cases, kind.digests)

    def hello(self) -> Hello:
        """Who this site is and what it has."""
        self.leave_out_withdrawn()
        return Hello(
            site=self.name,
            protocol=PROTOCOL,
            model_digest=digest_of_manifest(self.manifest),
            labelled=len(self._kinds["labelled"]) + len(self._kinds["probe"]),
            unlabelled=len(self._kinds["unlabelled"]),
            probe=len(self._kinds["probe"]),
            test=len(self._kinds["test"]),
        )

    @property
    def sam(self) -> Tunable:
        """SAM, loaded when the first image is mined."""
        return self._open_sam()

    @cached_property
    def store(self) -> EmbeddingStore:
        """SAM's embeddings of this site's images."""
        return EmbeddingStore(
            self._embeddings, self.sam, seal=self.seal, quota_bytes=self._embeddings_bytes
        )

    @property
    def encoded(self) -> int:
        """Images that SAM's encoder has looked at since the site was opened."""
        return self.store.encoded if "store" in self.__dict__ else 0

    @property
    def embedded(self) -> int:
        """Images of this site whose embedding is on disk, from this run or an earlier one."""
        digests = {*self._kinds["probe"].digests, *self._kinds["unlabelled"].digests}
        return sum(map(self.store.has, digests))

    def embeddings(self, pairs: Iterable[tuple[Kind, int]]) -> Tensor:
        """SAM's embeddings (N, 256, 64, 64) float16 of some rows of some kinds.

        While SAM looks at one image, the next is read and resized.
        """
        pairs = list(pairs)
        digests = [kind.digests[row] for kind, row in pairs]
        once = dict(zip(digests, pairs, strict=True))  # copies of an image are embedded once
        pool = ThreadPoolExecutor(2, "embedding")
        try:
            kept = dict(zip(once, pool.map(self.store.find, once), strict=True))
            found = {digest: half for digest, half in kept.items() if half is not None}
            missing = [digest for digest in once if digest not in found]
            reads = deque[Future[NDArray[np.uint8]]]()
            for place, digest in enumerate(missing):
                for later in missing[place + len(reads) : place + 2]:
                    kind, row = once[later]
                    path = kind.cases[row].image
                    reads.append(pool.submit(read_image, path, max_image_px=self._max_image_px))
                # SAM looks from one thread: each other would bring threads of its own for it.
                found[digest] = self.store.make(digest, reads.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
        return torch.stack([torch.from_numpy(found[digest]) for digest in digests])

    def frames(self, kind: Kind, row: int) -> Frames:
        """The frames of one image."""
        height, width = kind.sizes[row]
        return Frames(height, width, self.settings.image_px)

    def load_model(self, weights: Weights, model: ModelSettings, round_: int, local: bool) -> None:
        """Put the global weights into this site's model.

        local: batch-norm layers keep what this site had after the round before `round_`.
        Raises `Refused` for a model that is not the installed one.
        """
        if model != self.settings:
            raise Refused(
                f"the server asks for model {model.model_dump()}, this site was set up for "
                f"{self.settings.model_dump()}: make the settings equal on both sides"
            )
        before = [n for n in self._own_rounds() if n < round_]
        own = load_weights(self._own_layers(max(before))) if local and before else {}
        put_weights(self.model, {**weights, **own})

    def keep_batch_norm(self, weights: Weights, round_: int) -> None:
        """Remember this site's own batch-norm layers after `round_`, atomically."""
        own = {name: array for name, array in weights.items() if name in self._batch_norm}
        save_weights(self._own_layers(round_), own)
        for old in [n for n in self._own_rounds() if n < round_][:-1]:
            self._own_layers(old).unlink(missing_ok=True)

    def _own_rounds(self) -> list[int]:
        files = self.folder.glob("batch-norm-*.safetensors")
        return sorted(int(file.stem.removeprefix("batch-norm-")) for file in files)

    def _own_layers(self, round_: int) -> Path:
        return self.folder / f"batch-norm-{round_:04d}.safetensors"

    def _awake(self, name: str) -> Kind:
        """A kind with its pixels, read again where the site has rested."""
        if name in self._resting:
            # The same cases: who withdrew stays out, and a file that has gone since is left out.
            self._kinds[name] = self._load(self._kinds[name].cases, with_truth=name in WITH_TRUTH)
            self._resting.discard(name)
            if name == "unlabelled":
                self.to_mine = self._kinds[name]
        return self._kinds[name]

    def _load(self, cases: tuple[Case, ...], *, with_truth: bool = False) -> Kind:
        px, classes = self.settings.image_px, self.settings.classes
        loaded = load_images(cases, px, self._max_image_px, classes=classes if with_truth else None)
        self._left_out += [line for line in loaded.left_out if line not in self._left_out]
        self.warnings += [line for line in loaded.warnings if line not in self.warnings]
        images = torch.from_numpy(loaded.images).permute(0, 3, 1, 2).contiguous()
        truth = torch.zeros((0, classes, px, px), dtype=torch.bool)
        if with_truth and loaded.masks is not None:
            values = torch.arange(1, classes + 1).view(1, -1, 1, 1)
            truth = torch.from_numpy(loaded.masks)[:, None] == values
        sizes = tuple((int(height), int(width)) for height, width in loaded.sizes)
        return Kind(loaded.cases, images, truth, loaded.digests, sizes)
