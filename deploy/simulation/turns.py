"""Decide which simulated sites keep their images in memory between their turns.

The sites of a simulation work one after another. In the order of the run, each site whose images
fit into the memory set aside keeps them. The others drop their pixels when the next turn begins and
read them again. A least-recently-used cache would always drop the site that comes next.
"""

from collections.abc import Callable, Iterable

from knowmine.client.site.site import Site
from knowmine.shared.free_memory import free_memory_bytes

FRACTION = 0.5
"""Part of the free memory that images may take; models, SAM and the server need the rest."""


class Turns:
    """The opened sites, and whose turn it is.

    sites: a function for each site that opens it; called one after another.
    memory_bytes: for the pixels of sites that keep theirs; 0 takes half of what is free now.
    """

    def __init__(self, sites: Iterable[Callable[[], Site]], memory_bytes: int = 0) -> None:
        self.sites: list[Site] = []
        self._resting: set[str] = set()
        self._now: Site | None = None
        left = memory_bytes or int(FRACTION * free_memory_bytes())
        for open_ in sites:
            site = open_()
            self.sites.append(site)
            if site.images.pixel_bytes > left:
                site.images.rest()
                self._resting.add(site.name)
            else:
                left -= site.images.pixel_bytes

    @property
    def kept(self) -> int:
        """Number of sites whose images stay in memory."""
        return len(self.sites) - len(self._resting)

    def begin(self, site: Site) -> None:
        """Start the turn of `site`; the previous site drops its pixels if they do not fit."""
        before, self._now = self._now, site
        if before is not None and before is not site and before.name in self._resting:
            before.images.rest()
