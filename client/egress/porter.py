"""The site's one door: write down each task, and check, hold and write down each reply.

```
task   ──> receipt in ──> check the task ──> the work
reply  ──> egress.release ──> (a person approves) ──> receipt out ──> the network
```
A reply leaves only after its receipt is on disk. A simulation and `flwr run` have no audit log
and no policy; the checks are the same.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from knowmine.client.audit.log import Chain
from knowmine.client.audit.receipts import Receipt
from knowmine.client.audit.retention import NOTHING, Past
from knowmine.client.egress import approval
from knowmine.client.egress.limits import move_of
from knowmine.client.egress.policy import LOOSEST, Policy
from knowmine.client.egress.questions import Asked, Kind, check_question, size_of
from knowmine.client.egress.release import release
from knowmine.shared.errors import EgressRefused, Refused, reason_of
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.trust.countersign import Confirmation, Head, digest_of_reply
from knowmine.shared.weights import Manifest, bytes_of, digest_of, digest_of_manifest

R = TypeVar("R", Update, Scores, Hello)
_QUESTION = {"hello": "hello", "update": "train", "scores": "evaluate"}


@dataclass
class Porter:
    """Guards the door of one site.

    chain: the audit log; None keeps none. pending: folder of updates that wait for a person.
    stop: set when the site must stop. server_key: returns the public key that the server's
    connection shows. head: the audit log's checkpoint after the last reply, which travels beside
    it; None without an audit log.
    """

    policy: Policy = LOOSEST
    chain: Chain | None = None
    pending: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    server_key: Callable[[], object] = lambda: None
    head: Head | None = None

    def ask(self, task: TrainTask | EvaluateTask | None, run: str, manifest: Manifest) -> Asked:
        """Take a task in; None asks for an introduction.

        Raises `EgressRefused` for a task whose reply could not leave.
        """
        asked = asked_by(task, run)
        kind = _QUESTION[asked.answer]
        came = {} if task is None else task.weights
        digest = digest_of(came) if came and self.chain else ""
        size = bytes_of(came)
        self._note(kind, "in", asked, manifest, digest=digest, size=size)
        try:
            check_question(asked, manifest, policy=self.policy, past=self._past())
        except EgressRefused:
            self._note("refused", "here", asked, manifest, about={"what": kind})
            raise
        return asked

    def let_out(self, reply: R, asked: Asked, manifest: Manifest) -> R:
        """Return the reply as it may leave, after its receipt is written.

        Raises `EgressRefused` for a reply that may not leave; a receipt says that too.
        """
        kind = asked.answer
        try:
            leaving = release(
                reply, manifest=manifest, asked=asked, policy=self.policy, past=self._past()
            )
            if self.policy.approval == "manual" and isinstance(leaving, Update):
                self._wait_for_a_person(leaving, asked, manifest)
        except EgressRefused:
            self._note("refused", "here", asked, manifest, about={"what": kind})
            raise
        if self.chain:
            digest, again = digest_of_reply(leaving), {}
            if self._past().answered.get((asked.run, kind, asked.round)) == digest:
                again = {"again": 1}
            size = size_of(leaving)
            left = self._note(kind, "out", asked, manifest, digest=digest, size=size, about=again)
            self.head = self.chain.head_of(left) if left else None
        return leaving

    def confirmed(self, confirmation: Confirmation | None) -> None:
        """Write down the server's confirmation of an earlier reply.

        A confirmation that the server did not sign, or of a reply that did not leave here, is
        written down as refused.
        """
        if self.chain is None or confirmation is None:
            return
        try:
            self.chain.countersigned(confirmation, self.server_key())
        except Refused as error:
            about = {"what": "confirmation", "why": str(error)}
            self.chain.append("refused", "in", policy=self.policy.digest(), about=about)

    def failed(self, error: BaseException, asked: Asked, manifest: Manifest) -> None:
        """Write down that the work ended in an error; the server gets one word of it."""
        about = {"what": asked.answer, "reason": reason_of(error)}
        self._note("failed", "out", asked, manifest, about=about)

    def end(self, run: str) -> None:
        """The server ended the run: no more of it leaves."""
        if self.pending:
            approval.clear(self.pending)
        if self.chain and run not in self._past().ended:
            self.chain.append("end", "in", run=run, policy=self.policy.digest())

    def close(self) -> None:
        """Let another process write the audit log."""
        if self.chain:
            self.chain.close()

    # ------------------------------------------------------------ helpers

    def _past(self) -> Past:
        return self.chain.past if self.chain else NOTHING

    def _wait_for_a_person(self, update: Update, asked: Asked, manifest: Manifest) -> None:
        if self.pending is None:
            raise EgressRefused("approval: manual needs a place to wait in: set state")
        digest = digest_of_reply(update)
        if self._past().answered.get((asked.run, "update", asked.round)) == digest:
            return  # it was approved and left before; then the connection broke
        name = f"{asked.round:04d}-{digest[:12]}"
        facts = facts_of(update, asked, self.policy, self._past(), digest)
        timeout = timedelta(hours=self.policy.approval_timeout_h)
        by = approval.hold(
            self.pending,
            name,
            digest,
            facts,
            timeout,
            self.stop,
            on_hold=lambda: self._note("held", "here", asked, manifest, digest=digest),
        )
        # While it waited, the allowed hours or the budget may have ended.
        release(update, manifest=manifest, asked=asked, policy=self.policy, past=self._past())
        self._note("approved", "here", asked, manifest, digest=digest, about={"by": by})

    def _note(
        self,
        kind: str,
        direction: str,
        asked: Asked,
        manifest: Manifest,
        *,
        digest: str = "",
        size: int = 0,
        about: Mapping[str, int | str] | None = None,
    ) -> Receipt | None:
        if self.chain is None:
            return None
        return self.chain.append(
            kind,
            direction,
            run=asked.run,
            round=asked.round,
            digest=digest,
            bytes=size,
            policy=self.policy.digest(),
            model=digest_of_manifest(manifest),
            about=about,
        )


def asked_by(task: TrainTask | EvaluateTask | None, run: str) -> Asked:
    """What a task asks for."""
    if task is None:
        return Asked("hello", run)
    kind: Kind = "update" if isinstance(task, TrainTask) else "scores"
    return Asked(kind, run, task.round, task.rounds, task.weights)


def facts_of(
    update: Update, asked: Asked, policy: Policy, past: Past, digest: str
) -> dict[str, str]:
    """What would leave, in words and numbers, for the person who decides."""
    move = move_of(update.weights, asked.weights or {})
    mined = update.mined
    return {
        "run and round": f"run {asked.run}, round {asked.round} of {asked.rounds}",
        "weights": f"{len(update.weights)} tensors, {bytes_of(update.weights):,} bytes",
        "how far they moved": f"norm {move.norm:.4g} (allowed {policy.max_update_norm:g}); at most "
        f"{move.largest:.4g} in one weight (allowed {policy.max_change:g}), in {move.where or '-'}",
        "images trained on": f"{update.labelled} labelled, {update.pseudo_labelled} pseudo-labelled",
        "images mined": f"{mined.kept} kept, {mined.dropped} dropped, {mined.empty} empty; "
        f"gate {mined.gate}, agreement {mined.mean_agreement:g}, quality {mined.mean_quality:g}",
        "mean loss and seconds": f"{update.loss:g}, {update.seconds:g}",
        "fewest cases counted": f"{policy.min_cases}",
        "left before": f"{past.rounds} updates of {policy.rounds}, {past.bytes:,} bytes of "
        f"{policy.gigabytes:g} GB",
        "SHA-256 of all of it": digest,
        "policy": policy.digest(),
    }
