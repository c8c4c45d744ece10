"""Begin a run's folder or resume an unfinished one, and write its summary at the end."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knowmine.server.journal.ending import versions
from knowmine.server.journal.journal import Journal
from knowmine.server.journal.summary import summarise
from knowmine.shared.errors import UsageError


@contextmanager
def begin_or_resume(
    out: Path, settings: Mapping[str, Any], must_match: Collection[str]
) -> Iterator[Journal]:
    """The run in the folder: a new one, or an unfinished one.

    must_match: settings that cannot change during a run. Raises `UsageError` if the run is done,
    or if it was begun with other values of these.
    """
    if not (out / "settings.json").is_file():
        with Journal.create(out, settings) as journal:
            yield journal
        return
    with Journal.open(out) as journal:
        # The model's file is no sign: a run killed before its goodbye still has to send it.
        if journal.read_summary().get("status") == "done":
            raise UsageError(
                f"the run in {out} is done ({out / 'model.safetensors'}): name another folder "
                "with `out` or --out to begin the next"
            )
        for part in must_match:
            if journal.settings.get(part) != settings.get(part):
                raise UsageError(
                    f"{out} holds an unfinished run with another {part}: put back the settings in "
                    f"{out / 'settings.json'} to go on with it, or name another folder with `out`"
                )
        yield journal


def write_closing(journal: Journal, status: str, reason: str, seed: int) -> None:
    """Write the `summary.json` of a run whose sites are on other machines."""
    records = journal.records()
    journal.write_summary(
        summarise(
            status=status,
            reason=reason,
            records=records,
            roster=sorted({site for record in records for site in record["sites"]}),
            settings=journal.settings,
            seed=seed,
            sam=None,  # each site has its own
            versions=versions(),
        )
    )
