"""A run's folder is read as this version writes it, or refused in one line."""

import json

import pytest

from knowmine.server.release.finished_run import read_summary
from knowmine.shared.errors import UsageError
from tests.deploy.run_drawn import summary_of


def run_with(folder, **changes):
    """A run folder whose summary has some keys changed; None removes a key."""
    values = {**summary_of(), **changes}
    kept = {key: value for key, value in values.items() if value is not None or key == "sam"}
    (folder / "summary.json").write_text(json.dumps(kept))
    return folder


def test_the_summary_and_its_plan_are_read(tmp_path):
    """Both as this version knows them."""
    summary, plan = read_summary(run_with(tmp_path))
    assert summary["status"] == "done" and plan.method == "knowmine"


def old_plan(**mining):
    return {"plan": {"method": "knowmine", "mining": mining}}


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"settings": old_plan(ramp_rounds=1)}, r"its setting `plan\.mining\.ramp_rounds` is not"),
        ({"per_round": None}, "it has no `per_round`"),
        ({"settings": {}}, "its settings have no `plan`"),
        ({"settings": [1]}, "its settings have no `plan`"),
    ],
)
def test_a_run_of_a_former_layout_is_refused_in_one_line(tmp_path, changes, seen):
    """What was seen, and what to do."""
    words = rf"written by another version of knowmine \({seen}.*: use that version, or start a new"
    with pytest.raises(UsageError, match=words) as refusal:
        read_summary(run_with(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    """The message says what to check."""
    with pytest.raises(UsageError, match="holds no run that has ended"):
        read_summary(tmp_path)


def test_a_damaged_summary_is_refused(tmp_path):
    """The message names the file."""
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UsageError, match=r"summary\.json is damaged"):
        read_summary(tmp_path)
