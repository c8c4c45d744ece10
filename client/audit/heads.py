"""Read checkpoints of a site's audit log that others hold: a log that was cut short lacks them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from knowmine.client.audit.receipts import read_line
from knowmine.client.audit.verify import files_of
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.countersign import Head

_HASH = re.compile("[0-9a-f]{64}")


def heads_of(hashes: Iterable[str]) -> list[Head]:
    """Checkpoints given by hand, without the numbers of their receipts."""
    hashes = list(hashes)
    for text in hashes:
        if not _HASH.fullmatch(text):
            raise UsageError(
                f"{text[:80]!r} is no checkpoint; expected the 64 digits that were published"
            )
    return [Head(0, text) for text in hashes]


def heads_in(rounds: Path, record: Path) -> list[Head]:
    """The checkpoints of this audit log's site in a server's RUN/rounds.

    Raises `UsageError` if that folder has none of this site: then nothing would be checked.
    """
    site = _site_of(record)
    found = [head for file in sorted(rounds.glob("*.json")) for head in _read(file, site)]
    if not found:
        raise UsageError(
            f"{rounds} holds no checkpoint of site {site!r}; expected the folder `rounds` of a run "
            "in which it took part"
        )
    return found


def _site_of(record: Path) -> str:
    """The name in the first receipt, which is checked later with all others."""
    for file in files_of(record)[:1]:
        with file.open("rb") as lines:
            line = lines.readline(100_000).rstrip(b"\n")
        try:
            receipt, _ = read_line(line)
        except ValueError:
            break
        if receipt.kind == "opened":
            return str(receipt.about.get("site", ""))
    raise UsageError(
        f"{record} does not begin with the site's name (its oldest files were retired, or it is "
        "no audit log): give the checkpoints one by one with --head"
    )


def _read(file: Path, site: str) -> list[Head]:
    try:
        values: Any = json.loads(file.read_bytes())["heads"].get(site)
        if values is None:
            return []
        head = Head(int(values["receipts"]), str(values["hash"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"cannot read the checkpoints in {file} ({type(error).__name__}: {error}): expected "
            "the record of a round as the server wrote it"
        ) from None
    return [Head(head.receipts, hash_.hash) for hash_ in heads_of([head.hash])]
