"""An answer is read once, when all of it is here; a bell wakes all who wait."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.server.network.mailbox import Doorbell, Uploads
from knowmine.shared.errors import Refused


@pytest.fixture
def uploads():
    """Node 7 was asked `q` and answers `a`, of which two parts are to come."""
    made = Uploads()
    made.expect("q", 7)
    made.begin("q", 7, "a")
    made.began("q", ["1", "2"])
    return made


@pytest.fixture
def narrow():
    """As `uploads`, for an answer of ten bytes."""
    made = Uploads()
    made.room = 10
    made.expect("q", 7)
    made.begin("q", 7, "a")
    made.began("q", ["1", "2"])
    return made


def test_an_answer_may_be_as_large_as_its_question_lets_it(narrow):
    """Ten bytes in two parts."""
    narrow.weigh(7, "1", 4)
    narrow.weigh(7, "2", 6)
    assert not narrow.too_large("q")


def test_parts_are_weighed_together(narrow):
    """Each would do; both are too much, before the second is kept."""
    narrow.weigh(7, "1", 6)
    with pytest.raises(Refused, match="larger than its question"):
        narrow.weigh(7, "2", 6)
    assert narrow.too_large("q")


def test_a_part_that_is_sent_again_weighs_once(narrow):
    """It is here already."""
    narrow.weigh(7, "1", 6)
    narrow.arrived("1")
    narrow.weigh(7, "1", 6)
    assert not narrow.too_large("q")


def test_a_wrong_part_of_one_byte_buys_no_room(narrow):
    """It is refused for its digest; the one that follows under its name counts in full."""
    narrow.weigh(7, "1", 1)
    with pytest.raises(Refused, match="larger than its question"):
        narrow.weigh(7, "1", 200)


def test_nobody_fills_the_room_of_another(narrow):
    """Parts that are the same at all sites have names that all know."""
    narrow.weigh(8, "1", 200)
    assert not narrow.too_large("q")


def test_an_answer_is_made_up_once(narrow):
    """Parts of another making would weigh nothing."""
    with pytest.raises(Refused, match="another answer"):
        narrow.begin("q", 7, "a", "another tree")


def test_half_an_answer_is_not_whole(uploads):
    """One of two parts."""
    assert (uploads.arrived("1"), uploads.whole("q")) == (False, False)


def test_an_answer_is_whole_with_its_last_part(uploads):
    """And that is said to whom brings it."""
    uploads.arrived("1")
    assert (uploads.arrived("2"), uploads.whole("q")) == (True, True)


def test_a_question_without_an_answer_is_not_whole():
    """Nothing came yet."""
    uploads = Uploads()
    uploads.expect("q", 7)
    assert not uploads.whole("q")


def test_an_answer_that_is_announced_is_not_whole():
    """What is still to come is not known before `began`."""
    uploads = Uploads()
    uploads.expect("q", 7)
    uploads.begin("q", 7, "a")
    assert not uploads.whole("q")


def test_an_answer_without_parts_is_whole_at_once(uploads):
    """All of it was here already."""
    uploads.began("q", [])
    assert uploads.whole("q")


def test_an_answer_may_begin_again(uploads):
    """Its connection broke; what arrived is not asked for again."""
    uploads.arrived("1")
    uploads.begin("q", 7, "a")
    uploads.began("q", ["2"])
    assert uploads.arrived("2") and uploads.whole("q")


def test_another_answer_is_refused(uploads):
    """Each question is answered once."""
    with pytest.raises(Refused, match="answered once"):
        uploads.begin("q", 7, "b")


@pytest.mark.parametrize(("question", "node"), [("other", 7), ("q", 8)])
def test_an_answer_that_nobody_waits_for_is_refused(uploads, question, node):
    """To no question of ours, or by another site."""
    with pytest.raises(Refused, match="nobody waits"):
        uploads.begin(question, node, "a")


def test_a_forgotten_question_is_closed(uploads):
    """And its answer is named, to be thrown away."""
    assert uploads.forget("q") == "a"
    with pytest.raises(Refused, match="nobody waits"):
        uploads.begin("q", 7, "a")


def test_a_part_that_several_answers_hold_arrives_for_all(uploads):
    """Equal tensors travel once."""
    uploads.expect("r", 8)
    uploads.begin("r", 8, "b")
    uploads.began("r", ["1"])
    uploads.arrived("1")
    assert (uploads.whole("q"), uploads.whole("r")) == (False, True)


@given(st.permutations(range(6)), st.integers(0, 5))
def test_the_order_of_parts_does_not_matter(order, cut):
    """Whole with the last, never before."""
    uploads = Uploads()
    uploads.expect("q", 7)
    uploads.begin("q", 7, "a")
    uploads.began("q", map(str, range(6)))
    for part in order[:cut]:
        uploads.arrived(str(part))
    assert not uploads.whole("q")
    for part in order[cut:]:
        uploads.arrived(str(part))
    assert uploads.whole("q")


def test_the_bell_wakes_all_who_wait():
    """From another thread."""

    async def wait_for_it():
        bell = Doorbell()
        rings = [bell.next(), bell.next()]
        threading.Thread(target=bell.ring).start()
        await asyncio.wait_for(asyncio.gather(*(ring.wait() for ring in rings)), 20)
        return bell.next().is_set()

    assert asyncio.run(wait_for_it()) is False


def test_a_bell_that_nobody_hears_may_be_rung():
    """Before the first wait, and after the loop's end."""
    bell = Doorbell()
    bell.ring()

    async def look():
        bell.next()

    asyncio.run(look())
    bell.ring()
