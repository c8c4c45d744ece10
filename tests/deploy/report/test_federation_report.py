"""A federation's report tells what a simulation's does, and nothing that rests on few images."""

import json

import pytest

from knowmine.deploy.report.federation_report import without_small_counts, write_federation_report
from knowmine.shared.errors import UsageError
from tests.deploy.run_drawn import summary_of


@pytest.fixture
def summary():
    """Two rounds of lyon and bergen; bergen has four test images."""
    told = summary_of(("lyon", "bergen"), rounds=2, sam=False)
    for scores in (told["per_site"], *(record["per_site"] for record in told["per_round"])):
        scores["bergen"].update(dice=0.4444, test_images=4)
        scores["lyon"].update(dice=0.8, test_images=40)
    told["settings"]["keys"] = "/srv/fed/keys"
    return told


def test_a_small_site_keeps_its_scores_to_itself(summary):
    """They are in no table, in no curve, and not to be worked out from the mean."""
    told = without_small_counts(summary)
    assert "0.4444" not in json.dumps(told)
    assert told["global"]["dice"] == told["per_round"][0]["dice"] == 0.8
    assert told["per_site"]["bergen"]["test_images"] is None


def test_small_counts_of_labels_are_left_out(summary):
    """None trained on is no secret; four are."""
    summary["per_round"][1]["updates"] = {
        "lyon": {"labelled": 4, "pseudo_labelled": 0},
        "bergen": {"labelled": 24, "pseudo_labelled": 3},
    }
    told = without_small_counts(summary)["per_round"][1]["updates"]
    assert [tuple(update.values()) for update in told.values()] == [(None, 0), (24, None)]


def test_the_page_tells_no_path_of_the_server(summary, tmp_path):
    """It is for every site."""
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_federation_report(tmp_path).read_text()
    assert "/srv/fed" not in page and "bergen" in page and "0.800" in page


@pytest.mark.parametrize(
    ("content", "words"), [(None, "holds no run that has ended"), (b"{", "is damaged")]
)
def test_a_folder_without_a_whole_summary_is_said(tmp_path, content, words):
    """With what to name instead."""
    if content:
        (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        write_federation_report(tmp_path)
