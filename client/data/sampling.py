"""Draw sets of images so that a draw depends only on the seed and the names.

Each name has a rank: a hash of seed, purpose and name. A draw takes the names of lowest rank. The
order of files does not matter, a new image does not change the ranks of the others, and a draw of
10 % is part of a draw of 25 %.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def ranked(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The names in the order of SHA-256 of `seed|purpose|name`."""

    def rank(name: str) -> str:
        # File names may contain bytes that are not UTF-8; Python keeps them as surrogates.
        text = f"{seed}|{purpose}|{name}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()

    return sorted(names, key=rank)


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """The items by key, in the order given."""
    groups: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def whole_groups(sizes: Mapping[str, int], count: int, seed: int, purpose: str) -> set[str]:
    """Names of groups that have about `count` images together, and never more.

    Groups are taken in the order of their rank. A group that is too large for the remaining count
    is skipped. If every group has one image, the `count` lowest ranks are taken.
    """
    taken: set[str] = set()
    for name in ranked(sizes, seed, purpose):
        if sizes[name] <= count:
            taken.add(name)
            count -= sizes[name]
    return taken


def site_fractions(sites: int, dirichlet_alpha: float | None, seed: int) -> list[float]:
    """The fraction of the images for each site: even, or drawn from Dirichlet(alpha, ..., alpha)."""
    if dirichlet_alpha is None:
        return [1 / sites] * sites
    return list(np.random.default_rng(seed).dirichlet([dirichlet_alpha] * sites))


def deal(
    sizes: Mapping[str, int], fractions: Sequence[float], *, none_empty: bool
) -> list[list[str]]:
    """Deal groups to sites in proportion to `fractions`; one list of names for each site.

    sizes: group name to number of images. Each group, in the given order, goes to the site that is
    furthest below its fraction of the images dealt so far. So each part of the order is dealt in
    proportion, and groups in falling size end balanced. With even fractions and groups of one image,
    sites differ by at most one image.
    With `none_empty`, each site gets at least one group; there must be enough groups.
    """
    dealt: list[list[str]] = [[] for _ in fractions]
    held = [0] * len(fractions)
    total = 0
    for done, (name, size) in enumerate(sizes.items()):
        total += size
        open_to = list(range(len(fractions)))
        empty = [site for site in open_to if not dealt[site]]
        if none_empty and len(sizes) - done <= len(empty):
            open_to = empty
        site = max(open_to, key=lambda s: (round(fractions[s] * total - held[s], 6), -s))
        dealt[site].append(name)
        held[site] += size
    return dealt
