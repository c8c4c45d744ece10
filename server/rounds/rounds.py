"""The rounds of a run. START HERE: gather, train, admit, average, evaluate, record.

```
journal.last() ── weights ──> sites train them ──> admission ──> aggregation ──> optimiser
      ^                                                                              │
      └───── journal.commit_round <── sites evaluate them <── new global weights <───┘
```
Nothing here knows how messages travel: `Sites` is the interface, and `app.py` implements it with Flower.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from knowmine.server.journal.journal import Journal
from knowmine.server.journal.record import RoundRecord
from knowmine.server.rounds.admission import admit, admit_scores
from knowmine.server.rounds.aggregation import update_weight
from knowmine.server.rounds.calibration import calibrations_for, calibrations_in
from knowmine.server.rounds.gathering import Known, gather
from knowmine.server.rounds.optimiser import ServerOptimiser
from knowmine.server.rounds.robust import aggregate_by
from knowmine.server.rounds.sites import Sites, Watch
from knowmine.server.settings import AttendanceSettings, RunSettings
from knowmine.shared.errors import KnowmineError, RunFailed
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import FEATURES, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import (
    Manifest,
    Weights,
    bytes_of,
    digest_of_manifest,
    manifest_of,
    sent_bytes_of,
)

ANYONE = AttendanceSettings()
"""One site is enough, and no round waits: all sites of a simulation are there from the start."""


def run_rounds(
    sites: Sites,
    journal: Journal,
    plan: Plan,
    settings: RunSettings,
    initial: Callable[[], Weights],
    *,
    log: RunLog,
    watch: Watch,
    attendance: AttendanceSettings = ANYONE,
    welcome: Callable[[], Collection[str]] | None = None,
) -> Weights:
    """Run the rounds that are still to do and return the global weights after the last.

    Continues after the last round in `journal`; `initial` makes the weights of a fresh run.
    welcome: returns the sites that are allowed to take part; called before each round. No round
    waits for another site.
    Raises `UsageError` if no site has labels, `RunFailed` if a round misses its quorum, and
    `Paused` if too few sites are here for too long.
    """
    state = _begin(journal, initial)
    weights = sites.hold(state.weights)
    manifest = manifest_of(weights)
    optimiser = ServerOptimiser(**settings.optimiser.model_dump())
    optimiser.restore(state.optimiser_state)
    calibrations, round_ = calibrations_in(state.record), state.round + 1
    del state  # its weights are held in another form now
    known, attempt = Known(), 0

    while round_ <= settings.rounds:
        # ── gather ─────────────────────────────────────────────────────────────────────────────
        waited_for = _waited_for(attendance, welcome)
        roster = gather(sites, known, digest_of_manifest(manifest), waited_for, log)
        started = time.monotonic()
        record = RoundRecord(round_)
        watch.round_started(round_, settings.rounds)

        # ── train, admit, average ──────────────────────────────────────────────────────────────
        tasks = {
            name: TrainTask(round_, settings.rounds, plan, weights, sums)
            for name, sums in calibrations_for(roster, calibrations).items()
        }
        replies = sites.train(tasks)
        updates = _admitted(replies, roster, manifest, record, log)
        mean = aggregate_by(settings.aggregation, weights, journal.folder)
        for update in updates:
            mean.add(update.weights, update_weight(update))
            del update  # one update in memory at a time, whatever the number of sites
        if lack := _lacking(record, roster, settings.quorum, attendance.minimum):
            attempt += 1
            if attempt >= attendance.attempts:
                raise RunFailed(lack)
            log.event("again", level="warning", round=round_, reason=lack)
            continue
        attempt = 0
        # Every site gets the weights twice: to train them, and to evaluate the new ones.
        record.bytes_down = bytes_of(weights) * (len(tasks) + len(roster))
        if mean.sites:
            weights = sites.hold(optimiser.step(weights, mean.result()))
        del tasks, mean  # they hold the weights of before, and these twice

        # ── evaluate ───────────────────────────────────────────────────────────────────────────
        answers = sites.evaluate(
            {name: EvaluateTask(round_, settings.rounds, plan, weights) for name in roster}
        )
        for name, scores in _admitted_scores(answers, record, log):
            record.scores[name] = scores
            if scores.calibration.images:  # a site that calibrates no more keeps its last sums
                calibrations[name] = scores.calibration

        # ── record ─────────────────────────────────────────────────────────────────────────────
        record.seconds = time.monotonic() - started
        record.heads = {name: head for name, head in sites.heads().items() if name in roster}
        written = record.as_json(calibrations)
        journal.commit_round(written, weights, optimiser.state())
        log.event("round", **{k: v for k, v in written.items() if k != "calibration"})
        watch.round_done(written)
        round_ += 1
    journal.finish(weights)
    return weights


@dataclass(frozen=True)
class _State:
    round: int
    weights: Weights
    optimiser_state: Weights
    record: Mapping[str, Any]


def _begin(journal: Journal, initial: Callable[[], Weights]) -> _State:
    """Where the run continues: after its last whole round, or at the start."""
    last = journal.last()
    if last is None:
        weights = initial()
        journal.commit_initial(weights)
        return _State(0, weights, {}, {})
    record = last.records[-1] if last.records else {}
    return _State(last.round, last.weights, last.optimiser_state, record)


def _waited_for(
    attendance: AttendanceSettings, welcome: Callable[[], Collection[str]] | None
) -> AttendanceSettings:
    """The attendance without expected sites that are no longer allowed to take part."""
    if welcome is None:
        return attendance
    may_come = welcome()  # reads the allow-list: once a round, not once a site
    expected = tuple(site for site in attendance.expected if site in may_come)
    return attendance.model_copy(update={"expected": expected})


def _admitted(
    replies: Iterable[tuple[str, Update | KnowmineError]],
    roster: Mapping[str, Hello],
    manifest: Manifest,
    record: RoundRecord,
    log: RunLog,
) -> Iterator[Update]:
    """The updates that can be averaged, one at a time; the record names the others and why."""
    for name, reply in replies:
        try:
            if isinstance(reply, KnowmineError):
                raise reply
            hello = roster[name]
            update = admit(
                reply,
                site=hello.site,
                round=record.round,
                manifest=manifest,
                # Reviews turn unlabelled images into labelled ones while the run continues.
                max_images=hello.labelled + hello.unlabelled,
            )
        except KnowmineError as refusal:
            record.refused[name] = str(refusal)
            _log_refusal(log, record, name, refusal)
            continue
        record.take(name, update)
        record.bytes_up += sent_bytes_of(reply.weights)
        log.event("update", round=record.round, site=name, **record.updates[name])
        del reply
        yield update
        del update


def _admitted_scores(
    answers: Iterable[tuple[str, Scores | KnowmineError]], record: RoundRecord, log: RunLog
) -> Iterator[tuple[str, Scores]]:
    """The scores that can be pooled; the record names the others and why."""
    for name, answer in answers:
        try:
            if isinstance(answer, KnowmineError):
                raise answer
            scores = admit_scores(answer, site=name, round=record.round, features=len(FEATURES))
        except KnowmineError as refusal:
            record.refused.setdefault(name, str(refusal))
            _log_refusal(log, record, name, refusal)
            continue
        yield name, scores


def _log_refusal(log: RunLog, record: RoundRecord, site: str, refusal: KnowmineError) -> None:
    reason = str(refusal)
    log.event("refused", level="warning", round=record.round, site=site, reason=reason)


def _lacking(record: RoundRecord, roster: Mapping[str, Hello], quorum: float, minimum: int) -> str:
    """What the round lacks to count, or nothing."""
    needed = max(math.ceil(quorum * len(roster)), min(minimum, len(roster)))
    if len(record.updates) >= needed:
        return ""
    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(record.refused.items()))
    return (
        f"round {record.round} got {len(record.updates)} of {len(roster)} updates, needs {needed} "
        f"({reasons}); repair those sites, then go on with this run"
    )
