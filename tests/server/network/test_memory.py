"""What the server does about its memory changes nothing but its size."""

import gc

from knowmine.server.network.memory import give_back, keep_small


def test_garbage_made_later_is_still_found():
    """A cycle from after the call is collected; what was there before is left alone."""
    try:
        keep_small()
        assert gc.get_freeze_count() > 1000
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()


def test_giving_back_may_be_asked_for_at_any_time():
    """Twice in a row, with nothing to give."""
    give_back()
    give_back()
