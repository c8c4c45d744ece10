"""What a data folder holds: cases by stem, groups from index.csv, lists of stems.

```
images/     PNG, JPEG, TIFF, BMP or DICOM (under any name), one file a stem
masks/      the same stems; an image without a mask is unlabelled
test.txt, labelled.txt      optional: one stem a line
index.csv                   optional: a column `stem`, and columns to group by
```
Names alone are looked at here; no image or mask is opened.
"""

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knowmine.client.data.images import IMAGE_SUFFIXES, is_image_file, stem_of
from knowmine.shared.errors import DataError

IMAGES, MASKS, INDEX = "images", "masks", "index.csv"


@dataclass(frozen=True)
class Case:
    """One image and, where it may be learned from, its mask.

    mask: None where there is no mask and where it is hidden; the path itself is withheld then.
    group: images of one group stay together (frames of one video); its stem if it has no group.
    """

    stem: str
    image: Path
    mask: Path | None
    group: str


def scan(folder: Path) -> tuple[Case, ...]:
    """All images of a data folder with the masks beside them, by stem.

    Files whose names begin with a dot, folders and other files are passed over. Raises
    `DataError`: no folder, no image, two files with one stem, a mask without an image.
    """
    if not (folder / IMAGES).is_dir():
        raise DataError(
            f"{folder} has no folder {IMAGES}/; expected {IMAGES}/ and, for labelled images, "
            f"{MASKS}/ with equal stems"
        )
    images = _by_stem(folder / IMAGES)
    masks = _by_stem(folder / MASKS) if (folder / MASKS).is_dir() else {}
    if not images:
        others = ", ".join(sorted({path.suffix or path.name for path in _files(folder / IMAGES)}))
        raise DataError(
            f"{folder / IMAGES} holds no image (found: {others or 'nothing'}); expected files "
            f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    alone = masks.keys() - images.keys()
    if alone:
        raise DataError(
            f"{folder / MASKS}: {len(alone)} masks have no image of the same stem "
            f"({first_few(alone)}); name a mask exactly like its image, or move it out"
        )
    return tuple(Case(stem, path, masks.get(stem), stem) for stem, path in images.items())


def images_in(folder: Path) -> dict[str, Path]:
    """Stem to image of a data folder, without a word about masks."""
    return {case.stem: case.image for case in scan(folder)}


def with_groups(cases: Sequence[Case], folder: Path, column: str) -> tuple[Case, ...]:
    """The cases with the groups that a column of the folder's index.csv gives them."""
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
            known = {case.stem for case in cases}
            group_of: dict[str, str] = {}
            for row in rows:
                stem, group = _as_stem(row["stem"] or "", known), (row[column] or "").strip()
                if group_of.setdefault(stem, group) != group:
                    raise DataError(
                        f"{file} gives {stem} two values of {column}: {group_of[stem]} and "
                        f"{group}; expected one, so mend the table"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read {file}: {error}; grouping by '{column}' needs it as UTF-8 text with "
            f"the columns stem and {column}"
        ) from None
    without = [case.stem for case in cases if not group_of.get(case.stem)]
    if without:
        raise DataError(
            f"{file} gives no {column} for {len(without)} images ({first_few(without)}); fill in "
            "the column, or do not group by it"
        )
    return tuple(replace(case, group=group_of[case.stem]) for case in cases)


def read_stems(file: Path, cases: Iterable[Case]) -> set[str]:
    """Stems listed in a file, one a line; `a.png` stands for `a`.

    Raises `DataError`: unreadable, or a stem that is no image of the folder.
    """
    known = {case.stem for case in cases}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {file}: {error}; expected a text file with one stem a line"
        ) from None
    stems = {_as_stem(line.strip(), known) for line in lines if line.strip()}
    unknown = stems - known
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} stems that have no image ({first_few(unknown)}); "
            "expected stems of this folder's images, one a line"
        )
    return stems


def other_files(folder: Path) -> int:
    """How many files in images/ and masks/ are neither images nor hidden."""
    folders = [folder / part for part in (IMAGES, MASKS) if (folder / part).is_dir()]
    return sum(not is_image_file(path) for part in folders for path in _files(part))


def first_few(names: Collection[str], count: int = 3) -> str:
    """Up to `count` of the names in order, for a message.

    >>> first_few({"c", "a", "d", "b"})
    'a, b, c, ...'
    """
    shown = ", ".join(sorted(names)[:count])
    return f"{shown}, ..." if len(names) > count else shown


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        if not is_image_file(path):
            continue
        other = found.setdefault(stem_of(path), path)
        if other is not path:
            raise DataError(
                f"{folder} holds {other.name} and {path.name}, two files of one stem; expected "
                "one, so rename or remove the other"
            )
    return found


def _files(folder: Path) -> list[Path]:
    """Files in the order of their names; a link that leads nowhere counts, to be named later."""
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


def _as_stem(line: str, known: Collection[str]) -> str:
    return line if line in known else stem_of(Path(line))
