"""A run's report in a real browser: readable by everybody, on screen and on paper."""

import itertools
from pathlib import Path

import pytest

from knowmine.deploy.report.mining_figures import Measured
from knowmine.deploy.report.report import write_report
from tests.deploy.run_drawn import gallery_of, summary_of


@pytest.fixture
def report(tmp_path):
    """The address of the report of three sites with 14 pictures."""
    measured = [Measured("lyon", 2, i / 20, i / 25, i > 10) for i in range(20)]
    return write_report(tmp_path, summary_of(), gallery_of(14, 64), measured).as_uri()


def test_everybody_can_read_it(page, report):
    """Light and dark, narrow and wide: axe-core finds no serious fault, nothing is cut off."""
    page.goto(report)
    page.evaluate(Path(__file__).with_name("axe.min.js").read_text())
    for width, colours in itertools.product((760, 1280, 1920), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=colours)
        found = page.evaluate("axe.run()")["violations"]
        assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_paper_is_white_and_tells_more_than_the_screen(page, report):
    """From a dark screen too; fused tables are open, and only the twelve worst pictures print."""
    page.emulate_media(color_scheme="dark", media="print")
    page.goto(report)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.get_by_text("By round and site").is_visible()
    assert page.locator("article.card:visible").count() == 12
    heights = "[...document.querySelectorAll('details table')].map(t => t.offsetHeight)"
    assert all(height > 100 for height in page.evaluate(heights))
