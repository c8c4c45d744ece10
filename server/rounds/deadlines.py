"""Set each site's deadline from how long it took before and how long the others took."""

from collections import defaultdict, deque

from knowmine.server.settings import DeadlineSettings

REMEMBERED = 5


class Deadlines:
    """Deadlines for each site and each kind of task, from measured times.

    >>> deadlines = Deadlines(DeadlineSettings(first_s=3600, factor=3, at_least_s=60))
    >>> deadlines.of("lyon", "train")
    3600.0
    >>> deadlines.took("lyon", "train", 100)
    >>> deadlines.of("lyon", "train")
    300.0
    """

    def __init__(self, settings: DeadlineSettings) -> None:
        self._settings = settings
        self._took: dict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=REMEMBERED)
        )

    def took(self, site: str, kind: str, seconds: float) -> None:
        """The site answered a task of this kind after `seconds`."""
        self._took[site, kind].append(seconds)

    def expected(self, site: str, kind: str) -> float | None:
        """Seconds that the site will probably take; None if nothing is known."""
        known = self._took.get((site, kind))
        return sorted(known)[len(known) // 2] if known else None

    def of(self, site: str, kind: str) -> float:
        """Seconds that the site may take."""
        known = self._took.get((site, kind))
        if not known:
            return self._settings.first_s
        return max(self._settings.at_least_s, self._settings.factor * max(known))

    def of_the_last(self, answered: list[float]) -> float:
        """Seconds after which a round with a quorum no longer waits.

        answered: how long the sites took that have answered.
        """
        return max(self._settings.at_least_s, self._settings.others_factor * max(answered))
