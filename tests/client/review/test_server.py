"""The review's server refuses what is no answer to its page, and loses no decision."""

import base64
import io
import json
import socket
import threading
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.client.cli import app
from knowmine.client.data.folder import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.mining.fusion import Gate, Predictions
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.mining.quality import Selection
from knowmine.client.review.cases import OPENED
from knowmine.client.review.decisions import label_path, read_decisions, save_mask
from knowmine.client.review.pictures import model_mask_png
from knowmine.client.review.routes import MAX_BODY_BYTES
from knowmine.client.review.server import ReviewServer
from knowmine.client.review.session import Review
from knowmine.client.review.sources import find_run, is_running
from knowmine.client.settings import SITE_LOG
from knowmine.client.storage.pseudo_label_store import save_mined
from knowmine.shared.errors import UsageError
from knowmine.shared.files import FolderLock

DIGEST = "d" * 64
"""Of the image file of every case here."""


def mine(folder, images, round_=2, digest=DIGEST):
    """A round that mined so many images of 9 x 9 pixels; the first has the lowest quality."""
    folder.mkdir(exist_ok=True)
    cases = tuple(Case(f"a{i}", Path(f"a{i}.png"), None, f"a{i}") for i in range(images))
    seen = ImageSet(
        cases,
        torch.zeros(images, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 1, 4, 4),
        (digest,) * images,
        ((9, 9),) * images,
    )
    unet = np.full((images, 1, 4, 4), 0.75, np.float32)
    all_ = np.ones(images, bool)
    predictions = Predictions(unet, unet.copy(), all_, *np.ones((2, images), np.float32))
    quality = np.arange(1, images + 1) / 10
    every = Selection(all_, np.ones(images, np.float32))
    save_mined(
        folder, round_, PseudoLabels(seen, predictions, Gate("used", 0.5), unet, quality, every)
    )


def no_sam():
    """No test here clicks."""
    raise UsageError("no SAM in this test")


ONE, OTHER = "1" * 16, "2" * 16
"""Two windows, as they name themselves."""


class Page:
    """What the page does, without a browser."""

    def __init__(self, server):
        self._port = server.port
        answer = self.ask("GET", f"/?{urlsplit(server.url).query}", cookie="")
        self._cookie = answer[2]["set-cookie"].split(";")[0]

    def ask(self, method, path, body=None, *, cookie=None, **headers):
        """Status, what was said and headers."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        known = {"cookie": self._cookie if cookie is None else cookie, "x-knowmine": "review"}
        content = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, content, known | headers)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, said, dict(answer.getheaders())

    def told(self, since=""):
        """What the page is told of the review."""
        return json.loads(self.ask("GET", f"/api/review?since={since}")[1])

    def cases(self):
        """Ids by case id."""
        return {case["case_id"]: case["id"] for case in self.told()["cases"]}

    def decide(self, id_, mask, verdict="corrected", seen=None, **more):
        """Decide with a mask, as the page does."""
        body = {"verdict": verdict, "seen": seen, "mask": base64.b64encode(mask).decode()}
        about = {"window": ONE, "round": 2, "image": DIGEST}
        return self.ask("POST", f"/api/cases/{id_}/decision", body | about | more)

    def draw(self, id_, mask, window=None):
        """Send a window's strokes."""
        return self.ask("PUT", f"/api/cases/{id_}/drafts/{window or ONE}", mask)[0]

    def drawn(self, id_, window=None):
        """Whether a window's strokes are kept."""
        return self.ask("GET", f"/api/cases/{id_}/drafts/{window or ONE}")[0] == 200


@pytest.fixture
def folder(tmp_path):
    """A site's own folder after a round that mined three images of 9 x 9 pixels."""
    (tmp_path / "state").mkdir()
    mine(tmp_path / "state" / "site", 3)
    return tmp_path / "state" / "site"


@pytest.fixture
def page(folder, tmp_path):
    """The page of a review of that site."""
    found = find_run(folder.parent)
    review = Review(found.sites, no_sam, tmp_path / "embeddings", "radiologist")
    server = ReviewServer(review, found.title, lambda: True, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield Page(server)
    server.close()
    thread.join(20)


def png(height, width):
    content = io.BytesIO()
    Image.new("L", (width, height), 255).save(content, "PNG")
    return content.getvalue()


def black(height, width):
    content = io.BytesIO()
    Image.new("L", (width, height), 0).save(content, "PNG")
    return content.getvalue()


def test_a_mask_of_the_images_size_is_a_label(page, folder):
    """So that what follows is refused for its size and nothing else."""
    status, _, _ = page.decide(page.cases()["a0"], png(9, 9))
    assert (status, read_decisions(folder)["a0"].verdict) == (200, "corrected")


@pytest.mark.parametrize("size", [(10, 9), (9, 90), (1, 1)])
@pytest.mark.parametrize("how", ["decision", "draft"])
def test_a_mask_drawn_outside_the_image_is_refused(page, folder, size, how):
    """422 in words, and nothing is written."""
    id_ = page.cases()["a0"]
    if how == "draft":
        status, said, _ = page.ask("PUT", f"/api/cases/{id_}/drafts/{ONE}", png(*size))
    else:
        status, said, _ = page.decide(id_, png(*size))
    assert (status, read_decisions(folder)) == (422, {})
    assert f"got a mask of {size[1]} x {size[0]} pixels for an image of 9 x 9" in said
    assert not list(folder.rglob("*.png"))


@pytest.mark.parametrize("verdict", ["withdrawn", "rejected"])
def test_strokes_outlive_a_decision_that_makes_no_label(page, verdict):
    """Taken back or rejected, what was drawn can be gone on with after a reload."""
    id_, drawn = page.cases()["a0"], png(9, 9)
    before = None
    if verdict == "withdrawn":
        _, said, _ = page.decide(id_, drawn)
        before = json.loads(said)["decision"]["id"]
    else:
        page.draw(id_, drawn)
    assert page.decide(id_, drawn, verdict, before)[0] == 200
    assert page.drawn(id_)


@pytest.mark.parametrize("xy", [(-1, 3), (3, 9), (1e9, 1e9)])
def test_a_click_outside_the_image_is_refused(page, xy):
    """SAM is not asked about what nobody sees."""
    body = {"image": DIGEST, "clicks": [[*xy, True]]}
    status, said, _ = page.ask("POST", f"/api/cases/{page.cases()['a0']}/sam", body)
    assert status == 422 and "outside the image of 9 x 9 pixels" in said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"verdict": "corrected", "mask": "###"}, "not base64"),
        ({"verdict": "corrected", "mask": "aGVsbG8="}, "the mask cannot be read"),
        ({"verdict": "accepted"}, "accepted without a mask"),
        ({"verdict": "perhaps"}, "verdict"),
        ({"verdict": "rejected", "window": "../up"}, "window"),
        ({"verdict": "rejected", "round": 0}, "round"),
        ({"verdict": "rejected", "image": "../up"}, "image"),
        ("x" * (MAX_BODY_BYTES + 1), "more than 8 MiB"),
    ],
    ids=[
        "no base64",
        "no PNG",
        "no mask",
        "no verdict",
        "no window",
        "no round",
        "no image",
        "large",
    ],
)
def test_what_is_no_decision_is_refused(page, folder, body, words):
    """422 in words, and nothing is written."""
    if isinstance(body, dict):
        body = {"window": ONE, "round": 2, "image": DIGEST} | body
    status, said, _ = page.ask("POST", f"/api/cases/{page.cases()['a0']}/decision", body)
    assert status == 422 and words in said
    assert read_decisions(folder) == {}


def test_of_two_reviewers_the_second_is_told(page, folder):
    """409 with the first one's decision, which stays the last word."""
    id_ = page.cases()["a0"]
    assert page.decide(id_, png(9, 9), "rejected")[0] == 200
    status, said, _ = page.decide(id_, png(9, 9), "accepted")
    assert (status, json.loads(said)["decision"]["verdict"]) == (409, "rejected")
    assert read_decisions(folder)["a0"].verdict == "rejected"


def test_a_decision_leaves_the_strokes_of_other_windows(page, folder):
    """One accepts and another rejects: each loses at most what it has itself decided about."""
    id_ = page.cases()["a0"]
    assert [page.draw(id_, png(9, 9), window) for window in (ONE, OTHER)] == [204, 204]
    first = json.loads(page.decide(id_, png(9, 9))[1])["decision"]
    assert (page.drawn(id_), page.drawn(id_, OTHER)) == (False, True)
    page.decide(id_, png(9, 9), "rejected", first["id"], window=OTHER)
    assert (page.drawn(id_), page.drawn(id_, OTHER)) == (True, True)
    assert page.told()["cases"][0]["drafts"] == [ONE, OTHER]


def test_a_label_that_another_window_replaces_is_its_strokes_again(page, folder):
    """What a person drew is never thrown away by somebody else's word."""
    id_ = page.cases()["a0"]
    first = json.loads(page.decide(id_, png(9, 9))[1])["decision"]
    assert not page.drawn(id_)
    page.decide(id_, black(9, 9), "corrected", first["id"], window=OTHER)
    assert page.drawn(id_) and len(list((folder / "masks_reviewed").iterdir())) == 1


@pytest.mark.parametrize("window", ["..", "1", "%2e%2e%2fup", "1" * 17])
def test_a_window_is_no_path(page, folder, window):
    """Nothing is written for a name that no window gives itself."""
    assert page.draw(page.cases()["a0"], png(9, 9), window) in (404, 405, 422)
    assert not list(folder.parent.rglob("*.png"))


def test_a_decision_that_is_delivered_twice_counts_once(page, folder):
    """The answer was lost, not the decision: no conflict with oneself."""
    id_ = page.cases()["a0"]
    answers = [page.decide(id_, png(9, 9), id="a" * 16) for _ in range(2)]
    assert [status for status, _, _ in answers] == [200, 200]
    assert len((folder / "reviews.jsonl").read_text().splitlines()) == 1


def test_a_decision_is_about_what_was_on_screen(page, folder):
    """A round that ended meanwhile changes neither its round nor its image."""
    id_, seen = page.cases()["a0"], "5" * 64
    mine(folder, 3, round_=3, digest="7" * 64)
    assert page.decide(id_, png(9, 9), image=seen)[0] == 200
    decision = read_decisions(folder)["a0"]
    assert (decision.round, decision.image_sha256) == (2, seen)


def test_masks_of_another_round_than_was_listed_are_not_shown(page, folder):
    """410: the page asks for the list and opens the case again."""
    id_ = page.cases()["a0"]
    mine(folder, 3, round_=3)
    status, said, _ = page.ask("GET", f"/api/cases/{id_}/2/label.png")
    assert status == 410 and "a round replaced it" in said
    assert page.told()["cases"][0]["round"] == 3
    assert page.ask("GET", f"/api/cases/{id_}/3/label.png")[0] == 200


def test_all_that_was_mined_is_reviewed_worst_first(page, folder):
    """Not only the few that a report shows."""
    mine(folder, 40, round_=3)
    told = page.told()["cases"]
    assert [case["case_id"] for case in told] == [f"a{i}" for i in range(40)]


def test_only_what_changed_is_told_again(page, folder):
    """Thousands of cases are sent once; a page that a restarted server does not know gets all."""
    told = page.told()
    assert told["whole"] and page.told(told["now"])["cases"] == []
    page.decide(told["cases"][1]["id"], png(9, 9))
    after = page.told(told["now"])
    assert [case["case_id"] for case in after["cases"]] == ["a1"] and not after["whole"]
    assert page.told("00000000-1")["whole"]


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_label_whose_mask_is_lost_is_open_again(page, folder, damage):
    """With words for the person; deciding anew repairs it."""
    id_ = page.cases()["a0"]
    first = json.loads(page.decide(id_, png(9, 9))[1])["decision"]
    mask = label_path(folder, read_decisions(folder)["a0"])
    assert mask is not None
    if damage == "gone":
        mask.unlink()
    else:
        save_mask(mask, black(9, 9))
    told = page.told()["cases"][0]
    assert "missing or was changed" in told["lost"]
    assert page.ask("GET", f"/api/cases/{id_}/accepted.png")[0] == 204
    assert page.decide(id_, png(9, 9), "corrected", first["id"])[0] == 200
    assert page.told()["cases"][0]["lost"] is None


def test_a_slow_disk_keeps_nobody_else_waiting(folder, tmp_path):
    """While one window's list waits, another's strokes are taken."""
    asked, answer = threading.Event(), threading.Event()

    def slow():
        asked.set()
        return answer.wait(20)

    review = Review(find_run(folder.parent).sites, no_sam, tmp_path, "reviewer")
    server = ReviewServer(review, "", slow, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    page = Page(server)
    listing = threading.Thread(target=page.told)
    listing.start()
    assert asked.wait(20)
    assert page.draw(review.cases.listed()[0].id, png(9, 9)) == 204
    answer.set()
    listing.join(20)
    server.close()
    thread.join(20)


def test_whether_a_run_goes_on_is_known_without_its_images(folder):
    """Of the log's end alone, however long it is."""
    (folder.parent / SITE_LOG).write_text('{"event": "task"}\n' * 9999 + '{"event": "end"}\n')
    assert not is_running(folder.parent) and not is_running(folder)


def test_many_cases_take_little_memory(folder, tmp_path):
    """Their pixels stay on disk: only the few that were opened last are held."""
    mine(folder, 200, round_=3)
    review = Review(find_run(folder.parent).sites, no_sam, tmp_path, "reviewer")
    cases = review.cases.listed()
    for case in cases:
        assert model_mask_png(review.cases, case, "label")
    assert len(review.cases._opened) == OPENED < len(cases)


def test_a_round_that_ends_meanwhile_adds_its_cases(page, folder):
    """A review of a run that goes on: new cases appear, decisions and old ids stay."""
    before = page.cases()
    assert page.decide(before["a1"], png(9, 9))[0] == 200
    mine(folder, 5, round_=3)
    after = page.cases()
    assert set(after) == {f"a{i}" for i in range(5)}
    assert before.items() <= after.items()
    assert read_decisions(folder)["a1"].round == 2


@pytest.mark.parametrize(
    ("log", "running"),
    [
        ('{"event": "asked"}\n{"event": "end"}\n', False),
        ('{"event": "end"}\n{"event": "start"}\n', True),
        ('{"event": "end"}\n{"ev', True),
        ("", True),
        (None, True),
    ],
    ids=["ended", "begun again", "cut short", "empty", "none"],
)
def test_a_run_goes_on_until_its_client_wrote_the_end(folder, log, running):
    """What is doubtful counts as going on: then the page says that decisions count next round."""
    if log is not None:
        (folder.parent / SITE_LOG).write_text(log)
    assert find_run(folder.parent).running is running


def test_a_round_being_written_disturbs_nobody(page, folder):
    """Half a file has another name until it is whole; a torn one shows nothing."""
    (folder / "mined" / "x-0003.zst.tmp").write_bytes(b"half")
    (folder / ".mined-0003.npz.tmp").write_bytes(b"half")
    assert set(page.cases()) == {"a0", "a1", "a2"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cookie": ""}, "open the address"),
        ({"cookie": "knowmine-review=guess"}, "open the address"),
        ({"host": "evil.example"}, "on this machine only"),
        ({"x-knowmine": "other"}, "did not come from the review's page"),
    ],
)
def test_strangers_are_refused(page, folder, change, words):
    """403 for no or a guessed cookie, another host name, another site's form."""
    path = f"/api/cases/{page.cases()['a0']}/decision"
    status, said, _ = page.ask("POST", path, {"verdict": "rejected"}, **change)
    assert status == 403 and words in said
    assert read_decisions(folder) == {}


def test_a_port_in_use_is_said(folder, tmp_path):
    """With what to do; no traceback and no other port in silence."""
    review = Review(find_run(folder.parent).sites, no_sam, tmp_path, "reviewer")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}.*--port \(0"):
            ReviewServer(review, "", lambda: False, port)


def test_a_second_review_of_a_site_is_refused(folder):
    """It would not see the first one's decisions in time."""
    lock = FolderLock(folder)
    try:
        with pytest.raises(UsageError, match=r"another process \(\d+\) works in"):
            app(
                ["review", str(folder.parent), "--no-browser", "--port", "0"], standalone_mode=False
            )
    finally:
        lock.release()
