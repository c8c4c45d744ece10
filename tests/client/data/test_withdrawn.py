"""The list of withdrawn cases is read in full, or the round stops."""

import pytest

from knowmine.client.data.withdrawn import withdrawn_in
from knowmine.shared.errors import DataError


def test_without_a_list_no_case_is_withdrawn(tmp_path):
    """Nor if the site has no folder."""
    assert withdrawn_in(tmp_path / "withdrawn.txt") == withdrawn_in(None) == frozenset()


def test_a_list_names_case_ids_or_files(tmp_path):
    """One a line; blanks and a byte-order mark do no harm."""
    file = tmp_path / "withdrawn.txt"
    file.write_text("\ufeffa1\n\n  b2.png \n", encoding="utf-8")
    assert {"a1", "b2"} <= withdrawn_in(file)


def test_a_list_that_cannot_be_read_stops_the_round(tmp_path):
    """A case on it must not be used."""
    file = tmp_path / "withdrawn.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no round starts"):
        withdrawn_in(file)
