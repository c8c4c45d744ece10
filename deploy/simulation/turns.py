"""Which simulated sites keep their images in memory, and which read them again for each turn.

Sites of a simulation work one after the other. Those that fit into the memory set aside keep their
pixels, first come first served; each of the others lets them go when the next site's turn begins.
A cache that drops the least recently used would drop just the one that comes next.
"""

from collections.abc import Callable, Iterable

from knowmine.client.site.site import Site
from knowmine.shared.free_memory import free_memory_bytes

SHARE = 0.5
"""Part of the free memory that images may take; models, SAM and the server need the rest."""


class Turns:
    """Sites by their place in the order of `sites`; opens each, one at a time.

    memory_bytes: for pixels of sites that keep theirs; 0 takes half of what is free now.
    """

    def __init__(self, sites: Iterable[Callable[[], Site]], memory_bytes: int = 0) -> None:
        self.sites: list[Site] = []
        self._resting: set[str] = set()
        self._now: Site | None = None
        left = memory_bytes or int(SHARE * free_memory_bytes())
        for open_ in sites:
            site = open_()
            self.sites.append(site)
            if site.pixel_bytes > left:
                site.rest()
                self._resting.add(site.name)
            else:
                left -= site.pixel_bytes

    @property
    def kept(self) -> int:
        """Sites whose images stay in memory."""
        return len(self.sites) - len(self._resting)

    def begin(self, site: Site) -> None:
        """The turn of `site`: the one before lets its pixels go if they do not fit."""
        before, self._now = self._now, site
        if before is not None and before is not site and before.name in self._resting:
            before.rest()
