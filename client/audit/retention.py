"""How long the audit log is kept, and what it says about the past."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from knowmine.shared.settings import Settings


class Records(Settings):
    """How long the audit log is kept."""

    rotate_mb: float = Field(
        8,
        gt=0,
        le=1000,
        description="Size at which a file of receipts is closed and another begun.",
    )
    keep_days: int = Field(
        3650,
        ge=30,
        le=36_500,
        description="Days after which a closed file may be removed; a receipt says what was.",
    )


@dataclass(frozen=True)
class Past:
    """What left this site before, according to its receipts.

    answered: digest of the answer to each question, by run, kind and round. ended: runs that are
    over.
    """

    rounds: int = 0
    bytes: int = 0
    answered: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()


NOTHING = Past()
