"""A reply is read once, when all of it is stored; a bell wakes all that wait."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.server.network.mailbox import Doorbell, Uploads
from knowmine.shared.errors import Refused


@pytest.fixture
def uploads():
    """Node 7 got task `q` and announced reply `a`; two parts of it are still to come."""
    made = Uploads()
    made.expect("q", 7)
    made.announce("q", 7, "a")
    made.expect_parts("q", ["1", "2"])
    return made


@pytest.fixture
def narrow():
    """Like `uploads`, for a reply of ten bytes."""
    made = Uploads()
    made.max_reply_bytes = 10
    made.expect("q", 7)
    made.announce("q", 7, "a")
    made.expect_parts("q", ["1", "2"])
    return made


def test_a_reply_may_be_as_large_as_its_task_allows(narrow):
    """Ten bytes in two parts."""
    narrow.count_bytes(7, "1", 4)
    narrow.count_bytes(7, "2", 6)
    assert not narrow.is_too_large("q")


def test_the_bytes_of_all_parts_count_together(narrow):
    """Each fits; both are too much, and the second is refused before it is kept."""
    narrow.count_bytes(7, "1", 6)
    with pytest.raises(Refused, match="larger than its task"):
        narrow.count_bytes(7, "2", 6)
    assert narrow.is_too_large("q")


def test_a_part_that_is_sent_again_counts_once(narrow):
    """It is already stored."""
    narrow.count_bytes(7, "1", 6)
    narrow.part_arrived("1")
    narrow.count_bytes(7, "1", 6)
    assert not narrow.is_too_large("q")


def test_a_damaged_part_of_one_byte_adds_no_bytes_to_the_limit(narrow):
    """Its digest is wrong, so it is refused; the next one under its name counts in full."""
    narrow.count_bytes(7, "1", 1)
    with pytest.raises(Refused, match="larger than its task"):
        narrow.count_bytes(7, "1", 200)


def test_no_site_uses_up_the_bytes_of_another(narrow):
    """Every site knows the names of parts that are equal at all sites."""
    narrow.count_bytes(8, "1", 200)
    assert not narrow.is_too_large("q")


def test_the_parts_of_a_reply_are_fixed_once(narrow):
    """Parts that were not announced would not be counted."""
    with pytest.raises(Refused, match="another reply"):
        narrow.announce("q", 7, "a", "another tree")


def test_half_a_reply_is_not_whole(uploads):
    """One of two parts."""
    assert (uploads.part_arrived("1"), uploads.is_whole("q")) == (False, False)


def test_a_reply_is_whole_with_its_last_part(uploads):
    """And the call that stores that part returns it."""
    uploads.part_arrived("1")
    assert (uploads.part_arrived("2"), uploads.is_whole("q")) == (True, True)


def test_a_task_without_a_reply_is_not_whole():
    """Nothing came yet."""
    uploads = Uploads()
    uploads.expect("q", 7)
    assert not uploads.is_whole("q")


def test_a_reply_that_is_only_announced_is_not_whole():
    """Before `expect_parts` the missing parts are not known."""
    uploads = Uploads()
    uploads.expect("q", 7)
    uploads.announce("q", 7, "a")
    assert not uploads.is_whole("q")


def test_a_reply_without_new_parts_is_whole_at_once(uploads):
    """All of them were stored before."""
    uploads.expect_parts("q", [])
    assert uploads.is_whole("q")


def test_a_reply_may_be_announced_again(uploads):
    """Its connection broke; parts that arrived are not sent again."""
    uploads.part_arrived("1")
    uploads.announce("q", 7, "a")
    uploads.expect_parts("q", ["2"])
    assert uploads.part_arrived("2") and uploads.is_whole("q")


def test_another_reply_is_refused(uploads):
    """Each task takes one reply."""
    with pytest.raises(Refused, match="takes only one"):
        uploads.announce("q", 7, "b")


@pytest.mark.parametrize(("task", "node"), [("other", 7), ("q", 8)])
def test_a_reply_that_no_task_waits_for_is_refused(uploads, task, node):
    """To a task that was never sent, or from another site."""
    with pytest.raises(Refused, match="does not wait for this reply"):
        uploads.announce(task, node, "a")


def test_a_forgotten_task_is_closed(uploads):
    """And the name of its reply is returned, so that it can be deleted."""
    assert uploads.forget("q") == "a"
    with pytest.raises(Refused, match="does not wait for this reply"):
        uploads.announce("q", 7, "a")


def test_a_part_of_several_replies_arrives_for_all(uploads):
    """Equal tensors travel once."""
    uploads.expect("r", 8)
    uploads.announce("r", 8, "b")
    uploads.expect_parts("r", ["1"])
    uploads.part_arrived("1")
    assert (uploads.is_whole("q"), uploads.is_whole("r")) == (False, True)


@given(st.permutations(range(6)), st.integers(0, 5))
def test_the_order_of_parts_does_not_matter(order, cut):
    """A reply is whole with the last part, never before."""
    uploads = Uploads()
    uploads.expect("q", 7)
    uploads.announce("q", 7, "a")
    uploads.expect_parts("q", map(str, range(6)))
    for part in order[:cut]:
        uploads.part_arrived(str(part))
    assert not uploads.is_whole("q")
    for part in order[cut:]:
        uploads.part_arrived(str(part))
    assert uploads.is_whole("q")


def test_the_bell_wakes_all_that_wait():
    """From another thread."""

    async def wait_for_it():
        bell = Doorbell()
        rings = [bell.next(), bell.next()]
        threading.Thread(target=bell.ring).start()
        await asyncio.wait_for(asyncio.gather(*(ring.wait() for ring in rings)), 20)
        return bell.next().is_set()

    assert asyncio.run(wait_for_it()) is False


def test_a_bell_may_ring_while_nothing_waits():
    """Before the first wait, and after the loop's end."""
    bell = Doorbell()
    bell.ring()

    async def look():
        bell.next()

    asyncio.run(look())
    bell.ring()
