"""What a review decided becomes labels and exclusions, and nothing else changes."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from knowmine.client.data.folder import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.review.decisions import (
    Decision,
    after_review,
    append_decision,
    draft_path,
    forget_review,
    label_path,
    read_decisions,
    save_label,
    save_mask,
)
from knowmine.client.review.mask_png import png_of


def images_of(n=3, px=4):
    cases = tuple(Case(f"a{i}", Path(f"a{i}.png"), None, f"a{i}") for i in range(n))
    images = torch.zeros(n, 3, px, px, dtype=torch.uint8)
    digests = tuple(f"{i}" for i in range(n))
    return ImageSet(cases, images, torch.zeros(0, 1, px, px), digests, ((8, 8),) * n)


def decide(folder, case_id, verdict, *, image=None, mask=None):
    digest = None
    if mask is not None:
        digest = save_label(folder, case_id, png_of(mask))
    append_decision(
        folder,
        Decision(
            id="1",
            case_id=case_id,
            verdict=verdict,
            role="radiologist",
            when=datetime.now(UTC),
            round=2,
            image_sha256=case_id[1:] if image is None else image,
            mask_sha256=digest,
            sam_sha256=None,
            window="0" * 16,
        ),
    )


def the_label(folder, case_id):
    """The accepted mask's file, which is there."""
    path = label_path(folder, read_decisions(folder)[case_id])
    assert path is not None
    return path


def case_ids(of):
    return [case.case_id for case in of.cases]


LEFT = np.repeat(np.arange(8)[None] < 4, 8, 0)


def test_without_a_review_nothing_changes(tmp_path):
    """The very same images are mined."""
    mined = images_of()
    assert after_review(mined, tmp_path) == (mined, None)


def test_an_accepted_mask_is_a_label(tmp_path):
    """It leaves the images to mine, and its mask is the truth in the model frame."""
    decide(tmp_path, "a1", "accepted", image="1", mask=LEFT)
    rest, reviewed = after_review(images_of(), tmp_path)
    assert case_ids(rest) == ["a0", "a2"] and reviewed is not None and case_ids(reviewed) == ["a1"]
    assert (
        reviewed is not None and reviewed.truth[0, 0].tolist() == [[True, True, False, False]] * 4
    )


def test_a_rejected_image_is_neither(tmp_path):
    """It is not mined and not learnt from."""
    decide(tmp_path, "a0", "rejected")
    rest, reviewed = after_review(images_of(), tmp_path)
    assert (case_ids(rest), reviewed) == (["a1", "a2"], None)


def test_the_last_word_counts(tmp_path):
    """Taken back is as if never said."""
    decide(tmp_path, "a0", "rejected")
    decide(tmp_path, "a0", "withdrawn")
    assert case_ids(after_review(images_of(), tmp_path)[0]) == ["a0", "a1", "a2"]


def test_another_image_of_that_name_is_mined(tmp_path):
    """A decision is about the file that was looked at."""
    decide(tmp_path, "a1", "rejected", image="other")
    assert case_ids(after_review(images_of(), tmp_path)[0]) == ["a0", "a1", "a2"]


def test_a_mask_that_was_changed_opens_the_case_again(tmp_path):
    """What nobody accepted is never learnt from."""
    decide(tmp_path, "a1", "accepted", mask=LEFT)
    save_mask(the_label(tmp_path, "a1"), png_of(~LEFT))
    rest, reviewed = after_review(images_of(), tmp_path)
    assert (len(rest), reviewed) == (3, None)


def test_a_mask_without_its_decision_changes_nothing(tmp_path):
    """As after a crash between the two: the earlier decision has its own mask still."""
    decide(tmp_path, "a1", "accepted", mask=LEFT)
    save_label(tmp_path, "a1", png_of(~LEFT))
    _, reviewed = after_review(images_of(), tmp_path)
    assert (
        reviewed is not None and reviewed.truth[0, 0].tolist() == [[True, True, False, False]] * 4
    )


def test_all_of_a_case_is_forgotten_and_nothing_of_its_namesakes(tmp_path):
    """Masks of any digest and strokes of any window, but not those of a case id that begins alike."""
    for case_id in ("a", "a.1", "a*"):
        decide(tmp_path, case_id, "accepted", mask=LEFT)
        save_label(tmp_path, case_id, b"older")
        for window in ("0" * 16, "1" * 16, "2" * 16):
            save_mask(draft_path(tmp_path, case_id, window), b"strokes")
    left = {
        path
        for path in tmp_path.rglob("*.png")
        if not re.fullmatch(r"a(\.[0-9a-f]{16})?.png", path.name)
    }
    assert forget_review(tmp_path, "a") == 6
    assert set(tmp_path.rglob("*.png")) == left and len(left) == 10


def test_a_line_cut_short_costs_only_itself(tmp_path):
    """What was written before and after stays."""
    decide(tmp_path, "a0", "rejected")
    with (tmp_path / "reviews.jsonl").open("a") as file:
        file.write('{"id": "2", "case_id": "a1", "ver')
    decide(tmp_path, "a2", "rejected")
    assert set(read_decisions(tmp_path)) == {"a0", "a2"}
