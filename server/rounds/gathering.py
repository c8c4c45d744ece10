"""Wait until enough sites are here for a round, and refuse those that cannot take part."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from knowmine.server.rounds.admission import admit_hello
from knowmine.server.rounds.sites import Sites
from knowmine.server.settings import AttendanceSettings
from knowmine.shared.errors import KnowmineError, Paused, RunFailed, UsageError
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import PROTOCOL, Hello


@dataclass
class Known:
    """All sites that a run has met: those that may take part, and the reason for each refusal."""

    met: dict[str, Hello] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def gather(
    sites: Sites,
    known: Known,
    model_digest: str,
    attendance: AttendanceSettings,
    log: RunLog,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Hello]:
    """Wait for the sites of the next round and return their introductions by name.

    Adds new sites to `known`. Waits up to `gather_s` for the expected sites. Waits longer for the
    minimum, and for one site that has labels.
    Raises `Paused` if the minimum is not reached within `patience_s`. Raises `UsageError` or
    `RunFailed` at once if all possible sites are here and cannot run a round.
    """
    began = clock()
    while True:
        _introduce(sites, known, model_digest, log)
        here = sites.here()
        roster = {name: hello for name, hello in sorted(known.met.items()) if name in here}
        waited = clock() - began
        enough = len(roster) >= attendance.minimum
        labelled = any(hello.labelled for hello in roster.values())
        complete = set(attendance.expected) <= {*roster, *known.refused}
        if enough and labelled and (complete or waited >= attendance.gather_s):
            return roster
        if complete and roster and not labelled and len(roster) >= len(attendance.expected):
            raise UsageError(
                f"none of the {len(roster)} sites has a labelled image, so there is nothing to "
                "learn from; put masks beside some images, or raise the labelled fraction"
            )
        refusals = (f"{name}: {reason}" for name, reason in known.refused.items())
        why = "; ".join(refusals) or "none answered"
        if not attendance.expected and not roster:
            raise RunFailed(f"no site can take part: {why}")
        if waited >= attendance.patience_s:
            raise Paused(
                f"{len(roster)} sites are here, {attendance.minimum} are needed, after "
                f"{waited:.0f} s ({why}); start the run again when they are back"
            )
        sites.wait(1.0)


def _introduce(sites: Sites, known: Known, model_digest: str, log: RunLog) -> None:
    """Admit or refuse each site that has joined since the last call."""
    for name, reply in sites.greet():
        known.refused.pop(name, None)
        try:
            if isinstance(reply, KnowmineError):
                raise reply
            known.met[name] = admit_hello(reply, protocol=PROTOCOL, model_digest=model_digest)
            log.event("site", **asdict(known.met[name]))
        except KnowmineError as refusal:
            known.met.pop(name, None)
            known.refused[name] = str(refusal)
            log.event("refused", level="warning", site=name, reason=str(refusal))
