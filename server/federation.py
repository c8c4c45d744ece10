"""One run of the closed federation, from the open port to the finished model."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.journal.ending import ending
from knowmine.server.journal.resuming import begin_or_resume, write_closing
from knowmine.server.network.fleet import Fleet
from knowmine.server.network.notary import Notary
from knowmine.server.network.trust import Trust
from knowmine.server.rounds.app import GOODBYE_S, GridSites
from knowmine.server.rounds.deadlines import Deadlines
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.rounds.sites import Watch
from knowmine.server.settings import ServerSettings
from knowmine.server.status.status import StatusBoard
from knowmine.shared.errors import UsageError
from knowmine.shared.log import open_log, plain
from knowmine.shared.trust.certificates import load_certificate
from knowmine.shared.trust.keys import load_ec_key
from knowmine.shared.weights import Weights


def run_federation(
    settings: ServerSettings, watch: Watch, initial: Callable[[], Weights] | None = None
) -> dict[str, Any]:
    """Begin the run in `settings.out`, or go on with it, and return its summary.

    initial: makes the weights of a fresh run; by default those of `plan.model`.
    Raises `UsageError` before the first site is asked where something will not do, `RunFailed`
    or `Paused` when the run cannot go on, `Interrupted` on Ctrl-C or SIGTERM. The summary is
    written whatever happens.
    """
    allow_list = AllowList(settings.sites)
    trust, key = Trust(settings.keys, allow_list), load_ec_key(settings.keys / "server.key")
    if not allow_list.sites():
        raise UsageError(
            f"no site is admitted in {settings.sites}: send out the kits, and admit the requests "
            "that come back with `knowmine-server admit`"
        )
    dump = plain(settings.model_dump(mode="json"))
    with (
        begin_or_resume(settings.out, dump, ("federation", "plan")) as journal,
        open_log(settings.out / "run.log.jsonl") as log,
    ):
        fleet = Fleet(settings.listen, trust, allow_list, log)
        board = StatusBoard(
            settings.out / "status.json",
            settings.federation,
            fleet.presence,
            allow_list,
            lambda: load_certificate(settings.keys / "server.crt"),
            also=watch,
        )
        for warning in filter(None, _warnings(board)):
            log.event("expiry", level="warning", reason=warning)

        def end(status: str, reason: str) -> None:
            board.end(status, reason)
            write_closing(journal, status, reason, settings.plan.seed)

        with _sigterm_interrupts(), ending(settings.out, log, end, "start the server again"):
            try:
                grid = fleet.start()
                log.event("listening", host=settings.listen.host, port=fleet.port)
                sites = GridSites(
                    grid,
                    Deadlines(settings.deadlines),
                    quorum=settings.run.quorum,
                    board=board,
                    wait=grid.wait,
                    abandon=grid.abandon,
                    notary=Notary(key, str(grid.run.run_id)),
                )
                expected = settings.attendance.expected or tuple(allow_list.sites())
                run_rounds(
                    sites,
                    journal,
                    settings.plan,
                    settings.run,
                    initial or (lambda: _initial(settings)),
                    log=log,
                    watch=board,
                    attendance=settings.attendance.model_copy(update={"expected": expected}),
                    welcome=allow_list.sites,
                )
                if sites.here():
                    # Whose connection is down for a moment would go on asking for ever.
                    sites.dismiss(journal.records()[-1]["sites"], GOODBYE_S)
                else:  # a run that was killed at its very end goes on here, and has met nobody yet
                    sites.dismiss(expected, settings.attendance.gather_s)
            finally:
                fleet.close()
        return journal.read_summary()


def _initial(settings: ServerSettings) -> Weights:
    # Imported late: torch takes seconds, and only the first start of a run needs it.
    from knowmine.shared.unetplusplus import build_model, weights_of

    return weights_of(build_model(settings.plan.model, settings.plan.seed))


def _warnings(board: StatusBoard) -> list[str | None]:
    now = board.now()
    sites = now["sites"].values()
    return [now["server_certificate_warning"], *(s["certificate_warning"] for s in sites)]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with its state saved."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
