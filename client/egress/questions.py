"""Check a reply against the task that it answers and against earlier replies.

These are checks 11 to 14, 17 and 18 of the list in `client/egress/release.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from knowmine.client.audit.retention import NOTHING, Past
from knowmine.client.egress.policy import LOOSEST, Policy
from knowmine.shared.checks import Door
from knowmine.shared.errors import EgressRefused
from knowmine.shared.protocol import Hello, Scores, Update
from knowmine.shared.trust.countersign import Answer, digest_of_reply, numbers_of
from knowmine.shared.weights import Manifest, Weights, bytes_of, digest_of_manifest

Kind = Literal["hello", "update", "scores"]

KINDS: Mapping[type, Kind] = MappingProxyType({Hello: "hello", Update: "update", Scores: "scores"})
_DOOR = Door("this site was about to send", EgressRefused)


@dataclass(frozen=True)
class Asked:
    """What the server asked for.

    answer: the kind of reply. run: names the run for this site. weights: those that came with the
    task; without them no limit on an update's move can be checked.
    """

    answer: Kind
    run: str = ""
    round: int = 0
    rounds: int = 0
    weights: Weights | None = None


def check_question(
    asked: Asked | None,
    manifest: Manifest,
    *,
    policy: Policy = LOOSEST,
    past: Past = NOTHING,
    now: datetime | None = None,
) -> None:
    """Refuse a task whose reply could not leave; checked first, this saves hours of work."""
    if asked and asked.answer != "hello" and not 1 <= asked.round <= asked.rounds:  # 12
        raise EgressRefused(
            f"the server asks for round {asked.round} of {asked.rounds}; expected 1 to "
            f"{asked.rounds}: a run has an end, find out who runs the server"
        )
    if asked and asked.run in past.ended:
        raise EgressRefused(
            f"run {asked.run} is over and the server asks for more; expected nothing: let the "
            "coordinator begin another run"
        )
    now = now or datetime.now(UTC)
    if not policy.open_at(now):  # 13
        raise EgressRefused(
            f"it is {now.astimezone():%H:%M}; expected {', '.join(policy.hours)}: wait, or "
            "change hours in policy.yaml"
        )
    if policy.models and (digest := digest_of_manifest(manifest)) not in policy.models:  # 14
        raise EgressRefused(
            f"model {digest} is installed; expected one of models in policy.yaml: add it there "
            "if the site agrees to train it"
        )
    new = asked is not None and (asked.run, "update", asked.round) not in past.answered
    if new and asked and asked.answer == "update" and past.rounds >= policy.rounds:  # 18
        raise EgressRefused(
            f"{past.rounds} updates have left this site; expected at most {policy.rounds}: raise "
            "rounds in policy.yaml if more may"
        )


def size_of(reply: Answer) -> int:
    """Bytes of a reply: its tensors, 8 for each number, and its texts."""
    tensors = bytes_of(reply.weights) if isinstance(reply, Update) else 0
    return tensors + _size(numbers_of(reply))


def check_answer(reply: Answer, asked: Asked) -> None:
    """Refuse a reply to another task (11)."""
    kind, round_ = KINDS[type(reply)], getattr(reply, "round", asked.round)
    if (kind, round_) != (asked.answer, asked.round):
        raise _DOOR.refuse(
            "an answer",
            f"{kind} of round {round_}",
            f"{asked.answer} of round {asked.round}, which was asked",
            "start the site again",
        )


def check_budget(reply: Answer, asked: Asked | None, policy: Policy, past: Past) -> None:
    """Refuse a second answer to one task (17), and more bytes than may leave (18)."""
    size = size_of(reply)
    if past.bytes + size > policy.gigabytes * 1e9:
        raise _DOOR.refuse(
            "bytes",
            f"{size} beside the {past.bytes} that have left",
            f"at most {policy.gigabytes:g} GB together",
            "raise gigabytes in policy.yaml if more may leave",
        )
    if asked is None or asked.answer == "hello":
        return
    before = past.answered.get((asked.run, asked.answer, asked.round))
    if before is not None and before != digest_of_reply(reply):
        raise _DOOR.refuse(
            "an answer",
            f"another for round {asked.round} than the one that left",
            "the same again or none",
            "keep the site's state folder, which holds the first answer",
        )


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str) else 8
