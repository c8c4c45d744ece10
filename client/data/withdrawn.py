"""Read which cases the hospital has withdrawn; no round uses them."""

from pathlib import Path

from knowmine.client.data.images import case_id_of
from knowmine.shared.errors import DataError

WITHDRAWN = "withdrawn.txt"
"""File in the data folder with one case id a line. Each round reads it when it starts."""


def withdrawn_in(file: Path | None) -> frozenset[str]:
    """The case ids in the file; a line `a.png` withdraws case `a` too.

    Empty if `file` is None or does not exist. Raises `DataError` for a list that cannot be read:
    the round then does not start.
    """
    if file is None:
        return frozenset()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {file} ({error}), so no round starts; expected text with one case id a "
            "line"
        ) from None
    named = {line.strip() for line in lines if line.strip()}
    return frozenset(named | {case_id_of(Path(name)) for name in named})
