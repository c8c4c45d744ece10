"""What a person looks at in a review, worst first, and what becomes of what they decide."""

import hashlib
import io
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.clicks import Click, answer_clicks
from knowmine.client.embeddings import EmbeddingStore
from knowmine.client.gallery import Kept, load_gallery, mined_files
from knowmine.client.pseudo_labels import dice_of
from knowmine.client.review_places import Place
from knowmine.client.reviewed import (
    Decision,
    Verdict,
    append_decision,
    digest_or_none,
    draft_path,
    mask_path,
    read_decisions,
    save_mask,
)
from knowmine.client.sam import EMBEDDING_SHAPE, Sam
from knowmine.shared.errors import CannotWrite, DataError, UsageError
from knowmine.shared.images import read_image

SHOWN_PX = 1024
"""The long side of what is shown and drawn on; SAM sees no finer either."""

ROUNDS = 1000
"""Mining rounds that are looked through, at most."""

MAX_CLICKS = 64


class UnknownCase(UsageError):
    """A case that this review does not have."""


class Overtaken(UsageError):
    """Somebody else decided on the case since it was opened; theirs is `decision`."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(
            f"a {decision.role} {decision.verdict} this case in another window at "
            f"{decision.when.astimezone():%H:%M:%S}: look at it first"
        )
        self.decision = decision


@dataclass(frozen=True)
class ReviewCase:
    """One pseudo-label to look at, the newest of its image.

    shown: (h, w) of the frame that people see and draw in. disagreement: 1 - Dice of U-Net++ and
    SAM, None where SAM was not asked.
    """

    id: str
    place: Place
    kept: Kept
    shown: tuple[int, int]
    disagreement: float | None

    @property
    def worth(self) -> float:
        """How much a label would teach: how bad it is judged, and how much the models differ."""
        return (1 - self.kept.quality) + (self.disagreement or 0.0)


@dataclass
class Review:
    """The cases of one or several sites. Safe to use from many threads.

    store: SAM's embeddings, opened with SAM at the first click.
    """

    places: Sequence[Place]
    open_sam: Any
    embeddings: Path
    role: str
    _cases: dict[str, ReviewCase] = field(default_factory=dict)
    _files: tuple[Any, ...] = ()
    _sam: Sam | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _sam_lock: threading.Lock = field(default_factory=threading.Lock)

    def cases(self) -> list[ReviewCase]:
        """All of them, worst judged first; those of rounds that ended meanwhile are among them."""
        with self._lock:
            files = tuple(
                (file, file.stat().st_mtime_ns)
                for place in self.places
                for file in mined_files(place.folder, place.seal)
            )
            if files != self._files:
                newest = {
                    (place.site, kept.stem): (place, kept)
                    for place in self.places
                    for kept in load_gallery(place.folder, ROUNDS, seal=place.seal)
                }
                self._cases = {case.id: case for case in (_case(*both) for both in newest.values())}
                self._files = files
            return sorted(self._cases.values(), key=lambda case: (case.kept.quality, case.id))

    def case(self, id_: str) -> ReviewCase:
        """The case of that id, as it was listed."""
        with self._lock:
            if id_ not in self._cases:
                self.cases()
            if id_ not in self._cases:
                raise UnknownCase(f"no case {id_} in this review: load the page again")
            return self._cases[id_]

    def decisions(self) -> dict[str, Decision]:
        """The last decision on each case, by its id."""
        return {
            _id(place, stem): decision
            for place in self.places
            for stem, decision in read_decisions(place.folder).items()
        }

    # ------------------------------------------------------------------------ what is seen

    def picture(self, case: ReviewCase) -> bytes:
        """The image as PNG, (h, w) of the frame shown; from the data folder where it is known."""
        image = _original(case)
        height, width = case.shown
        shown = Image.fromarray(case.kept.image if image is None else image)
        if shown.size != (width, height):
            shown = shown.resize((width, height), Image.Resampling.BILINEAR)
        return _png(shown)

    def mask(self, case: ReviewCase, which: str) -> bytes | None:
        """One of its masks as PNG, (h, w), 0 and 255: unet, sam, label or mine.

        mine: strokes not yet decided about, else what was decided; None where there are neither.
        """
        if which == "mine":
            folder, stem = case.place.folder, case.kept.stem
            decision = self.decisions().get(case.id)
            files = [draft_path(folder, stem)]
            if decision is not None and decision.is_label:
                files.append(mask_path(folder, stem))
            found = next((file for file in files if file.is_file()), None)
            return None if found is None else _resized(found.read_bytes(), case.shown)
        masks = {"unet": case.kept.unet, "sam": case.kept.sam, "label": case.kept.label}
        if which not in masks:
            raise UnknownCase(f"no mask {which!r}: expected unet, sam, label or mine")
        mask = masks[which]
        if mask is None:
            return None
        height, width = case.shown
        smooth = Image.fromarray(np.asarray(mask, np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        return _png(Image.fromarray(np.asarray(smooth) > 0.5))

    def click(self, case: ReviewCase, clicks: Sequence[Click]) -> bytes:
        """SAM's mask for these clicks as PNG, (h, w), 0 and 255."""
        height, width = case.shown
        if not 1 <= len(clicks) <= MAX_CLICKS:
            raise UsageError(f"got {len(clicks)} clicks; expected 1 to {MAX_CLICKS}")
        for click in clicks:
            if not (-0.5 <= click.x <= width - 0.5 and -0.5 <= click.y <= height - 0.5):
                raise UsageError(
                    f"clicked at {click.x:.0f}, {click.y:.0f}, outside the image of "
                    f"{width} x {height} pixels: click inside it"
                )
        with self._sam_lock:  # its threads are all there are
            embedding, size = self._embedding(case)
            mask = answer_clicks(self.sam(), embedding, size, case.shown, clicks)
        return _png(Image.fromarray(mask))

    def warm_up(self) -> None:
        """Load SAM and let it answer once: its first answer takes three times as long."""
        with self._sam_lock:
            nothing = np.zeros(EMBEDDING_SHAPE, np.float16)
            answer_clicks(self.sam(), nothing, (64, 64), (64, 64), [Click(32, 32, True)])

    def sam(self) -> Sam:
        """SAM, loaded at the first call."""
        if self._sam is None:
            self._sam = self.open_sam()
        return self._sam

    # ------------------------------------------------------------------------ what is decided

    def save_draft(self, case: ReviewCase, png: bytes) -> None:
        """Keep strokes that nobody has decided about yet."""
        with _Writing(case.place.folder):
            save_mask(draft_path(case.place.folder, case.kept.stem), _checked(png, case.shown))

    def forget_draft(self, case: ReviewCase) -> None:
        """The strokes were undone."""
        draft_path(case.place.folder, case.kept.stem).unlink(missing_ok=True)

    def decide(
        self, case: ReviewCase, verdict: Verdict, seen: str | None, png: bytes | None
    ) -> Decision:
        """Write a decision down; on return it is on the disk.

        seen: id of the decision that the person knew of. png: the mask, needed to accept.
        Raises `Overtaken` where somebody else has decided since.
        """
        folder, stem = case.place.folder, case.kept.stem
        is_label = verdict in ("accepted", "corrected")
        if is_label and png is None:
            raise UsageError("accepted without a mask: load the page again")
        mask = _at_size(_checked(png, case.shown), case.kept.size) if png and is_label else None
        with self._lock, _Writing(folder):
            last = read_decisions(folder).get(stem)
            if last is not None and last.id != seen:
                raise Overtaken(last)
            if verdict == "skipped" and last and last.verdict not in ("skipped", "withdrawn"):
                return last  # passing by takes nothing back
            strokes = self.mask(case, "mine") if verdict == "withdrawn" else None
            digest = save_mask(mask_path(folder, stem), mask) if mask else None
            decision = Decision(
                id=secrets.token_hex(8),
                stem=stem,
                verdict=verdict,
                role=self.role,
                when=datetime.now(UTC),
                round=case.kept.round,
                image_sha256=case.kept.digest,
                mask_sha256=digest,
                sam_sha256=None if self._sam is None else self._sam.digest,
            )
            append_decision(folder, decision)
            if is_label:
                self.forget_draft(case)
            elif verdict == "withdrawn" and strokes is not None:
                save_mask(draft_path(folder, stem), strokes)  # what was drawn can be gone on with
        return decision

    def _embedding(self, case: ReviewCase) -> tuple[NDArray[np.float16], tuple[int, int]]:
        """The image's embedding and the size of what SAM saw; from the cache wherever it is."""
        store = EmbeddingStore(self.embeddings, self.sam(), seal=case.place.seal)
        digest, kept = case.kept.digest, case.kept.image
        if digest and store.has(digest):
            return store.get(digest, lambda: kept), case.kept.size
        image = _original(case)
        if digest and image is not None:
            return store.get(digest, lambda: image), case.kept.size
        pixels = hashlib.sha256(np.ascontiguousarray(kept).data).hexdigest()
        return store.get(pixels, lambda: kept), (kept.shape[0], kept.shape[1])


def _id(place: Place, stem: str) -> str:
    text = f"{place.site}/{stem}".encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def _case(place: Place, kept: Kept) -> ReviewCase:
    if kept.classes != 1:
        raise UsageError(
            f"the run has {kept.classes} classes; review can correct masks of one class only"
        )
    if Path(kept.stem).name != kept.stem:
        raise DataError(f"{place.folder} names a case {kept.stem!r}, which is no file's name")
    height, width = kept.size
    scale = min(1.0, SHOWN_PX / max(height, width))
    disagreement = None
    if kept.sam is not None:
        both = dice_of((kept.unet > 0.5)[None, None], (kept.sam > 0.5)[None, None])
        disagreement = 1 - float(both[0])
    return ReviewCase(
        _id(place, kept.stem),
        place,
        kept,
        (max(1, round(height * scale)), max(1, round(width * scale))),
        disagreement,
    )


def _original(case: ReviewCase) -> NDArray[np.uint8] | None:
    """The image in the data folder, if it is the very one that the round saw."""
    path = case.place.images.get(case.kept.stem)
    if path is None or (case.kept.digest and digest_or_none(path) != case.kept.digest):
        return None
    try:
        return read_image(path)
    except DataError:
        return None


def _checked(png: bytes, shown: tuple[int, int]) -> bytes:
    """A mask from the page as PNG of 0 and 255; refused where it is not of the frame shown."""
    height, width = shown
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise UsageError(
                    f"got a mask of {image.size[0]} x {image.size[1]} pixels for an image of "
                    f"{width} x {height}: it reaches outside the image, so load the page again"
                )
            drawn = np.asarray(image.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"the mask cannot be read ({error}): load the page again") from None
    return _png(Image.fromarray(drawn))


def _resized(png: bytes, shown: tuple[int, int]) -> bytes:
    return _at_size(png, shown)


def _at_size(png: bytes, size: tuple[int, int]) -> bytes:
    """A mask's PNG at (H, W), nearest."""
    height, width = size
    with Image.open(io.BytesIO(png)) as image:
        if image.size == (width, height):
            return png
        return _png(image.resize((width, height), Image.Resampling.NEAREST))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


class _Writing:
    """Turn a full disk into words."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CannotWrite(
                f"cannot write in {self._folder} ({error.strerror}): make room, then try again; "
                "your strokes are kept in this page"
            ) from error
