"""List a data folder: its cases, the groups in index.csv, and the lists of case ids.

```
images/     PNG, JPEG, TIFF, BMP or DICOM (with any file name), one file a case
masks/      the same case ids; an image without a mask is unlabelled
test.txt, labelled.txt      optional: one case id a line
index.csv                   optional: a column `stem` (the case id), and columns to group by
```
The case id is the file name without its suffix. This file only reads names and lists; it opens no
image and no mask.
"""

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knowmine.client.data.images import IMAGE_SUFFIXES, case_id_of, is_image_file
from knowmine.shared.errors import DataError

IMAGES, MASKS, INDEX = "images", "masks", "index.csv"


@dataclass(frozen=True)
class Case:
    """One image and, if the run may learn from it, its mask.

    case id: the case id. mask: None if there is no mask or if it is hidden.
    group: images of one group stay together (frames of one video); the case id if it has no group.
    """

    case_id: str
    image: Path
    mask: Path | None
    group: str


def scan(folder: Path) -> tuple[Case, ...]:
    """All images of a data folder with their masks, in the order of their case ids.

    Files whose names begin with a dot, folders and other files are ignored. Raises `DataError` for
    a missing folder, no image, two files with one case id, or a mask without an image.
    """
    if not (folder / IMAGES).is_dir():
        raise DataError(
            f"{folder} has no folder {IMAGES}/; expected {IMAGES}/ and, for labelled images, "
            f"{MASKS}/ with the same case ids (file names without suffix)"
        )
    images = _by_case_id(folder / IMAGES)
    masks = _by_case_id(folder / MASKS) if (folder / MASKS).is_dir() else {}
    if not images:
        others = ", ".join(sorted({path.suffix or path.name for path in _files(folder / IMAGES)}))
        raise DataError(
            f"{folder / IMAGES} holds no image (found: {others or 'nothing'}); expected files "
            f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    alone = masks.keys() - images.keys()
    if alone:
        raise DataError(
            f"{folder / MASKS}: {len(alone)} masks have no image with the same case id "
            f"({first_few(alone)}); name a mask exactly like its image, or remove it"
        )
    return tuple(
        Case(case_id, path, masks.get(case_id), case_id) for case_id, path in images.items()
    )


def images_in(folder: Path) -> dict[str, Path]:
    """Case id to image file of a data folder."""
    return {case.case_id: case.image for case in scan(folder)}


def with_groups(cases: Sequence[Case], folder: Path, column: str) -> tuple[Case, ...]:
    """The cases with their groups from a column of the folder's index.csv."""
    file = folder / INDEX
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            columns = list(rows.fieldnames or ())
            if "stem" not in columns or column not in columns:
                missing = column if "stem" in columns else "stem"
                raise DataError(
                    f"{file} has no column '{missing}'; it has: {', '.join(columns) or 'none'}"
                )
            known = {case.case_id for case in cases}
            group_of: dict[str, str] = {}
            for row in rows:
                case_id, group = _as_case_id(row["stem"] or "", known), (row[column] or "").strip()
                if group_of.setdefault(case_id, group) != group:
                    raise DataError(
                        f"{file} gives {case_id} two values of {column}: {group_of[case_id]} and "
                        f"{group}; expected one, so correct the table"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read {file}: {error}; to group by '{column}', it must be UTF-8 text with the "
            f"columns stem and {column}"
        ) from None
    without = [case.case_id for case in cases if not group_of.get(case.case_id)]
    if without:
        raise DataError(
            f"{file} gives no {column} for {len(without)} images ({first_few(without)}); fill in "
            "the column, or do not group by it"
        )
    return tuple(replace(case, group=group_of[case.case_id]) for case in cases)


def read_case_ids(file: Path, cases: Iterable[Case]) -> set[str]:
    """The case ids listed in a file, one a line; a line `a.png` means case `a`.

    Raises `DataError` if the file cannot be read or names a case without an image.
    """
    known = {case.case_id for case in cases}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {file}: {error}; expected a text file with one case id a line"
        ) from None
    case_ids = {_as_case_id(line.strip(), known) for line in lines if line.strip()}
    unknown = case_ids - known
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} cases that have no image ({first_few(unknown)}); "
            "expected case ids of this folder's images, one a line"
        )
    return case_ids


def other_files(folder: Path) -> int:
    """The number of files in images/ and masks/ that are not images; dot files do not count."""
    folders = [folder / part for part in (IMAGES, MASKS) if (folder / part).is_dir()]
    return sum(not is_image_file(path) for part in folders for path in _files(part))


def first_few(names: Collection[str]) -> str:
    """The first three names in order, for a message.

    >>> first_few({"c", "a", "d", "b"})
    'a, b, c, ...'
    """
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def _by_case_id(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        if not is_image_file(path):
            continue
        other = found.setdefault(case_id_of(path), path)
        if other is not path:
            raise DataError(
                f"{folder} holds {other.name} and {path.name}, two files with one case id; "
                "expected one, so rename or remove the other"
            )
    return found


def _files(folder: Path) -> list[Path]:
    """Files in the order of their names. A broken link is included, so that it is reported later."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".")
            and (path.is_file() or (path.is_symlink() and not path.exists()))
        )
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; expected a folder that this user may read"
        ) from None


def _as_case_id(line: str, known: Collection[str]) -> str:
    return line if line in known else case_id_of(Path(line))
