"""Split a site's images into labelled, calibration, unlabelled and test images.

The same seed gives the same split. `folder.py` reads a data folder, `split.py` decides the use of
each image, `sampling.py` makes the random draws, and `loading.py` decodes the chosen images.

A mask is hidden if the run may not learn from it: its image is a test image, or it counts as
unlabelled in this run. The path of a hidden mask is removed from the `Case` and put into
`HiddenMasks`. Only `scoring.py` opens it. Nothing in this file opens a hidden mask, not even its
header.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from knowmine.client.data.folder import Case, scan
from knowmine.client.data.images import MAX_IMAGE_PX
from knowmine.client.data.loading import (
    Loaded,
    header_problem,
    load_images,
    refuse_many_bad,
)
from knowmine.client.data.sampling import grouped, ranked, site_fractions, whole_groups
from knowmine.client.data.split import Division, deal_cases, divide, rounded
from knowmine.client.data.withdrawn import WITHDRAWN
from knowmine.shared.errors import DataError, SettingsError

__all__ = [
    "Case",
    "HiddenMasks",
    "Loaded",
    "SiteData",
    "load_images",
    "open_site",
    "refuse_many_bad",
    "scan",
    "split_sites",
]

MOST_CALIBRATION = 48
"""Most images in the calibration set. More hardly improve the quality estimate, SAM has to encode
each of them, and they are worth more as labels."""


@dataclass(frozen=True)
class SiteData:
    """One site's cases by use. Cases in `unlabelled` and `test` have no mask: hidden or absent.

    calibration: the calibration set: labelled images that are not trained on.
    left_out: "case id: reason" of each image whose headers show that it cannot be used.
    warnings: sentences about the folder for a person to read.
    withdrawn: file that lists withdrawn cases. Each round reads it; it may not exist.
    """

    name: str
    labelled: tuple[Case, ...]
    calibration: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    test: tuple[Case, ...]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    withdrawn: Path | None = None


@dataclass(frozen=True)
class HiddenMasks:
    """Case id to path of the masks that only the scorer may open."""

    paths: Mapping[str, Path] = field(repr=False)


def open_site(
    name: str,
    folder: Path,
    *,
    labelled: float | None = None,
    calibration_fraction: float = 0.2,
    test: Path | None = None,
    test_fraction: float = 0.2,
    group_by: str | None = None,
    seed: int = 0,
    max_bad_fraction: float = 0.1,
    max_image_px: int = MAX_IMAGE_PX,
) -> tuple[SiteData, HiddenMasks]:
    """Split one data folder of one site.

    labelled: which masks to use. None: all, or those in labelled.txt if it exists. A float in
        (0, 1]: this fraction of them, at least one. An int: this many. 0: none. Without
        labelled.txt, 1.0 also requires a mask for every image.
    calibration_fraction: part of the labelled images, rounded down, that becomes the calibration set; at
        most MOST_CALIBRATION images.
    test: file that lists the test cases, looked up in the folder first. None: test.txt in the
        folder; without it, `test_fraction` of the images with masks is drawn.
    group_by: column of index.csv. A group is never divided between the test set and the rest.

    Raises `DataError`, also if more than `max_bad_fraction` of the images cannot be used, and
    `SettingsError` for numbers out of range.
    """
    _check_numbers(labelled, calibration_fraction, test_fraction, max_bad_fraction)
    division = divide(folder, labelled, test, test_fraction, group_by, seed)
    return _site(
        name,
        division,
        labelled,
        calibration_fraction,
        seed,
        max_bad_fraction,
        max_image_px,
        withdrawn=folder / WITHDRAWN,
    )


def split_sites(
    folder: Path,
    sites: int,
    *,
    dirichlet_alpha: float | None = None,
    labelled: float | None = None,
    calibration_fraction: float = 0.2,
    test: Path | None = None,
    test_fraction: float = 0.2,
    group_by: str | None = None,
    seed: int = 0,
    max_bad_fraction: float = 0.1,
    max_image_px: int = MAX_IMAGE_PX,
) -> dict[str, tuple[SiteData, HiddenMasks]]:
    """Split one data folder between simulated sites `site-1` to `site-N`.

    The test set is drawn first. The test set and the rest are then dealt to the sites in the same
    proportions: even, or drawn from Dirichlet(`dirichlet_alpha`); a smaller alpha is less even.
    The other arguments are those of `open_site`; `labelled` applies to each site.
    """
    _check_numbers(labelled, calibration_fraction, test_fraction, max_bad_fraction)
    if sites < 1:
        raise SettingsError(f"asked for {sites} sites; expected at least 1")
    if dirichlet_alpha is not None and not 0 < dirichlet_alpha < float("inf"):
        raise SettingsError(
            f"dirichlet_alpha is {dirichlet_alpha}; expected a positive number, or none for an "
            "even split"
        )
    division = divide(folder, labelled, test, test_fraction, group_by, seed)
    fractions = site_fractions(sites, dirichlet_alpha, seed)
    # Labelled images are dealt before the others, so that each site gets its part of both.
    rest = deal_cases(division.rest, division.labels, fractions, seed)
    held_out = deal_cases(division.test, division.labels, fractions, seed)
    if not all(rest):
        unit = f"groups of {group_by}" if group_by else "images"
        have = len({case.group for case in division.rest})
        raise DataError(
            f"{folder} has {have} {unit} outside the test set, too few for {sites} sites; expected "
            "at least one per site, so ask for fewer sites"
        )
    return {
        f"site-{i}": _site(
            f"site-{i}",
            division._replace(test=tuple(held_out[i - 1]), rest=tuple(rest[i - 1])),
            labelled,
            calibration_fraction,
            seed,
            max_bad_fraction,
            max_image_px,
            withdrawn=folder / WITHDRAWN,
        )
        for i in range(1, sites + 1)
    }


def _check_numbers(
    labelled: float | None,
    calibration_fraction: float,
    test_fraction: float,
    max_bad_fraction: float,
) -> None:
    if labelled is not None and (
        not labelled >= 0 or (isinstance(labelled, float) and labelled > 1)
    ):
        raise SettingsError(
            f"labelled is {labelled}; expected a fraction from 0 to 1 or a whole number of images"
        )
    fractions = {
        "calibration_fraction": calibration_fraction,
        "test_fraction": test_fraction,
        "max_bad_fraction": max_bad_fraction,
    }
    for key, value in fractions.items():
        if not 0 <= value <= 1:
            raise SettingsError(f"{key} is {value}; expected a fraction from 0 to 1")


def _site(
    name: str,
    division: Division,
    labelled: float | None,
    calibration_fraction: float,
    seed: int,
    max_bad_fraction: float,
    max_image_px: int,
    *,
    withdrawn: Path,
) -> tuple[SiteData, HiddenMasks]:
    """Draw labels and calibration set, hide the other masks, leave out images with bad headers."""
    test, rest, labels, notes = division
    drawn = _draw_labels(name, labels & {case.case_id for case in rest}, labelled, seed)
    hidden = {c.case_id: c.mask for c in (*test, *rest) if c.mask and c.case_id not in drawn}
    cases = {c.case_id: c if c.case_id in drawn else replace(c, mask=None) for c in (*test, *rest)}

    problems = {
        case_id: problem
        for case_id, case in cases.items()
        if (problem := header_problem(case, max_image_px))
    }
    refuse_many_bad(name, list(problems.values()), len(cases), max_bad_fraction)
    # A test image without a mask cannot be scored, and a test image cannot be mined. It is not a
    # bad image either: a whole group goes to the test set, even if only some of it has masks.
    idle = {case.case_id for case in test if case.mask is None and case.case_id not in problems}
    if idle:
        notes += (f"{len(idle)} test images have no mask and are not used",)

    usable = [
        case for case_id, case in cases.items() if case_id not in problems and case_id not in idle
    ]
    with_label = [case for case in usable if case.mask]
    calibration = _draw_calibration(with_label, calibration_fraction, seed)
    if not calibration and int(calibration_fraction * len(with_label)) and len(with_label) > 1:
        notes += ("no labelled group is small enough for the calibration set, which stays empty",)
    in_test = {case.case_id for case in test}
    data = SiteData(
        name=name,
        labelled=tuple(case for case in with_label if case.case_id not in calibration),
        calibration=tuple(case for case in with_label if case.case_id in calibration),
        unlabelled=tuple(c for c in usable if c.mask is None and c.case_id not in in_test),
        test=tuple(case for case in usable if case.case_id in in_test),
        left_out=tuple(problems.values()),
        warnings=notes,
        withdrawn=withdrawn,
    )
    if not any((data.labelled, data.unlabelled)):
        raise DataError(
            f"site '{name}' has no usable image outside its test set:\n  "
            + "\n  ".join(data.left_out[:3])
        )
    return data, HiddenMasks(
        {case_id: path for case_id, path in hidden.items() if case_id not in problems}
    )


def _draw_labels(
    name: str, labels: frozenset[str] | set[str], labelled: float | None, seed: int
) -> set[str]:
    if labelled is None:
        return set(labels)
    if isinstance(labelled, float):
        count = max(1, rounded(labelled * len(labels))) if labelled else 0
    else:
        count = labelled
        if count > len(labels):
            raise DataError(
                f"site '{name}': asked for {count} labelled images, but only {len(labels)} have masks "
                "that may be used; ask for fewer, or for a fraction"
            )
    return set(ranked(labels, seed, "labelled")[:count])


def _draw_calibration(cases: Sequence[Case], fraction: float, seed: int) -> set[str]:
    """Case ids of the calibration set: whole groups, at most MOST_CALIBRATION images, not the last label."""
    groups = grouped(cases, lambda case: case.group)
    sizes = {group: len(of) for group, of in groups.items()}
    count = min(int(fraction * len(cases)), MOST_CALIBRATION, len(cases) - 1)
    drawn = whole_groups(sizes, count, seed, "calibration") if count > 0 else set()
    return {case.case_id for group in drawn for case in groups[group]}
