"""Messages get a reply each, or a text that says why there is none."""

import time

import pytest

from knowmine.server.rounds.deadlines import Deadlines
from knowmine.server.rounds.messenger import NODE_UNAVAILABLE, Messenger, error_of, is_gone
from knowmine.server.settings import DeadlineSettings
from tests.server.rounds.tiny_grid import TinyGrid, failing, silent, site

from flwr.app import Error, Message, RecordDict

NAMES = {11: "lyon", 12: "porto"}


class Board:
    """Notes what it is told."""

    def __init__(self):
        self.asked_s, self.errors = {}, {}

    def asked(self, site, kind, expected_s):
        self.asked_s[site] = expected_s

    def answered(self, site, kind, seconds, error):
        self.errors[site] = error


def messenger(grid, *, at_most_s=5.0, at_least_s=5.0, quorum=1.0, board=None, abandon=None):
    settings = DeadlineSettings(first_s=at_most_s, at_least_s=at_least_s)
    pause = lambda seconds: time.sleep(0.01)
    return Messenger(
        grid, Deadlines(settings), quorum=quorum, board=board, wait=pause, abandon=abandon
    )


def ask(sender, kind="train", **more):
    """What each of the grid's nodes replied, by name."""
    records = {node: RecordDict() for node in sender._grid.get_node_ids()}
    return {NAMES[node]: reply for node, reply in sender.ask(kind, records, NAMES, **more)}


def test_each_node_replies():
    """In a message of its own."""
    replies = ask(messenger(TinyGrid(a=site("lyon"), b=site("porto"))))
    assert sorted(replies) == ["lyon", "porto"]
    assert all(isinstance(reply, Message) for reply in replies.values())


def test_a_silent_node_yields_a_text_and_its_message_is_given_up():
    """After its deadline; the other reply comes first."""
    given_up: list[str] = []
    grid = TinyGrid(a=silent, b=site("porto"))
    replies = ask(messenger(grid, at_most_s=0.05, abandon=given_up.append))
    assert list(replies) == ["porto", "lyon"]
    assert (replies["lyon"], given_up) == ("no answer within 0 s", ["0"])


def test_with_a_quorum_the_last_get_less_time():
    """A day by its own deadline, a moment after the other reply."""
    grid = TinyGrid(a=silent, b=site("porto"))
    replies = ask(messenger(grid, at_most_s=86_400, at_least_s=0.05, quorum=0.5))
    assert str(replies["lyon"]).startswith("no answer within")


def test_a_quick_failure_hurries_no_other_site():
    """The slow one still gets its own deadline, not that of the failed one's pace."""
    started = time.monotonic()
    grid = TinyGrid(a=failing, b=silent)
    ask(messenger(grid, at_most_s=0.3, at_least_s=0.01, quorum=0.5))
    assert time.monotonic() - started >= 0.3


def test_a_node_that_was_started_again_gets_the_message_again():
    """Its new process knows nothing of the old one's task."""
    seen = []

    def restarted(message):
        seen.append(message)
        if len(seen) == 2:
            grid.processes[11] = "second"
        return site("lyon")(message) if grid.processes and len(seen) > 3 else None

    grid = TinyGrid(a=restarted)
    given_up: list[str] = []
    assert isinstance(ask(messenger(grid, abandon=given_up.append))["lyon"], Message)
    assert given_up == ["0"]


def test_a_message_that_was_lost_with_its_node_is_sent_again():
    """Flower answers for a node that went offline; that is no reply of the site."""
    seen = []

    def offline_first(message):
        seen.append(message)
        if len(seen) == 1:
            return Message(Error(code=NODE_UNAVAILABLE), reply_to=message)
        return site("lyon")(message)

    reply = ask(messenger(TinyGrid(a=offline_first)))["lyon"]
    assert isinstance(reply, Message) and not is_gone(reply) and len(seen) == 2


def test_the_board_sees_who_works_and_what_came_of_it():
    """An unknown site has no expected time, and an error is passed on in words."""
    board = Board()
    ask(messenger(TinyGrid(a=failing, b=site("porto")), board=board))
    assert board.asked_s == {"lyon": None, "porto": None}
    assert board.errors == {"lyon": "RunFailed: the loss became nan", "porto": ""}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("cannot-write", "the site cannot write: a full disk or a missing permission"),
        ("anything else", "anything else"),
        ("", "error 9"),
    ],
)
def test_an_error_is_told_in_our_words(reason, words):
    """A site sends one word of a closed list."""
    error = Message(Error(code=9, reason=reason), reply_to=Message(RecordDict(), 1, "train"))
    assert error_of(error) == words
