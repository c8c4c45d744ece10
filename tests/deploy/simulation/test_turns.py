"""Sites that fit keep their images; the others have them for their turn alone."""

from functools import partial

from knowmine.deploy.simulation.turns import Turns
from knowmine.shared.free_memory import free_memory_bytes


class Sized:
    """A site whose images take `size` bytes while it is awake."""

    def __init__(self, name, size):
        self.name, self.size, self.awake = name, size, True
        self.images = self

    @property
    def pixel_bytes(self):
        return self.size if self.awake else 0

    def rest(self):
        self.awake = False


def turns_of(*sizes, memory_bytes):
    sites = [Sized(f"site-{place}", size) for place, size in enumerate(sizes)]
    return Turns([partial(lambda site: site, site) for site in sites], memory_bytes), sites


def test_what_fits_stays():
    """First come, first served; a small one may still fit after a large one."""
    turns, sites = turns_of(40, 70, 50, 20, memory_bytes=100)
    assert [site.awake for site in sites] == [True, False, True, False]
    assert turns.kept == 2


def test_pixels_that_do_not_fit_go_when_the_next_turn_begins():
    """Not before: a site that trains and is scored at once reads its images once."""
    turns, (large, small) = turns_of(70, 10, memory_bytes=50)
    turns.begin(large)
    large.awake = True
    turns.begin(large)
    assert large.awake
    turns.begin(small)
    assert not large.awake
    turns.begin(large)
    assert small.awake


def test_each_site_is_opened_after_the_one_before_has_let_go():
    """So that opening a thousand takes no more memory than running them."""
    opened: list[Sized] = []

    def open_():
        assert not any(site.awake for site in opened)
        opened.append(Sized(f"site-{len(opened)}", 10))
        return opened[-1]

    assert Turns([open_] * 5, memory_bytes=1).kept == 0


def test_without_a_number_half_of_what_is_free_is_taken():
    """A machine says how much that is."""
    turns, _ = turns_of(free_memory_bytes() // 4, free_memory_bytes(), memory_bytes=0)
    assert turns.kept == 1
