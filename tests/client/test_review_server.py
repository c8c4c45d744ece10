"""The review's server refuses what is no answer to its page, and loses no decision."""

import base64
import io
import json
import socket
import threading
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from knowmine.client.cli import app
from knowmine.client.gallery import save_gallery
from knowmine.client.pseudo_labels import Opinions
from knowmine.client.review import Review
from knowmine.client.review_places import find_places
from knowmine.client.review_server import MAX_BODY_BYTES, ReviewServer
from knowmine.client.reviewed import mask_path, read_decisions
from knowmine.client.settings import SITE_LOG
from knowmine.shared.errors import UsageError
from knowmine.shared.lock import FolderLock
from knowmine.shared.weights import write_atomically
from tests.client.test_gallery import PX, kind


def mine(folder, images, round_=2):
    """A round that mined so many images, of which the first is judged worst."""
    folder.mkdir(exist_ok=True)
    unet = np.full((images, 1, PX, PX), 0.75, np.float32)
    opinions = Opinions(unet, unet.copy(), np.ones(images, bool), *np.ones((2, images), np.float32))
    quality = np.arange(1, images + 1) / 10
    save_gallery(folder, round_, kind(images), opinions, unet, quality, np.ones(images, bool))


def no_sam():
    """No test here clicks."""
    raise UsageError("no SAM in this test")


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

    def cases(self):
        """Ids by stem."""
        told = json.loads(self.ask("GET", "/api/review")[1])
        return {case["stem"]: case["id"] for case in told["cases"]}

    def decide(self, id_, mask, verdict="corrected", seen=None):
        """Decide with a mask, as the page does."""
        body = {"verdict": verdict, "seen": seen, "mask": base64.b64encode(mask).decode()}
        return self.ask("POST", f"/api/cases/{id_}/decision", body)


@pytest.fixture
def folder(tmp_path):
    """A site's own folder after a round that mined three images of 9 x 9 pixels."""
    (tmp_path / "state").mkdir()
    mine(tmp_path / "state" / "site", 3)
    return tmp_path / "state" / "site"


@pytest.fixture
def page(folder, tmp_path):
    """The page of a review of that site."""
    found = find_places(folder.parent)
    review = Review(found.places, no_sam, tmp_path / "embeddings", "radiologist")
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
        status, said, _ = page.ask("PUT", f"/api/cases/{id_}/draft", png(*size))
    else:
        status, said, _ = page.decide(id_, png(*size))
    assert (status, read_decisions(folder)) == (422, {})
    assert f"got a mask of {size[1]} x {size[0]} pixels for an image of 9 x 9" in said
    assert not mask_path(folder, "a0").exists()


@pytest.mark.parametrize("verdict", ["withdrawn", "rejected"])
def test_strokes_outlive_a_decision_that_makes_no_label(page, verdict):
    """Taken back or rejected, what was drawn can be gone on with after a reload."""
    id_, drawn = page.cases()["a0"], png(9, 9)
    before = None
    if verdict == "withdrawn":
        _, said, _ = page.decide(id_, drawn)
        before = json.loads(said)["decision"]["id"]
    else:
        page.ask("PUT", f"/api/cases/{id_}/draft", drawn)
    assert page.decide(id_, drawn, verdict, before)[0] == 200
    status, _, headers = page.ask("GET", f"/api/cases/{id_}/mine.png")
    assert (status, headers["content-type"]) == (200, "image/png")


@pytest.mark.parametrize("xy", [(-1, 3), (3, 9), (1e9, 1e9)])
def test_a_click_outside_the_image_is_refused(page, xy):
    """SAM is not asked about what nobody sees."""
    body = {"clicks": [[*xy, True]]}
    status, said, _ = page.ask("POST", f"/api/cases/{page.cases()['a0']}/sam", body)
    assert status == 422 and "outside the image of 9 x 9 pixels" in said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"verdict": "corrected", "mask": "###"}, "no base64"),
        ({"verdict": "corrected", "mask": "aGVsbG8="}, "the mask cannot be read"),
        ({"verdict": "accepted"}, "accepted without a mask"),
        ({"verdict": "perhaps"}, "verdict"),
        ("x" * (MAX_BODY_BYTES + 1), "more than 8 MiB"),
    ],
    ids=["no base64", "no PNG", "no mask", "no verdict", "too large"],
)
def test_what_is_no_decision_is_refused(page, folder, body, words):
    """422 in words, and nothing is written."""
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
    ("log", "going"),
    [
        ('{"event": "asked"}\n{"event": "end"}\n', False),
        ('{"event": "end"}\n{"event": "start"}\n', True),
        ('{"event": "end"}\n{"ev', True),
        ("", True),
        (None, True),
    ],
    ids=["ended", "begun again", "cut short", "empty", "none"],
)
def test_a_run_goes_on_until_its_client_wrote_the_end(folder, log, going):
    """What is doubtful counts as going on: then the page says that decisions count next round."""
    if log is not None:
        (folder.parent / SITE_LOG).write_text(log)
    assert find_places(folder.parent).going is going


def test_a_round_being_written_disturbs_nobody(page, folder):
    """Half a file has another name until it is whole; a torn one shows nothing."""
    write_atomically(folder / "mined-0003.sealed", b"of another kind")
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
    review = Review(find_places(folder.parent).places, no_sam, tmp_path, "reviewer")
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
