"""The report is one page that needs nothing else, whatever the run was like."""

import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from knowmine.deploy.report.figures import dice_chart, outline
from knowmine.deploy.report.mining_figures import Measured, fit_of, mined_bars
from knowmine.deploy.report.report import SHOWN, worst_first, write_report
from tests.deploy.run_drawn import gallery_of, summary_of

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def written(folder, summary, gallery=(), measured=()):
    return write_report(folder, summary, list(gallery), measured).read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(tmp_path):
    """Every address in the page points into the page."""
    text = written(tmp_path, summary_of(), gallery_of(2, 64))

    used = [
        value
        for _, attributes in Page(text).tags
        for name, value in attributes.items()
        if name in ("href", "src", "xlink:href", "srcset")
    ]
    assert used and all(address.startswith(("data:image/", "#")) for address in used)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", text)


@pytest.mark.parametrize(
    ("summary", "gallery"),
    [
        (summary_of(), gallery_of(3, 64)),
        (summary_of(sam=False), gallery_of(2, 64, sam=False)),
        (summary_of(), gallery_of(2, 64, truth=False)),
        (summary_of(rounds=0, status="failed"), []),
        (summary_of(rounds=1), []),
        (summary_of(("alone",)), gallery_of(1, 64, site="alone")),
        (summary_of(tuple(f"site-{i}" for i in range(1, 13)), 20), []),
    ],
    ids=["full", "no SAM", "no truth", "no rounds", "one round", "one site", "twelve sites"],
)
def test_every_run_gives_a_whole_page(tmp_path, summary, gallery):
    """Whatever is missing, tags are closed and every site is named."""
    text = written(tmp_path, summary, gallery)

    assert not Page(text).open
    assert all(site in text for site in summary["sites"])


def test_names_cannot_become_markup(tmp_path):
    """A hostile case id, site, reason or setting is text."""
    summary = summary_of((HOSTILE,)) | {"reason": HOSTILE, "left_out": {HOSTILE: [HOSTILE]}}
    summary["settings"][HOSTILE] = HOSTILE
    summary["per_round"][0]["refused"] = {HOSTILE: HOSTILE}

    text = written(tmp_path, summary, gallery_of(1, 64, site=HOSTILE, case=HOSTILE))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "script" not in {tag for tag, _ in Page(text).tags}


def test_scores_that_are_missing_are_dashes(tmp_path):
    """A site without test images has no Dice, and the others keep theirs."""
    summary = summary_of(("lyon", "bergen"), rounds=2)
    for scores in [r["per_site"]["lyon"] for r in summary["per_round"]]:
        scores.update(dice=None, iou=None, hd95=None, test_images=0)

    text = written(tmp_path, summary)
    row = re.search(r"</i>lyon</td>(.*?)</tr>", text, re.DOTALL)
    assert row is not None and "<b>–</b>" in row[1]
    assert f"{summary['per_site']['bergen']['dice']:.3f}" in text


def test_the_worst_come_first():
    """By true Dice, or by predicted Dice if the truth is unknown."""
    items = gallery_of(4, 32) + gallery_of(3, 32, truth=False)
    values = [i.predicted if i.true_dice is None else i.true_dice for i in worst_first(items)]

    assert values == sorted(values)


def test_a_large_gallery_is_cut_and_says_so(tmp_path):
    """The page stays light and does not pretend to be complete."""
    text = written(tmp_path, summary_of(), gallery_of(2, 32) * SHOWN)

    assert text.count('<article class="card">') == SHOWN
    assert f"{SHOWN} of the {2 * SHOWN}" in text


def test_an_outline_lies_on_the_edge_of_its_pixels():
    """Rows 2 and 3, columns 4 to 7 end at x = 4 and 8 and at y = 2 and 4."""
    mask = np.zeros((10, 10))
    mask[2:4, 4:8] = 1
    corners = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline(mask)), float)

    assert corners.min(axis=0).tolist() == [4, 2] and corners.max(axis=0).tolist() == [8, 4]


def test_an_outline_closes_at_the_border():
    """A mask over all the image is outlined all round."""
    corners = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline(np.ones((8, 8)))), float)

    assert corners.min() == 0 and corners.max() == 8


def test_an_empty_mask_has_no_outline():
    """Nothing found is nothing drawn."""
    assert outline(np.full((8, 8), 0.4)) == ""


def test_a_curve_breaks_where_a_score_is_missing():
    """A round that was not scored is a gap, not a line through it."""
    rounds = [{"round": i, "dice": d} for i, d in ((1, 0.5), (2, None), (3, 0.7), (4, 0.8))]
    chart = dice_chart(rounds, [])

    assert chart is not None
    assert len(chart.curves[0].pieces) == 2 and len(chart.curves[0].dots) == 3


def measured(pairs, kept=True):
    return [Measured("lyon", 2, predicted, truth, kept) for predicted, truth in pairs]


def test_links_within_the_page_lead_somewhere(tmp_path):
    """Every #name is the id of something, of a picture or of a part of the page."""
    tags = Page(written(tmp_path, summary_of(), gallery_of(2, 64), measured([(0.5, 0.6)]))).tags
    named = {attributes["id"] for _, attributes in tags if "id" in attributes}
    asked = {v[1:] for _, a in tags if (v := a.get("href", "")).startswith("#")}
    assert asked and asked <= named


def test_a_perfect_prediction_is_on_the_dashed_line():
    """Predicted equal to true Dice: no error, perfect order, and dots whose x mirrors y."""
    fit = fit_of(measured([(i / 20, i / 20) for i in range(1, 20)]))
    assert fit is not None
    assert (fit.error, fit.rank) == (0, 1)
    for x, y, *_ in fit.dots:
        across = (x - fit.left) / (fit.right - fit.left)
        assert across == pytest.approx((fit.bottom - y) / (fit.bottom - fit.top), abs=0.001)


def test_the_fit_of_predicted_and_true_dice_is_computed():
    """Predicted .9 and .5, truly .7 and .1: an error of .3; dropping one gains .6."""
    fit = fit_of(measured([(0.9, 0.7)]) + measured([(0.5, 0.1)], kept=False))
    assert fit is not None
    assert fit.error == pytest.approx(0.3)
    assert fit.kept == pytest.approx(0.7) and fit.dropped == pytest.approx(0.1)
    assert (fit.curve, fit.rank) == ("", None)


def test_without_known_truth_there_is_no_comparison(tmp_path):
    """A federation knows no hidden masks."""
    assert fit_of([]) is None
    assert 'id="estimates"' not in written(tmp_path, summary_of(), gallery_of(2, 64, truth=False))


def test_bars_stand_on_each_other():
    """The fullest round fills the height; dropped lies on kept."""
    low, full = mined_bars([(2, 10, 10), (3, 30, 10)], height=80)
    assert (full.kept_height, full.dropped_height, full.dropped_y) == (60, 20, 0)
    assert (low.kept_y, low.dropped_y) == (60, 40)


def test_the_roster_says_who_was_missing_and_who_refused(tmp_path):
    """Of two rounds lyon gave one, and the other was refused for a reason that stands there."""
    summary = summary_of(("lyon", "bergen"), rounds=2)
    summary["per_round"][1] |= {"sites": ["bergen"], "refused": {"lyon": "too many NaN"}}
    text = written(tmp_path, summary)
    assert "1 of 2" in text and "2 of 2" in text
    assert 'class="refused" title="round 2, lyon: too many NaN"' in text


def test_the_models_digest_is_that_of_its_file(tmp_path):
    """So that a report and a model can be held together."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert hashlib.sha256(b"weights").hexdigest() in written(tmp_path, summary_of())
