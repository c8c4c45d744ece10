"""The rounds of a run. START HERE: ask, admit, aggregate, evaluate, record.

```
journal.last() ── weights ──> sites improve them ──> admission ──> aggregate ───> optimiser
      ^                                                                               │
      └────────── journal.commit_round <── sites score them <── next global weights <─┘
```
Nothing here knows how messages travel: `Sites` is the seam, `app.py` joins it to Flower.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from knowmine.server.rounds.admission import admit, admit_hello, admit_scores
from knowmine.server.rounds.aggregation import update_weight
from knowmine.server.rounds.decoder import SharedDecoder
from knowmine.server.rounds.journal import Journal
from knowmine.server.rounds.optimiser import ServerOptimiser
from knowmine.server.rounds.robust import aggregate_by
from knowmine.server.settings import AttendanceSettings, RunSettings
from knowmine.shared.errors import KnowmineError, Paused, RunFailed, UsageError
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import (
    FEATURES,
    PROTOCOL,
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Scores,
    TrainTask,
    Update,
    calibration_of,
)
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Head
from knowmine.shared.weights import (
    Manifest,
    Weights,
    bytes_of,
    digest_of_manifest,
    manifest_of,
    sent_bytes_of,
)

ANYONE = AttendanceSettings()
"""One site is enough, and nobody is waited for: a simulation's sites are all there."""


class Sites(Protocol):
    """The sites of a federation, however they are reached.

    Answers come one at a time, as they arrive; a site that fails or stays silent gives an error
    in place of its answer and never stops the others.
    """

    def greet(self) -> Iterable[tuple[str, Hello | KnowmineError]]:
        """Ask every site that has joined since it was last asked who it is.

        The name is the transport's.
        """

    def here(self) -> set[str]:
        """The sites that have introduced themselves and can be reached now."""

    def wait(self, seconds: float) -> None:
        """Return when a site may have come or gone, at the latest after `seconds`."""

    def hold(self, weights: Weights) -> Weights:
        """The same weights in the form that they are sent in, so that they are held once."""

    def heads(self) -> Mapping[str, Head]:
        """Where each site's record of what left stood at its last answer, if it keeps one."""

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterable[tuple[str, Update | KnowmineError]]:
        """Have each named site do its task."""

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterable[tuple[str, Scores | KnowmineError]]:
        """Have each named site score its task's weights."""


class Watch(Protocol):
    """Someone who watches the run."""

    def round_started(self, round_: int, rounds: int) -> None:
        """Round `round_` of `rounds` begins."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was committed; `record` is what `RUN/rounds/*.json` holds."""


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

    Goes on after the last round in `journal`; `initial` makes the weights of a fresh run.
    welcome: the sites that may come at all, asked before each round; no round waits for another.
    Raises `UsageError` when no site has labels, `RunFailed` when a round misses its quorum,
    `Paused` when too few sites are here for too long.
    """
    state = _begin(journal, initial)
    weights = sites.hold(state.weights)
    optimiser = ServerOptimiser(**settings.optimiser.model_dump())
    optimiser.restore(state.optimiser_state)
    manifest = manifest_of(weights)
    calibrations, round_ = _calibrations_in(state.record), state.round + 1
    decoder = SharedDecoder.of_record(state.decoder and sites.hold(state.decoder), state.record)
    del state  # its weights are held in another form now
    known, attempt = Known(), 0

    while round_ <= settings.rounds:
        expected = attendance.expected
        if welcome is not None:
            may_come = welcome()  # reads the allow-list: once a round, not once a site
            expected = tuple(site for site in expected if site in may_come)
        waited_for = attendance.model_copy(update={"expected": expected})

        # ── meet ───────────────────────────────────────────────────────────────────────────────
        roster = gather(sites, known, digest_of_manifest(manifest), waited_for, log)
        started = time.monotonic()
        watch.round_started(round_, settings.rounds)

        # ── ask, admit, aggregate ──────────────────────────────────────────────────────────────
        tasks = {
            name: TrainTask(round_, settings.rounds, plan, weights, lent, decoder.weights)
            for name, lent in borrow(calibrations, roster, plan).items()
        }
        mean = aggregate_by(settings.aggregation, weights, journal.folder)
        decoder.begin(settings.aggregation, journal.folder)
        record = RoundRecord(round_)
        for name, reply in sites.train(tasks):
            try:
                if isinstance(reply, KnowmineError):
                    raise reply
                update = _admitted(reply, roster[name], round_, manifest, plan)
            except KnowmineError as refusal:
                record.refused[name] = str(refusal)
                log.event("refused", level="warning", round=round_, site=name, reason=str(refusal))
                continue
            mean.add(update.weights, update_weight(update, plan.mining.count_weight))
            decoder.add(name, update)
            record.take(name, update)
            record.bytes_up += sent_bytes_of(reply.weights) + bytes_of(update.decoder)
            log.event("update", round=round_, site=name, **record.updates[name])
            del reply, update  # one update in memory at a time, whatever the number of sites
        if lack := _lacking(record, roster, settings.quorum, attendance.minimum):
            attempt += 1
            if attempt >= attendance.attempts:
                raise RunFailed(lack)
            log.event("again", level="warning", round=round_, reason=lack)
            continue
        attempt = 0
        # Every site gets the weights twice: to improve them, and to score what became of them.
        record.bytes_down = bytes_of(weights) * (len(tasks) + len(roster))
        record.bytes_down += bytes_of(decoder.weights) * len(tasks)
        if mean.sites:
            weights = sites.hold(optimiser.step(weights, mean.result()))
        decoder.settle(sites.hold)
        del tasks, mean  # they hold the weights before, and these twice

        # ── evaluate ───────────────────────────────────────────────────────────────────────────
        # Sites ask SAM when they score in probe rounds alone.
        judged = decoder.weights if round_ <= plan.mining.probe_rounds else {}
        questions = {
            name: EvaluateTask(round_, settings.rounds, plan, weights, judged) for name in roster
        }
        record.bytes_down += bytes_of(judged) * len(roster)
        for name, answer in sites.evaluate(questions):
            try:
                scores = _believed(answer, name, round_)
            except KnowmineError as refusal:
                record.refused.setdefault(name, str(refusal))
                log.event("refused", level="warning", round=round_, site=name, reason=str(refusal))
                continue
            if scores.calibration.images:  # else the site goes on by what it last found
                calibrations[name] = scores.calibration
            record.scores[name] = scores

        # ── record ─────────────────────────────────────────────────────────────────────────────
        record.seconds = time.monotonic() - started
        record.heads = {name: head for name, head in sites.heads().items() if name in roster}
        written = record.as_json(calibrations) | decoder.as_json()
        journal.commit_round(written, weights, optimiser.state(), decoder.weights)
        log.event("round", **{k: v for k, v in written.items() if k != "calibration"})
        watch.round_done(written)
        round_ += 1
    journal.finish(weights)
    return weights


@dataclass
class Known:
    """Everyone who was ever met in a run: welcome, or refused with the reason."""

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
    """Wait for the sites of the next round and return them by name.

    Those who come are added to `known`. Waits `gather_s` for the expected ones, longer for the
    minimum, and for a site that has labels.
    Raises `Paused` after `patience_s` without the minimum, and `UsageError` or `RunFailed` at
    once where all who could come are here and will not do.
    """
    began, met, reasons = clock(), known.met, known.refused
    while True:
        for name, reply in sites.greet():
            reasons.pop(name, None)
            try:
                if isinstance(reply, KnowmineError):
                    raise reply
                met[name] = admit_hello(reply, protocol=PROTOCOL, model_digest=model_digest)
                log.event("site", **asdict(met[name]))
            except KnowmineError as refusal:
                met.pop(name, None)
                reasons[name] = str(refusal)
                log.event("refused", level="warning", site=name, reason=str(refusal))
        here = sites.here()
        roster = {name: hello for name, hello in sorted(met.items()) if name in here}
        waited = clock() - began
        enough = len(roster) >= attendance.minimum
        labelled = any(hello.labelled for hello in roster.values())
        complete = set(attendance.expected) <= {*roster, *reasons}
        if enough and labelled and (complete or waited >= attendance.gather_s):
            return roster
        if complete and roster and not labelled and len(roster) >= len(attendance.expected):
            raise UsageError(
                f"none of the {len(roster)} sites has a labelled image, so there is nothing to "
                "learn from; put masks beside some images, or raise the labelled fraction"
            )
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none answered"
        if not attendance.expected and not roster:
            raise RunFailed(f"no site can take part: {why}")
        if waited >= attendance.patience_s:
            raise Paused(
                f"{len(roster)} sites are here, {attendance.minimum} are needed, after "
                f"{waited:.0f} s ({why}); start the run again when they are back"
            )
        sites.wait(1.0)


def borrow(
    calibrations: Mapping[str, Calibration], roster: Mapping[str, Hello], plan: Plan
) -> dict[str, Calibration]:
    """Each site's own probe sums where they are enough to judge, else the federation's."""
    pooled = Calibration()
    for name in sorted(calibrations):
        pooled += calibrations[name]
    enough = plan.mining.min_probe_images
    own = {name: calibrations.get(name, Calibration()) for name in roster}
    return {name: c if c.images >= enough else pooled for name, c in own.items()}


class RoundRecord:
    """What one round did, as people and scripts read it."""

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.seconds = 0.0
        self.bytes_down = self.bytes_up = 0
        self.updates: dict[str, dict[str, Any]] = {}
        self.mined: dict[str, Mined] = {}
        self.scores: dict[str, Scores] = {}
        self.refused: dict[str, str] = {}
        self.heads: Mapping[str, Head] = {}

    def take(self, site: str, update: Update) -> None:
        """Note an admitted update, without its weights."""
        self.updates[site] = {
            "labelled": update.labelled,
            "pseudo_labelled": update.pseudo_labelled,
            "loss": update.loss,
            "seconds": update.seconds,
        }
        self.mined[site] = update.mined

    def as_json(self, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
        """The record; `calibrations` are the probe sums that the next round judges by."""
        gates = {mined.gate for mined in self.mined.values()}
        pooled = pool(self.scores.values())
        return {
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "sites": sorted(self.updates),
            **pooled,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "mined": {
                "kept": sum(mined.kept for mined in self.mined.values()),
                "dropped": sum(mined.dropped for mined in self.mined.values()),
                "gate": gates.pop() if len(gates) == 1 else "mixed",
            },
            "per_site": {name: pool([s]) for name, s in sorted(self.scores.items())},
            "updates": dict(sorted(self.updates.items())),
            "mined_per_site": {name: asdict(m) for name, m in sorted(self.mined.items())},
            "refused": dict(sorted(self.refused.items())),
            # Published: a site whose record is cut short later no longer holds them.
            "heads": {name: head._asdict() for name, head in sorted(self.heads.items())},
            "calibration": {name: asdict(c) for name, c in sorted(calibrations.items())},
        }


def pool(scores: Iterable[Scores]) -> dict[str, Any]:
    """Means over all test images of all sites; null where there are none."""
    scores = list(scores)
    images = sum(s.test_images for s in scores)
    means = {
        key: round(sum(getattr(s, key) for s in scores) / images, 6) if images else None
        for key in ("dice", "iou", "hd95")
    }
    return {**means, "test_images": images}


@dataclass(frozen=True)
class _State:
    round: int
    weights: Weights
    optimiser_state: Weights
    decoder: Weights
    record: Mapping[str, Any]


def _begin(journal: Journal, initial: Callable[[], Weights]) -> _State:
    """Where the run goes on: after its last whole round, or at the very start."""
    last = journal.last()
    if last is None:
        weights = initial()
        journal.commit_initial(weights)
        return _State(0, weights, {}, {}, {})
    record = last.records[-1] if last.records else {}
    return _State(last.round, last.weights, last.optimiser_state, last.decoder, record)


def _admitted(reply: Update, site: Hello, round_: int, manifest: Manifest, plan: Plan) -> Update:
    """The update, if it can be averaged and claims no more images than the site said it has."""
    # A review at the site turns unlabelled images into labelled ones while the run goes on.
    most = site.labelled + site.unlabelled
    return admit(
        reply,
        site=site.site,
        round=round_,
        manifest=manifest,
        max_images=most,
        shares_decoder=plan.shares_decoder,
    )


def _believed(answer: Scores | KnowmineError, site: str, round_: int) -> Scores:
    if isinstance(answer, KnowmineError):
        raise answer
    return admit_scores(answer, site=site, round=round_, features=len(FEATURES))


def _lacking(record: RoundRecord, roster: Mapping[str, Hello], quorum: float, minimum: int) -> str:
    """What a round lacks to count, or nothing."""
    needed = max(math.ceil(quorum * len(roster)), min(minimum, len(roster)))
    if len(record.updates) >= needed:
        return ""
    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(record.refused.items()))
    return (
        f"round {record.round} got {len(record.updates)} of {len(roster)} updates, needs {needed} "
        f"({reasons}); mend those sites, then go on with this run"
    )


def _calibrations_in(record: Mapping[str, Any]) -> dict[str, Calibration]:
    """The probe sums that a committed round left for the next."""
    found = record.get("calibration", {})
    return {name: calibration_of(values) for name, values in found.items()}
