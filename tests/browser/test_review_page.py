"""A clinician's review in a real browser: click, draw, decide, and lose nothing."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.client.data.folder import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.mining.fusion import Gate, Predictions
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.mining.quality import Selection
from knowmine.client.review.decisions import draft_windows, label_path, read_decisions
from knowmine.client.storage.pseudo_label_store import save_mined

PX = 64
REVIEW = "from knowmine.client.cli import main; main()"


def draw_site(state: Path) -> Path:
    """A site's state folder after a round that mined four discs; quality .2, .4, .6 and .8.

    SAM sees the first where the U-Net++ does, and the others 12, 6 and 3 pixels to the right.
    """
    folder = state / "site"
    folder.mkdir(parents=True)
    draw_round(folder, 2, 4)
    return folder


def draw_round(folder: Path, round_: int, images: int) -> None:
    """What a round leaves that mined so many of the discs."""
    rows, columns = np.mgrid[:PX, :PX]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 150
    image = (60 + 130 * disc[None, None].repeat(3, 1)).astype(np.uint8)
    names = [f"case-{i}" for i in range(images)]
    cases = tuple(Case(name, Path(f"{name}.png"), None, name) for name in names)
    drawn = torch.from_numpy(image.repeat(images, 0))
    sizes = ((PX, PX),) * images
    seen = ImageSet(cases, drawn, torch.zeros(0, 1, PX, PX), ("d" * 64,) * images, sizes)
    unet = np.repeat(disc[None, None].astype(np.float32), images, 0)
    aside = (0, 12, 6, 3, 0, 0)
    sam = np.stack([np.roll(one, aside[i], 2) for i, one in enumerate(unet)])
    ones = np.ones(images, np.float32)
    predictions = Predictions(unet, sam, ones > 0, ones, ones)
    quality = np.arange(1, images + 1) / 5 % 1
    every = Selection(ones > 0, ones)
    found = PseudoLabels(seen, predictions, Gate("used", 0.5), unet, quality, every)
    save_mined(folder, round_, found)


class Served:
    """A review in a process of its own, as a person starts it."""

    def __init__(self, state: Path, port: int = 0) -> None:
        command = [sys.executable, "-c", REVIEW, "review", str(state), "--no-browser"]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--role", "radiologist"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        lines = iter(self._process.stdout)
        self.url = next(m.group() for line in lines if (m := re.search(r"http://\S+", line)))
        self.port = int(re.findall(r":(\d+)/", self.url)[0])

    def kill(self) -> None:
        """As a power cut does it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@pytest.fixture
def served(tmp_path):
    """A review of `tmp_path / "state"`; killed at the end."""
    draw_site(tmp_path / "state")
    running = Served(tmp_path / "state")
    yield running
    running.kill()


def the_label(folder: Path, case_id: str) -> Path:
    """The accepted mask's file, which is there."""
    path = label_path(folder, read_decisions(folder)[case_id])
    assert path is not None
    return path


def shown(page, case_id):
    page.get_by_role("heading", name=case_id, exact=True).wait_for()
    case = page.locator("#list [aria-current]").get_attribute("data-id")
    page.locator(f'body[data-shown="{case}"]').wait_for()


def saved(page):
    page.locator('#saved[data-waiting="0"]').wait_for()


def stroke(page, down=0):
    """A short stroke in the upper left of the image, or below, outside of the disc."""
    box = page.locator("#canvas").bounding_box()
    left, top = box["x"] + box["width"] / 2 - 180, box["y"] + box["height"] / 2 - 180 + down
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 40, top, steps=3)
    page.mouse.up()


def test_drawn_accepted_rejected_and_there_after_a_reload(page, served, tmp_path):
    """The worst comes first; a corrected mask and a rejection are on disk and in the list."""
    page.goto(served.url)
    shown(page, "case-0")
    stroke(page)
    saved(page)
    page.keyboard.press("a")
    shown(page, "case-1")
    page.keyboard.press("r")
    shown(page, "case-2")
    saved(page)
    page.reload()
    page.get_by_text("2 of 4 decided").wait_for()

    folder = tmp_path / "state" / "site"
    decided = read_decisions(folder)
    mask = np.asarray(Image.open(the_label(folder, "case-0")))
    assert {case_id: one.verdict for case_id, one in decided.items()} == {
        "case-0": "corrected",
        "case-1": "rejected",
    }
    assert mask[:24, :24].any() and mask[32, 32]


def test_a_decision_still_being_written_counts_as_unsaved(page, served, tmp_path):
    """A browser that is slow to make the mask's PNG does not say "all saved" meanwhile."""
    page.add_init_script(
        "const plain = OffscreenCanvas.prototype.convertToBlob;"
        "OffscreenCanvas.prototype.convertToBlob = async function (...told) {"
        "  await new Promise((go) => { window.write = go; }); return plain.apply(this, told); };"
    )
    page.goto(served.url)
    shown(page, "case-0")
    page.keyboard.press("a")
    shown(page, "case-1")
    assert page.locator("#saved").get_attribute("data-waiting") == "1"
    page.evaluate("write()")
    saved(page)
    (decision,) = read_decisions(tmp_path / "state" / "site").values()
    assert decision.verdict == "accepted"


def test_a_killed_server_costs_no_stroke(page, served, tmp_path):
    """Strokes and decisions made while it was dead arrive once it is back."""
    page.goto(served.url)
    shown(page, "case-0")
    served.kill()
    stroke(page)
    page.keyboard.press("a")
    page.get_by_text("does not answer").wait_for()
    again = Served(tmp_path / "state", served.port)
    try:
        other = page.context.new_page()
        other.goto(again.url)
        saved(page)
        decided = read_decisions(tmp_path / "state" / "site")
    finally:
        again.kill()
    assert [one.verdict for one in decided.values()] == ["corrected"]


def test_a_click_asks_the_real_sam(page, served):
    """One click on the disc and SAM's mask is the person's; undo takes it back."""
    page.goto(served.url)
    shown(page, "case-0")
    page.keyboard.press("x")
    page.keyboard.press("c")
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("body[data-sam-ms]").wait_for(timeout=60_000)
    assert "%" in page.locator("#marked").inner_text()
    page.keyboard.press("z")
    assert page.locator("#marked").inner_text() == "nothing"
    saved(page)


def test_the_second_of_two_reviewers_is_told(page, served, tmp_path):
    """Nobody's word is overwritten unseen."""
    page.goto(served.url)
    shown(page, "case-0")
    other = page.context.new_page()
    other.goto(served.url.split("?")[0])
    shown(other, "case-0")
    other.keyboard.press("r")
    saved(other)
    page.keyboard.press("a")
    page.get_by_text("Another window decided first").wait_for()
    page.get_by_role("button", name="Replace it with mine").click()
    saved(page)
    page.get_by_text("1 of 4 decided").wait_for()
    lines = (tmp_path / "state/site/reviews.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["rejected", "accepted"]


def second(page, served):
    """Another reviewer's window on the same review."""
    other = page.context.new_page()
    other.set_default_timeout(20_000)
    other.goto(served.url.split("?")[0])
    shown(other, "case-0")
    return other


def marked(page):
    return page.locator("#marked").inner_text()


def ask_conflict(page, other, *cases):
    """Both decide on the cases, the other one first; `page` has drawn on each and is asked.

    Its first word takes long to reach the server, so that the others are on their way too.
    """
    held: list[Any] = []
    for case in cases:
        shown(page, case)
        stroke(page)
        saved(page)
        page.keyboard.press("n")
    for case in cases:
        other.locator("#list b", has_text=case).click()
        shown(other, case)
        other.keyboard.press("r")
        saved(other)
    page.route("**/decision", lambda route: held.append(route))
    with page.expect_request("**/decision"):
        for case in cases:
            page.locator("#list b", has_text=case).click()
            shown(page, case)
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("a")
    while not held:  # the request is known before its route is
        page.evaluate("new Promise(requestAnimationFrame)")
    page.unroute("**/decision")
    held[0].continue_()
    page.get_by_text("Another window decided first").wait_for()


def hold_the_list(page):
    """The page hears nothing of others, as if they decided at the same moment."""
    page.route(re.compile(r"/api/review\?since=."), lambda route: route.abort())


def test_each_of_two_windows_keeps_its_own_strokes(page, served, tmp_path):
    """Drawn on one case, reloaded, and one of them decides: the other's strokes are still there."""
    page.goto(served.url)
    shown(page, "case-0")
    other = second(page, served)
    stroke(page)
    stroke(other)
    stroke(other, down=300)
    for window in (page, other):
        saved(window)
    drawn = marked(page), marked(other)
    assert drawn[0] != drawn[1]
    for window in (page, other):
        window.reload()
        shown(window, "case-0")
    assert (marked(page), marked(other)) == drawn
    page.keyboard.press("a")
    shown(page, "case-1")
    saved(page)
    other.reload()
    other.locator("#list b", has_text="case-0").click()
    shown(other, "case-0")
    assert marked(other) == drawn[1]
    assert len(draft_windows(tmp_path / "state" / "site")["case-0"]) == 1


def test_a_copy_of_a_window_is_another_window(page, served, tmp_path):
    """A duplicated tab begins with the first one's memory, and still draws apart from it."""
    page.goto(served.url)
    shown(page, "case-0")
    stroke(page)
    saved(page)
    with page.context.expect_page() as opened:
        page.evaluate("open(location.href, '_blank', 'popup')")  # takes sessionStorage along
    copy = opened.value
    shown(copy, "case-0")
    names = [one.evaluate("sessionStorage.getItem('knowmine-window')") for one in (page, copy)]
    assert names[0] != names[1]
    stroke(copy, down=300)
    saved(copy)
    windows = draft_windows(tmp_path / "state" / "site")["case-0"]
    assert sorted(names) == sorted(windows)


def test_strokes_of_a_window_that_crashed_are_offered(page, served):
    """Nobody comes back for them; another takes a copy, which undo puts away, or discards them."""
    page.goto(served.url)
    shown(page, "case-0")
    other = second(page, served)
    untouched = marked(page)
    stroke(other)
    saved(other)
    drawn = marked(other)
    other.close()
    page.get_by_text("Strokes of another window").wait_for()
    assert marked(page) == untouched
    page.get_by_role("button", name="Use them").click()
    page.locator("#marked", has_text=drawn).wait_for()
    page.keyboard.press("z")
    assert marked(page) == untouched
    page.get_by_role("button", name="Discard them").click()
    page.get_by_text("Strokes of another window").wait_for(state="hidden")
    saved(page)


def test_escape_from_a_conflict_keeps_the_strokes_and_decides_nothing(page, served, tmp_path):
    """Theirs stays the last word, and one's own strokes are there after a reload."""
    page.goto(served.url)
    shown(page, "case-0")
    hold_the_list(page)
    ask_conflict(page, second(page, served), "case-0")
    page.keyboard.press("Escape")
    page.locator("#conflict").wait_for(state="hidden")
    saved(page)
    page.locator("#list b", has_text="case-0").click()
    shown(page, "case-0")
    drawn = marked(page)
    page.unroute_all()
    page.reload()
    page.get_by_text("1 of 4 decided").wait_for()
    page.locator("#list b", has_text="case-0").click()
    shown(page, "case-0")
    assert marked(page) == drawn
    assert read_decisions(tmp_path / "state" / "site")["case-0"].verdict == "rejected"


def test_two_conflicts_are_asked_about_one_after_the_other(page, served, tmp_path):
    """Each answer is for the case that its question named."""
    page.goto(served.url)
    shown(page, "case-0")
    hold_the_list(page)
    ask_conflict(page, second(page, served), "case-0", "case-1")
    page.get_by_text("case-0: a radiologist rejected").wait_for()
    page.get_by_role("button", name="Keep my strokes").click()
    page.get_by_text("case-1: a radiologist rejected").wait_for()
    page.get_by_role("button", name="Replace it with mine").click()
    page.locator("#list li", has_text="case-1").get_by_text("corrected").wait_for()
    saved(page)
    decided = read_decisions(tmp_path / "state" / "site")
    assert [decided[f"case-{i}"].verdict for i in (0, 1)] == ["rejected", "corrected"]
    assert set(draft_windows(tmp_path / "state" / "site")) == {"case-0"}


def test_a_round_that_ends_under_ones_hands_changes_no_decision(page, served, tmp_path):
    """It is written for the round whose mask was on screen."""
    page.goto(served.url)
    shown(page, "case-0")
    draw_round(tmp_path / "state" / "site", 3, 4)
    page.locator("#list", has_text="round 3").wait_for()
    page.keyboard.press("a")
    saved(page)
    assert read_decisions(tmp_path / "state" / "site")["case-0"].round == 2


def test_a_label_whose_mask_is_lost_is_open_again(page, served, tmp_path):
    """The page says why, and does not count it."""
    page.goto(served.url)
    shown(page, "case-0")
    page.keyboard.press("a")
    page.get_by_text("1 of 4 decided").wait_for()
    saved(page)
    folder = tmp_path / "state" / "site"
    the_label(folder, "case-0").unlink()
    page.get_by_text("0 of 4 decided").wait_for()
    page.keyboard.press("p")
    page.get_by_text("missing or was changed").wait_for()


def test_by_keyboard_alone(page, served, tmp_path):
    """Pointer, brush, undo, decision and taking it back, without a mouse."""
    page.goto(served.url)
    shown(page, "case-0")
    for key in ("ArrowUp", "ArrowUp", " ", "z", "ArrowLeft", " ", "a"):
        page.keyboard.press(key)
    shown(page, "case-1")
    saved(page)
    page.get_by_text("1 of 4 decided").wait_for()
    page.keyboard.press("u")
    page.get_by_text("0 of 4 decided").wait_for()
    saved(page)
    assert read_decisions(tmp_path / "state" / "site")["case-0"].verdict == "withdrawn"


def test_nothing_is_decided_before_its_image_is_seen(page, served, tmp_path):
    """The mask on screen is still that of the case before, and no label of this one."""
    held, passing = [], ["case-0"]

    def later(route):
        if passing:
            passing.pop()
            route.continue_()
        else:
            held.append(route)

    page.route("**/image.png", later)
    page.goto(served.url)
    shown(page, "case-0")
    page.keyboard.press("n")
    page.get_by_role("heading", name="case-1", exact=True).wait_for()
    page.keyboard.press("a")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.get_by_text("0 of 4 decided").is_visible()
    passing.extend(f"case-{i}" for i in range(1, 4))
    for route in held:
        route.continue_()
    shown(page, "case-1")
    page.keyboard.press("a")
    page.get_by_text("1 of 4 decided").wait_for()
    saved(page)
    assert list(read_decisions(tmp_path / "state" / "site")) == ["case-1"]


def test_each_mask_can_be_switched(page, served):
    """The keys 1 to 4 change what is seen, and back; H hides all while it is held."""
    page.goto(served.url)
    shown(page, "case-0")
    page.keyboard.press("n")
    shown(page, "case-1")

    def seen(*keys):
        for key in keys:
            page.keyboard.press(key)
        page.evaluate("new Promise(requestAnimationFrame)")
        return page.locator("#canvas").screenshot()

    usual, bare = seen(), seen("1")
    alone = {mask: (seen(mask), seen(mask))[0] for mask in "234"}
    assert alone["2"] != alone["3"] != alone["4"] != bare != usual and seen("1") == usual
    page.keyboard.down("h")
    assert seen() == bare
    page.keyboard.up("h")
    assert seen() == usual


def test_zoom_and_pan_keep_the_brush_on_its_pixel(page, served, tmp_path):
    """A dot drawn where the wheel zoomed in is erased by the pointer that dragged it aside."""
    page.goto(served.url)
    shown(page, "case-0")
    for _ in range(20):
        page.keyboard.press("[")
    box = page.locator("#canvas").bounding_box()
    left, top = box["x"] + box["width"] / 2 - 180, box["y"] + box["height"] / 2 - 180
    before = page.locator("#marked").inner_text()
    page.mouse.move(left, top)
    page.mouse.wheel(0, -600)
    page.mouse.click(left, top)
    assert page.locator("#marked").inner_text() != before
    page.keyboard.press("v")
    page.mouse.down()
    page.mouse.move(left + 90, top + 40, steps=3)
    page.mouse.up()
    page.keyboard.press("e")
    page.mouse.click(left + 90, top + 40)
    assert page.locator("#marked").inner_text() == before
    page.keyboard.press("a")
    saved(page)
    assert read_decisions(tmp_path / "state" / "site")["case-0"].verdict == "accepted"


def test_what_is_most_worth_labelling_can_come_first(page, served):
    """Badly judged, and the models disagree: .8 + 0, .6 + .6, .4 + .3 and .2 + .2."""
    page.goto(served.url)
    shown(page, "case-0")
    page.get_by_role("button", name="Most worth labelling").click()
    assert page.locator("#list b").all_inner_texts() == ["case-1", "case-0", "case-2", "case-3"]


def test_a_round_that_ends_while_one_reviews_is_in_the_list(page, served, tmp_path):
    """The run goes on and the page says so; new cases come without a reload, strokes stay."""
    page.goto(served.url)
    shown(page, "case-0")
    page.get_by_text("run in progress").wait_for()
    stroke(page)
    marked = page.locator("#marked").inner_text()
    draw_round(tmp_path / "state" / "site", 3, 6)
    page.get_by_text("0 of 6 decided").wait_for()
    assert page.locator("#marked").inner_text() == marked
    saved(page)


def test_a_wrong_token_is_refused(page, served):
    """403, in words."""
    answer = page.goto(served.url + "x")
    assert answer.status == 403 and "start it again" in page.inner_text("body")


def test_everybody_can_read_it(page, served):
    """Light and dark, narrow and wide: axe-core finds no serious fault, nothing is cut off."""
    page.goto(served.url)
    shown(page, "case-0")
    page.evaluate(Path(__file__).with_name("axe.min.js").read_text())
    for width, colours in itertools.product((1280, 1920), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=colours)
        found = page.evaluate("axe.run()")["violations"]
        assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
