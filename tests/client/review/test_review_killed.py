"""A review that is killed between any two steps of a decision loses nothing that was drawn."""

import subprocess
import sys

KILLED_EVERYWHERE = '''
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from knowmine.client.review.decisions import after_review, label_path, read_decisions
from knowmine.client.review.mask_png import png_of
from knowmine.client.review.pictures import accepted_png, draft_png
from knowmine.client.review.session import Review, Shown
from knowmine.client.review.sources import SiteFiles
from tests.client.review.test_decisions import images_of
from tests.client.review.test_server import DIGEST, mine

ONE, OTHER = "1" * 16, "2" * 16
BLACK, LEFT, RIGHT = np.zeros((9, 9), bool), np.zeros((9, 9), bool), np.zeros((9, 9), bool)
LEFT[:, :4], RIGHT[:, 4:] = True, True


def mask(drawn):
    return png_of(drawn)


def review(home):
    return Review([SiteFiles("lyon", home, {})], None, home, "reader")


def prepared(home, window):
    """A label by `window`, and then strokes of window ONE that differ from it."""
    mine(home, 1)
    work = review(home)
    (case,) = work.cases.listed()
    work.decide(case, "corrected", shown=Shown(2, DIGEST), seen=None, window=window, png=mask(LEFT), id_="a" * 16)
    work.save_draft(case, ONE, mask(RIGHT))


def act(home, verdict):
    work = review(home)
    (case,) = work.cases.listed()
    png = mask(RIGHT) if verdict == "corrected" else None
    return work.decide(case, verdict, shown=Shown(2, DIGEST), seen="a" * 16, window=ONE, png=png, id_="b" * 16)


def everything_drawn(home):
    """The masks that a person finds again: the label's and all windows' strokes."""
    work = review(home)
    (case,) = work.cases.listed()
    found = [accepted_png(case, work.decision(case)), *(draft_png(case, window) for window in (ONE, OTHER))]
    return {png for png in found if png}


def killed_at(home, number, verdict):
    """Whether the decision was cut off right before its n-th change of the disk."""
    child = os.fork()
    if not child:
        left = [number]
        def hook(event, told):
            writes = event == "open" and isinstance(told[2], int) and told[2] & (os.O_WRONLY | os.O_RDWR)
            if event in ("os.rename", "os.remove", "os.mkdir") or writes:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        work = review(home)
        work.cases.listed()
        sys.addaudithook(hook)
        act(home, verdict)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


home, tried = Path(sys.argv[1]), 0
for window in (ONE, OTHER):
    for verdict in ("corrected", "rejected", "withdrawn"):
        for number in range(99):
            folder = home / f"{window[0]}-{verdict}-{number}"
            folder.mkdir(parents=True)
            prepared(folder, window)
            dead = killed_at(folder, number, verdict)
            last, found = read_decisions(folder)["a0"], everything_drawn(folder)
            where = f"window {window[0]}, {verdict}, killed before step {number}"
            # The last decision has its own mask, as a round reads it.
            if last.is_label:
                _, labels = after_review(replace(images_of(1), digests=(DIGEST,)), folder)
                assert labels is not None and label_path(folder, last), where
            # What this window drew is there, as a label or as strokes, and so is the other's.
            assert mask(RIGHT) in found, where
            if window == OTHER:
                assert mask(LEFT) in found, where
            # The page sends it again: the decision is written once and nothing else is left.
            if dead:
                act(folder, verdict)
            ids = [line.split(b'"')[3] for line in (folder / "reviews.jsonl").read_bytes().splitlines()]
            assert ids == [b"a" * 16, b"b" * 16], (where, ids)
            assert mask(RIGHT) in everything_drawn(folder), where
            tried += dead
            if not dead:
                break
print(tried)
'''


def test_killed_between_any_two_steps_nothing_is_lost(tmp_path):
    """A window decides over its own label or another's, and dies before each change of the disk."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 6 * 3
