"""The site's door: questions and answers are written down, and nothing leaves unwritten."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knowmine.client.audit.log import Chain
from knowmine.client.audit.receipts import hash_of
from knowmine.client.egress import approval
from knowmine.client.egress.policy import Policy
from knowmine.client.egress.porter import Porter
from knowmine.client.egress.questions import size_of
from knowmine.shared.errors import CannotWrite, DataError, EgressRefused, Interrupted
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Confirmation, countersign, digest_of_reply
from knowmine.shared.weights import digest_of, manifest_of

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
SENT = {"a.weight": np.ones(4, np.float32)}
MANIFEST = manifest_of(SENT)
MOVED = {"a.weight": np.full(4, 1.5, np.float32)}
TASK = TrainTask(1, 3, Plan(), SENT)
UPDATE = Update(1, MOVED, 8, 0, 0.5, 2.0)
SCORES = Scores(1, 4, 3.0, 2.0, 9.0)
HELLO = Hello("lyon", 1, "ab" * 32, 8, 0, 0, 4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit" / "receipts.jsonl"


@pytest.fixture
def porter(path, tmp_path):
    with Chain.open(path, KEY) as chain:
        yield Porter(Policy(), chain, tmp_path / "pending")


def kinds(porter):
    """Direction and kind of each receipt but the first, which opens the record."""
    return [f"{r.direction} {r.kind}" for r in porter.chain.receipts[1:]]


def round_through(porter, task=TASK, reply=UPDATE, run="7"):
    return porter.let_out(reply, porter.ask(task, run, MANIFEST), MANIFEST)


def test_a_round_leaves_its_receipts(porter):
    """Who asked, an update, its scores, and the end."""
    round_through(porter, None, HELLO)
    round_through(porter)
    round_through(porter, EvaluateTask(1, 3, Plan(), SENT), SCORES)
    porter.end("7")
    assert kinds(porter) == [
        *("in hello", "out hello", "in train", "out update", "in evaluate", "out scores", "in end")
    ]


def test_a_receipt_tells_what_left(porter):
    """Digest and bytes of the whole message, the round, the policy and the model."""
    round_through(porter)
    asked, left = porter.chain.receipts[1:]
    assert (asked.digest, asked.bytes) == (digest_of(SENT), 16)
    assert (left.digest, left.bytes) == (digest_of_reply(UPDATE), size_of(UPDATE))
    assert (left.run, left.round, left.policy) == ("7", 1, Policy().digest())


def test_the_receipt_is_on_disk_before_the_answer_is_given_back(porter, path):
    """The head that is published is that of the answer's receipt."""
    round_through(porter)
    assert porter.head == (3, hash_of(path.read_bytes().splitlines()[-1]))


def test_without_a_receipt_nothing_leaves(porter, monkeypatch):
    """A full disk keeps the answer here."""
    asked = porter.ask(TASK, "7", MANIFEST)

    def full(*_, **__):
        raise CannotWrite("no space")

    monkeypatch.setattr(porter.chain, "append", full)
    with pytest.raises(CannotWrite):
        porter.let_out(UPDATE, asked, MANIFEST)


def test_a_refused_answer_is_written_down_and_stays(porter):
    """An auditor sees attempts too."""
    asked = porter.ask(TASK, "7", MANIFEST)
    with pytest.raises(EgressRefused):
        porter.let_out(replace(UPDATE, round=2), asked, MANIFEST)
    assert kinds(porter)[-1] == "here refused"
    assert porter.chain.past.rounds == 0


def test_a_question_that_may_not_be_answered_costs_no_work(porter):
    """It is refused when it comes."""
    porter.policy = Policy(rounds=0)
    with pytest.raises(EgressRefused, match="at most 0"):
        porter.ask(TASK, "7", MANIFEST)
    assert kinds(porter) == ["in train", "here refused"]


def test_an_error_leaves_a_receipt_with_its_one_word(porter):
    """The server learns that word and no more."""
    asked = porter.ask(TASK, "7", MANIFEST)
    porter.failed(DataError("patient-7.png cannot be read"), asked, MANIFEST)
    assert porter.chain.last.about == {"what": "update", "reason": "data"}


def test_nothing_leaves_after_the_goodbye(porter):
    """Of that run; another may begin."""
    porter.end("7")
    porter.end("7")
    with pytest.raises(EgressRefused, match="over"):
        porter.ask(TASK, "7", MANIFEST)
    assert round_through(porter, run="8")
    assert kinds(porter).count("in end") == 1


def test_budgets_survive_a_restart(path):
    """They are read from the receipts."""
    for run in ("7", "8"):
        with Chain.open(path, KEY) as chain:
            round_through(Porter(Policy(rounds=2), chain), run=run)
    with Chain.open(path, KEY) as chain, pytest.raises(EgressRefused, match="2 updates have left"):
        round_through(Porter(Policy(rounds=2), chain), run="9")


def test_the_same_answer_may_be_sent_again_and_another_not(porter):
    """It counts its bytes and no round."""
    round_through(porter)
    round_through(porter)
    assert (porter.chain.past.rounds, porter.chain.past.bytes) == (1, 2 * size_of(UPDATE))
    with pytest.raises(EgressRefused, match="another for round 1"):
        round_through(porter, reply=replace(UPDATE, loss=0.25))


def test_without_a_record_the_checks_are_the_same():
    """A simulation's door."""
    assert Porter().head is None
    assert round_through(Porter()).labelled == 8
    with pytest.raises(EgressRefused):
        round_through(Porter(), reply=replace(UPDATE, round=2))


def told(porter, key=KEY, **other):
    """What a server says of the answer that left last."""
    number, hash_ = porter.head
    said = Confirmation("lyon", "7", 1, number, hash_, digest_of_reply(UPDATE), "2026-11-23")
    return countersign(key, replace(said, **other))


def test_the_servers_word_is_written_down(porter):
    """It names the answer that left, and is signed by whom the connection shows."""
    porter.server_key = KEY.public_key
    round_through(porter)
    porter.confirmed(told(porter))
    assert kinds(porter)[-1] == "in countersigned"


@pytest.mark.parametrize("other", [{"digest": "ab" * 32}, {"head": "ab" * 32}, {"run": "8"}])
def test_a_false_word_of_the_server_is_written_down_as_refused(porter, other):
    """The work goes on; whoever reads the record sees it."""
    porter.server_key = KEY.public_key
    round_through(porter)
    porter.confirmed(told(porter, **other))
    assert kinds(porter)[-1] == "in refused"
    assert porter.chain.last.about["what"] == "confirmation"


def test_a_word_that_anyone_could_have_said_is_refused(porter):
    """If the connection showed no certificate, no confirmation is accepted."""
    round_through(porter)
    porter.confirmed(told(porter))
    assert kinds(porter)[-1] == "in refused"


# ------------------------------------------------------------------------- by hand

MANUAL = Policy(approval="manual")


@pytest.fixture
def by_hand(porter, monkeypatch):
    """A porter who looks for decisions all the time."""
    monkeypatch.setattr(approval, "LOOK_S", 0.01)
    porter.policy = MANUAL
    return porter


def decided(porter, decide):
    """What becomes of an update on which a person decides as soon as it waits."""
    out = []

    def go():
        try:
            out.append(round_through(porter))
        except (EgressRefused, Interrupted) as error:
            out.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    while thread.is_alive() and not (waiting := approval.waiting_in(porter.pending)):
        thread.join(0.01)
    decide(waiting[0].name)
    thread.join(20)
    return out[0]


def test_an_update_that_a_person_approved_leaves(by_hand):
    """Held, approved by someone, and out."""
    seen = decided(by_hand, lambda name: approval.approve(by_hand.pending, name, by="roux"))
    assert seen.labelled == 8
    assert kinds(by_hand) == ["in train", "here held", "here approved", "out update"]
    assert by_hand.chain.receipts[-2].about == {"by": "roux"}


def test_an_update_that_a_person_refused_stays(by_hand):
    """No receipt says that it left."""
    seen = decided(by_hand, lambda name: approval.refuse(by_hand.pending, name))
    assert isinstance(seen, EgressRefused)
    assert kinds(by_hand)[-2:] == ["here held", "here refused"]


def test_an_approval_that_comes_after_the_end_lets_nothing_leave(by_hand):
    """What the policy forbids by then stays."""

    def late(name):
        by_hand.chain.append("end", "in", run="7")
        approval.approve(by_hand.pending, name)

    assert "over" in str(decided(by_hand, late))


def test_scores_do_not_wait(by_hand):
    """They are counts and sums."""
    assert round_through(by_hand, EvaluateTask(1, 3, Plan(), SENT), SCORES) == SCORES


def test_the_page_says_it_in_words_and_numbers(by_hand):
    """How much, how far, of how many images, beside what is allowed."""
    pages = []

    def read(name):
        pages.append((by_hand.pending / f"{name}.html").read_text())
        approval.refuse(by_hand.pending, name)

    decided(by_hand, read)
    for words in ("1 tensors, 16 bytes", "norm 1 (allowed 10000)", "8 labelled", "round 1 of 3"):
        assert words in pages[0]
