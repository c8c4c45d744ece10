"""Decide from names alone which images are for testing, which may have labels, and at which site.

No image is opened, so the split does not depend on whether files can be read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from knowmine.client.data.folder import (
    Case,
    first_few,
    other_files,
    read_case_ids,
    scan,
    with_groups,
)
from knowmine.client.data.sampling import deal, grouped, ranked, whole_groups
from knowmine.shared.errors import DataError


class Division(NamedTuple):
    """A folder's images: the `test` set and the `rest`.

    labels: ids of those cases in `rest` whose masks may be used. notes: sentences about the folder
    for a person to read.
    """

    test: tuple[Case, ...]
    rest: tuple[Case, ...]
    labels: frozenset[str]
    notes: tuple[str, ...]


def divide(
    folder: Path,
    labelled: float | None,
    test: Path | None,
    test_fraction: float,
    group_by: str | None,
    seed: int,
) -> Division:
    """Choose the test images and the images whose masks may be used; see `dataset.open_site`."""
    cases = scan(folder)
    if group_by is not None:
        cases = with_groups(cases, folder, group_by)

    # 1. the test set: listed or drawn
    listed = _find_list(folder, test, "test.txt")
    if listed is not None:
        case_ids = read_case_ids(listed, cases)
        straddling = {case.group for case in cases if case.case_id in case_ids} & {
            case.group for case in cases if case.case_id not in case_ids
        }
        if straddling:
            raise DataError(
                f"{listed} takes some images of {len(straddling)} groups of {group_by} "
                f"({first_few(straddling)}) and leaves others; expected whole groups, so correct "
                "the list or do not group"
            )
    else:
        case_ids = _draw_test(cases, test_fraction, seed, folder)
    chosen = tuple(case for case in cases if case.case_id in case_ids)
    rest = tuple(case for case in cases if case.case_id not in case_ids)
    if not rest:
        raise DataError(
            f"{folder}: all {len(cases)} images are test images; expected some to train on, so "
            "shorten the test set"
        )

    # 2. the masks that may be used
    labels = {case.case_id for case in rest if case.mask}
    allowed = folder / "labelled.txt"
    if allowed.exists():
        wanted = read_case_ids(allowed, cases) - case_ids
        if wanted - labels:
            raise DataError(
                f"{allowed} names {len(wanted - labels)} images without a mask "
                f"({first_few(wanted - labels)}); add the masks or delete the lines"
            )
        labels = wanted
    elif isinstance(labelled, float) and labelled == 1 and len(labels) < len(rest):
        without = {case.case_id for case in rest} - labels
        raise DataError(
            f"{folder}: {len(without)} images have no mask ({first_few(without)}) although all "
            "should be labelled (labelled 1.0); add the masks, or remove `labelled` to use "
            "the masks that exist"
        )

    notes = []
    if others := other_files(folder):
        notes.append(f"{others} files in {folder} are not images and were ignored")
    if not chosen and listed is None and test_fraction:
        notes.append(
            f"{folder} has too few masks or groups for a test set: there will be no scores"
        )
    return Division(chosen, rest, frozenset(labels), tuple(notes))


def _find_list(folder: Path, named: Path | None, default: str) -> Path | None:
    if named is None:
        return folder / default if (folder / default).exists() else None
    return folder / named if (folder / named).exists() else named


def _draw_test(cases: Sequence[Case], fraction: float, seed: int, folder: Path) -> set[str]:
    """Case ids of `fraction` of the images with masks, in whole groups."""
    groups = grouped(cases, lambda case: case.group)
    sizes = {
        group: masks
        for group, of in groups.items()
        if (masks := sum(c.mask is not None for c in of))
    }
    total = sum(sizes.values())
    if not fraction or total == 0:
        return set()
    if len(sizes) < 2:
        # One image or one group cannot be divided; it is worth more in training.
        return set()
    count = min(max(1, rounded(fraction * total)), total - 1)
    drawn = whole_groups(sizes, count, seed, "test") or set(
        sorted(ranked(sizes, seed, "test"), key=sizes.__getitem__)[:1]
    )
    return {case.case_id for group in drawn for case in groups[group]}


def deal_cases(
    cases: Sequence[Case], labels: frozenset[str], fractions: Sequence[float], seed: int
) -> list[list[Case]]:
    """Deal cases to sites in proportion to `fractions`, in whole groups; one list for each site.

    Large groups are dealt first, so that small ones balance the result. Among groups of one size,
    those with labels come first, so that each site gets its part of labelled and unlabelled images.
    If there are fewer groups than sites, some sites stay empty.
    """
    groups = grouped(cases, lambda case: case.group)
    order = ranked(groups, seed, "site")
    order.sort(key=lambda group: (-len(groups[group]), groups[group][0].case_id not in labels))
    enough = len(order) >= len(fractions)
    dealt = deal({group: len(groups[group]) for group in order}, fractions, none_empty=enough)
    return [[case for group in names for case in groups[group]] for names in dealt]


def rounded(value: float) -> int:
    """Round to the nearest integer; halves always go up, unlike `round`.

    >>> rounded(0.5), rounded(1.5), rounded(2.5)
    (1, 2, 3)
    """
    return int(value + 0.5)
