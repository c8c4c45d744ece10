"""What a person looks at in a review, worst first, and what becomes of what they decide."""

import hashlib
import io
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.data.images import read_image
from knowmine.client.review.cases import Cases, ReviewCase, UnknownCase, case_id
from knowmine.client.review.clicks import Click, answer_clicks
from knowmine.client.review.decisions import (
    MASKS,
    REVIEWS,
    Decision,
    Verdict,
    append_decision,
    digest_or_none,
    draft_path,
    draft_windows,
    label_path,
    mask_path,
    read_decisions,
    save_label,
    save_mask,
)
from knowmine.client.review.sources import Place
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.sam.model import EMBEDDING_SHAPE, Sam
from knowmine.shared.errors import CannotWrite, DataError, UsageError

MAX_CLICKS = 64


class Overtaken(UsageError):
    """Somebody else decided on the case since it was opened; theirs is `decision`."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(
            f"a {decision.role} {decision.verdict} this case in another window at "
            f"{decision.when.astimezone():%H:%M:%S}: look at it first"
        )
        self.decision = decision


@dataclass(frozen=True)
class Shown:
    """What a person had before their eyes: the round of the pseudo-label, the image's SHA-256."""

    round: int
    image_sha256: str


@dataclass
class Review:
    """The cases of one or several sites. Safe to use from many threads.

    store: SAM's embeddings, opened with SAM at the first click.
    """

    places: Sequence[Place]
    open_sam: Any
    embeddings: Path
    role: str
    _sam: Sam | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _sam_lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[Path, tuple[Any, Mapping[str, Decision]]] = field(default_factory=dict)
    _sound: dict[tuple[Any, ...], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cases = Cases(self.places)

    def cases(self) -> list[ReviewCase]:
        """All of them, worst judged first; those of rounds that ended meanwhile are among them."""
        return self._cases.listed()

    def case(self, id_: str) -> ReviewCase:
        """The case of that id, as it was listed."""
        return self._cases.get(id_)

    def decision(self, case: ReviewCase) -> Decision | None:
        """The last decision on a case."""
        return self._decided(case.place.folder).get(case.label.stem)

    def drafts(self) -> dict[str, Sequence[str]]:
        """The windows that hold strokes on a case, by its id."""
        return {
            case_id(place, stem): windows
            for place in self.places
            for stem, windows in draft_windows(place.folder).items()
        }

    def is_lost(self, case: ReviewCase) -> bool:
        """Whether a mask was accepted and is not there any more as it was."""
        decision, folder = self.decision(case), case.place.folder
        if decision is None or not decision.is_label:
            return False
        try:
            seen = mask_path(folder, decision.stem, decision.mask_sha256 or "").stat()
        except FileNotFoundError:
            return label_path(folder, decision) is None
        key = decision.id, seen.st_mtime_ns, seen.st_size
        if key not in self._sound:
            self._sound[key] = label_path(folder, decision) is not None
        return not self._sound[key]

    def changes(self) -> tuple[Any, ...]:
        """Another value after each decision, and after each mask that comes or goes."""
        seen = []
        for place in self.places:
            for path in (place.folder / REVIEWS, place.folder / MASKS):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    seen.append((path, found.st_mtime_ns, found.st_size))
        return tuple(seen)

    def _decided(self, folder: Path) -> Mapping[str, Decision]:
        """`read_decisions`, once for each change of the file."""
        try:
            found = (folder / REVIEWS).stat()
        except FileNotFoundError:
            return {}
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        with self._lock:
            if folder not in self._read or self._read[folder][0] != seen:
                self._read[folder] = seen, read_decisions(folder)
            return self._read[folder][1]

    # ------------------------------------------------------------------------ what is seen

    def picture(self, case: ReviewCase) -> bytes:
        """The image as PNG, (h, w) of the frame shown; from the data folder where it is known."""
        image = _original(case)
        height, width = case.shown
        shown = Image.fromarray(self._cases.pixels(case).image if image is None else image)
        if shown.size != (width, height):
            shown = shown.resize((width, height), Image.Resampling.BILINEAR)
        return _png(shown)

    def mask(self, case: ReviewCase, which: str) -> bytes | None:
        """One of the models' masks as PNG, (h, w), 0 and 255: unet, sam or label; None if none."""
        pixels = self._cases.pixels(case)
        masks = {"unet": pixels.unet, "sam": pixels.sam, "label": pixels.label}
        if which not in masks:
            raise UnknownCase(f"no mask {which!r}: expected unet, sam or label")
        mask = masks[which]
        if mask is None:
            return None
        height, width = case.shown
        smooth = Image.fromarray(np.asarray(mask, np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        return _png(Image.fromarray(np.asarray(smooth) > 0.5))

    def drawn(self, case: ReviewCase, window: str) -> bytes | None:
        """The strokes of a window that nobody has decided about yet, as PNG (h, w)."""
        try:
            png = draft_path(case.place.folder, case.label.stem, window).read_bytes()
        except FileNotFoundError:
            return None
        return _at_size(png, case.shown)

    def accepted(self, case: ReviewCase) -> bytes | None:
        """The mask that is the case's label now, as PNG (h, w)."""
        decision = self.decision(case)
        path = None if decision is None else label_path(case.place.folder, decision)
        return None if path is None else _at_size(path.read_bytes(), case.shown)

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

    def save_draft(self, case: ReviewCase, window: str, png: bytes) -> None:
        """Keep a window's strokes that nobody has decided about yet."""
        with _Writing(case.place.folder):
            path = draft_path(case.place.folder, case.label.stem, window)
            save_mask(path, _checked(png, case.shown))

    def forget_draft(self, case: ReviewCase, window: str) -> None:
        """A window's strokes are not wanted any more."""
        draft_path(case.place.folder, case.label.stem, window).unlink(missing_ok=True)

    def decide(
        self,
        case: ReviewCase,
        verdict: Verdict,
        *,
        shown: Shown,
        seen: str | None,
        window: str,
        png: bytes | None = None,
        id_: str | None = None,
    ) -> Decision:
        """Write a decision down; on return it is on the disk.

        seen: id of the decision that the person knew of. png: the mask, needed to accept. id_: of
        this decision, so that one that is delivered twice counts once.
        Raises `Overtaken` where somebody else has decided since.
        """
        folder, stem = case.place.folder, case.label.stem
        is_label = verdict in ("accepted", "corrected")
        if is_label and png is None:
            raise UsageError("accepted without a mask: load the page again")
        mask = _at_size(_checked(png, case.shown), case.label.size) if png and is_label else None
        with self._lock, _Writing(folder):
            last = self.decision(case)
            if last is not None and last.id == id_:
                return last  # its answer was lost, not the decision
            if last is not None and last.id != seen:
                raise Overtaken(last)
            if verdict == "skipped" and last and last.verdict not in ("skipped", "withdrawn"):
                return last  # passing by takes nothing back
            # 1 What was a label becomes strokes of the window that drew it, and of the one that
            #   now says that it is none.
            before = None if last is None else label_path(folder, last)
            if last is not None and before is not None:
                for whose in {last.window, window} - ({window} if is_label else set()):
                    if not (draft := draft_path(folder, stem, whose)).exists():
                        save_mask(draft, before.read_bytes())
            # 2 The mask, 3 the decision that names it, 4 what neither needs any more.
            digest = save_label(folder, stem, mask) if mask else None
            decision = Decision(
                id=id_ or secrets.token_hex(8),
                stem=stem,
                verdict=verdict,
                role=self.role,
                when=datetime.now(UTC),
                round=shown.round,
                image_sha256=shown.image_sha256,
                mask_sha256=digest,
                sam_sha256=None if self._sam is None else self._sam.digest,
                window=window,
            )
            append_decision(folder, decision)
            if before is not None and before != label_path(folder, decision):
                before.unlink(missing_ok=True)
            if is_label:
                self.forget_draft(case, window)
        return decision

    def _embedding(self, case: ReviewCase) -> tuple[NDArray[np.float16], tuple[int, int]]:
        """The image's embedding and the size of what SAM saw; from the cache wherever it is."""
        store = EmbeddingStore(self.embeddings, self.sam(), seal=case.place.seal)
        digest, size = case.label.digest, case.label.size

        def small() -> NDArray[np.uint8]:
            return self._cases.pixels(case).image

        if digest and store.has(digest):
            return store.get(digest, small), size
        image = _original(case)
        if digest and image is not None:
            return store.get(digest, lambda: image), size
        kept = small()
        pixels = hashlib.sha256(np.ascontiguousarray(kept).data).hexdigest()
        return store.get(pixels, lambda: kept), (kept.shape[0], kept.shape[1])


def _original(case: ReviewCase) -> NDArray[np.uint8] | None:
    """The image in the data folder, if it is the very one that the round saw."""
    path, digest = case.place.images.get(case.label.stem), case.label.digest
    if path is None or (digest and digest_or_none(path) != digest):
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
