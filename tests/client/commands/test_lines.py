"""What a person at a site's terminal reads."""

import pytest

from knowmine.client.commands.lines import Lines

REFUSED = {"reason": "nothing answers at server:9443", "pause_s": 60}


def test_a_site_says_what_it_waits_for_and_when_it_tries_again():
    """The reason and the pause, in one line."""
    assert Lines().of("unreachable", REFUSED) == (
        "waiting: nothing answers at server:9443; next attempt in 60 s"
    )


def test_what_was_just_said_is_not_said_again():
    """Hours without a server are one line, not hundreds."""
    lines = Lines()
    lines.of("unreachable", REFUSED)
    assert lines.of("unreachable", REFUSED) == ""


def test_a_change_is_said_again():
    """After the line was up, the same trouble is news."""
    lines = Lines()
    lines.of("unreachable", REFUSED)
    lines.of("joined", {"server": "server:9443"})
    assert lines.of("unreachable", REFUSED)


@pytest.mark.parametrize(
    ("event", "fields", "line"),
    [
        ("asked", {"kind": "train", "round": 2}, "round 2: asked to train"),
        ("asked", {"kind": "query", "round": 0}, "asked to introduce itself"),
        (
            "answered",
            {"kind": "train", "round": 2, "seconds": 31.26},
            "round 2: answered after 31.3 s",
        ),
        (
            "failed",
            {"kind": "evaluate", "round": 2, "reason": "DataError: no images", "seconds": 1.0},
            "round 2: could not score the model: DataError: no images",
        ),
        ("an event for the log alone", {"reason": "any"}, ""),
    ],
)
def test_each_event_is_a_line_or_none(event, fields, line):
    """Work is told by its round; the rest stays in the log."""
    assert Lines().of(event, fields) == line


def test_braces_in_a_reason_are_text():
    """A reason comes from outside and is no template."""
    assert Lines().of("end", {"reason": "{site}"}) == "the end: {site}"
