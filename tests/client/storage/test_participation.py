"""The rounds of a case are found by its id, and the record holds no names."""

from pathlib import Path

import pytest

from knowmine.client.data.dataset import Case
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.participation import Participation


def cases(*case_ids):
    return [Case(case_id, Path(f"{case_id}.png"), None, case_id) for case_id in case_ids]


@pytest.fixture
def record(tmp_path):
    return Participation(tmp_path, Seal(tmp_path / "keys"))


def rounds(record, case_id):
    return [(took.round, took.as_) for took in record.rounds_of(case_id)]


def test_a_cases_rounds_are_found_by_its_name(record):
    """In order, with what it was used for and when."""
    record.note(1, "trained", cases("a", "b"), ["1", "2"])
    record.note(2, "mined", cases("c"), ["3"])
    record.note(2, "trained", cases("a"), ["1"])
    assert rounds(record, "a") == [(1, "trained"), (2, "trained")]
    assert rounds(record, "c") == [(2, "mined")] and rounds(record, "d") == []
    assert record.rounds_of("a")[0].time.endswith("+00:00")


def test_the_record_names_no_case(record, tmp_path):
    """Not even by the digest of an image."""
    record.note(1, "trained", cases("mueller"), ["abcdef0123"])
    content = (tmp_path / "participation.jsonl").read_text()
    assert "mueller" not in content and "abcdef0123" not in content


def test_without_the_key_the_record_reveals_nothing(record, tmp_path):
    """Another project's key finds no case."""
    record.note(1, "trained", cases("a"), ["1"])
    assert Participation(tmp_path, Seal(tmp_path / "other")).rounds_of("a") == []


def test_a_line_that_a_crash_cut_short_costs_itself_alone(record, tmp_path):
    """Those before and after are read."""
    record.note(1, "trained", cases("a"), ["1"])
    file = tmp_path / "participation.jsonl"
    file.write_bytes(file.read_bytes() + file.read_bytes()[:40])
    record.note(2, "trained", cases("a"), ["1"])
    assert rounds(record, "a") == [(1, "trained"), (2, "trained")]
