"""What a site says of its errors over the network."""

import pytest

from knowmine.shared import errors
from knowmine.shared.errors import REASONS, KnowmineError, reason_of

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, KnowmineError)
]


@pytest.mark.parametrize("kind", [*KINDS, OSError, MemoryError, KeyError])
def test_every_error_has_a_reason_that_readers_know(kind):
    """The list is closed: what it lacks is a bug."""
    assert reason_of(kind("/data/mueller-anna.png")) in REASONS


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.DataError, "data"),
        (errors.CannotWrite, "cannot-write"),
        (errors.EgressRefused, "refused"),
        (errors.KnowmineError, "failed"),
        (OSError, "cannot-write"),
        (ZeroDivisionError, "bug"),
    ],
)
def test_the_most_special_kind_decides(kind, code):
    """A full disk is more than a run that failed."""
    assert reason_of(kind("why")) == code
