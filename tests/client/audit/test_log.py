"""The audit log: no change to it goes unnoticed, and no crash breaks it."""

import json
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.client.audit import log
from knowmine.client.audit.log import Chain
from knowmine.client.audit.retention import Records
from knowmine.shared.errors import CannotWrite, Refused, UsageError
from knowmine.shared.trust.countersign import Confirmation, Head, countersign
from knowmine.shared.trust.keys import audit_line, make_audit_key

KEY, OTHER, SERVER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
PUBLIC = [audit_line(KEY)]


def written(path, updates=4, key=KEY, run="7", records=None):
    """A log of some rounds; each round is a task and an update of 100 bytes."""
    with Chain.open(path, key, site="lyon", records=records) as chain:
        for n in range(1, updates + 1):
            chain.append("train", "in", run=run, round=n, digest="aa", bytes=100)
            chain.append("update", "out", run=run, round=n, digest=f"{n:02x}", bytes=100)
        return chain.head


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit" / "receipts.jsonl"


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def verdict_after(path, change, **more):
    """What verify says of a log whose lines were changed."""
    written(path)
    path.write_bytes(b"".join(change(lines_of(path))))
    return Chain.verify(path, PUBLIC, **more)


# ------------------------------------------------------------------------- a whole record


def test_a_record_verifies_by_its_file_and_the_public_key(path):
    """One line that opens it and two a round."""
    head = written(path)
    verdict = Chain.verify(path, PUBLIC, published=[Head(0, head)])
    assert (verdict.ok, verdict.first, verdict.last, verdict.head) == (True, 1, 9, head)


def test_the_chain_can_be_checked_by_sha256sum(path):
    """`previous` is the hash of the line before, without its newline."""
    written(path)
    second, third = lines_of(path)[1:3]
    seen = subprocess.run(
        ["sha256sum"], input=second.rstrip(b"\n"), capture_output=True, check=True
    ).stdout.split()[0]
    assert seen.decode() == json.loads(third)["previous"]


def test_a_record_goes_on_where_it_was(path):
    """A second process adds to the first one's."""
    written(path, 2)
    written(path, 2, run="8")
    assert Chain.verify(path, PUBLIC).last == 9


def test_an_earlier_published_head_is_in_the_record(path):
    """Each round's checkpoint stays valid."""
    first = written(path, 1)
    written(path, 3)
    assert Chain.verify(path, PUBLIC, published=[Head(0, first)]).ok


def test_what_left_is_known_from_the_receipts(path):
    """Budgets need no state of their own."""
    written(path, 3)
    with Chain.open(path, KEY) as chain:
        chain.append("update", "out", run="7", round=3, digest="03", bytes=100, about={"again": 1})
        chain.append("end", "in", run="7")
        past = chain.past
    assert (past.rounds, past.bytes, past.ended) == (3, 400, frozenset({"7"}))
    assert past.answered["7", "update", 2] == "02"


def test_a_record_has_one_writer(path):
    """Two would break the chain."""
    with Chain.open(path, KEY), pytest.raises(UsageError, match="another process"):
        Chain.open(path, KEY)


def test_only_its_owner_reads_a_record(path):
    """Other users of the machine see no digests and counts."""
    written(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


# ------------------------------------------------------------------------- what was changed


def test_an_edited_receipt_is_found(path):
    """The first wrong line is named with the reason."""
    verdict = verdict_after(path, lambda ls: [*ls[:4], ls[4].replace(b'"bytes":100', b'"bytes":1'), *ls[5:]])  # fmt: skip
    assert (verdict.ok, verdict.line, verdict.file) == (False, 5, "receipts.jsonl")
    assert "signature" in verdict.why


def test_a_dropped_receipt_is_found(path):
    """The next one's number shows it."""
    verdict = verdict_after(path, lambda ls: [*ls[:3], *ls[4:]])
    assert (verdict.line, "receipt 5; expected 4" in verdict.why) == (4, True)


def test_reordered_receipts_are_found(path):
    """Two that changed places."""
    verdict = verdict_after(path, lambda ls: [*ls[:3], ls[4], ls[3], *ls[5:]])
    assert (verdict.ok, verdict.line) == (False, 4)


def test_a_missing_start_is_found(path):
    """Without a receipt of retirement nothing may be missing there."""
    verdict = verdict_after(path, lambda ls: ls[2:])
    assert "1 to 2 are missing" in verdict.why


def test_a_cut_end_is_found_by_the_published_head(path):
    """Without the checkpoint it looks like an earlier log, which it was."""
    head = written(path)
    path.write_bytes(b"".join(lines_of(path)[:-1]))
    assert Chain.verify(path, PUBLIC).ok
    verdict = Chain.verify(path, PUBLIC, published=[Head(0, head)])
    assert (verdict.ok, "cut off" in verdict.why) == (False, True)


def test_an_inserted_receipt_is_found(path, tmp_path):
    """A line of one's own, well formed and signed by another key."""
    written(path)
    own = tmp_path / "own" / "receipts.jsonl"
    written(own, key=OTHER)
    path.write_bytes(b"".join([*lines_of(path), lines_of(own)[-1]]))
    assert not Chain.verify(path, PUBLIC).ok


def test_a_forged_continuation_is_found(path, tmp_path):
    """Right number, right previous, another key."""
    written(path)
    with Chain.open(path, KEY) as chain:
        chain._key = OTHER
        chain.append("end", "in", run="7")
    verdict = Chain.verify(path, PUBLIC)
    assert (verdict.line, "not the site's" in verdict.why) == (10, True)


def test_a_receipt_of_another_run_is_found(path, tmp_path):
    """Signed by the same key and of the same number, and still of another log."""
    written(path)
    other = tmp_path / "other" / "receipts.jsonl"
    written(other, run="8")
    mine, theirs = lines_of(path), lines_of(other)
    path.write_bytes(b"".join([*mine[:4], theirs[4], *mine[5:]]))
    verdict = Chain.verify(path, PUBLIC)
    assert (verdict.line, "another audit log" in verdict.why) == (5, True)


def test_a_whole_record_of_another_run_is_found_by_the_head(path, tmp_path):
    """In itself it is right."""
    head = written(path)
    other = tmp_path / "other" / "receipts.jsonl"
    written(other, run="8")
    assert not Chain.verify(other, PUBLIC, published=[Head(0, head)]).ok


def test_totals_that_do_not_add_up_are_found(path, monkeypatch):
    """Even where the site itself signed them."""
    written(path, 1)
    with Chain.open(path, KEY) as chain:
        monkeypatch.setattr(log, "totals_after", lambda *_: (1, 5))
        chain.append("scores", "out", run="7", round=1, bytes=8)
    assert "do not add up" in Chain.verify(path, PUBLIC).why


@settings(max_examples=150)
@given(st.data())
def test_any_changed_byte_is_found(data):
    """Whatever it is changed to, but for the end of the last line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit" / "receipts.jsonl"
        written(path, 2)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 2))
        old = content[place]
        content[place] = data.draw(st.integers(0, 255).filter(lambda new: new != old))
        path.write_bytes(content)
        assert not Chain.verify(path, PUBLIC).ok


@settings(max_examples=60)
@given(st.permutations(range(9)), st.integers(0, 9))
def test_any_other_order_or_choice_of_lines_is_found(order, count):
    """Only the beginning of a log is a log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit" / "receipts.jsonl"
        written(path)
        lines = lines_of(path)
        chosen = list(order[:count])
        path.write_bytes(b"".join(lines[i] for i in chosen))
        assert Chain.verify(path, PUBLIC).ok == (chosen == sorted(chosen) == list(range(count)))


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.sampled_from([b"{}", b"null", b"[1]", b'{"number":NaN}', b"9" * 5000]))  # fmt: skip
def test_no_line_that_is_no_receipt_passes(line):
    """Nor does one break the auditor's program."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "receipts.jsonl"
        path.write_bytes(line.replace(b"\n", b"") + b"\n")
        assert not Chain.verify(path, PUBLIC).ok


def test_nothing_is_added_to_a_wrong_record(path):
    """Then nothing leaves, until a person has looked."""
    verdict_after(path, lambda ls: [*ls[:3], *ls[4:]])
    with pytest.raises(UsageError, match="nothing may leave"):
        Chain.open(path, KEY)


def test_a_record_of_another_key_is_not_gone_on_with(path):
    """Keys that were swapped show at once."""
    written(path)
    with pytest.raises(UsageError, match="another key"):
        Chain.open(path, OTHER)


# ------------------------------------------------------------------------- crashes


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_a_record_cut_anywhere_verifies_up_to_there_and_goes_on(cut):
    """The torn end is named, removed and noted in a receipt."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit" / "receipts.jsonl"
        written(path, 2)
        content = path.read_bytes()[:cut]
        path.write_bytes(content)
        whole = content.count(b"\n")
        torn = len(content) - (content.rfind(b"\n") + 1)

        verdict = Chain.verify(path, PUBLIC)
        assert (verdict.ok, verdict.receipts, verdict.torn_bytes) == (True, whole, torn)
        with Chain.open(path, KEY) as chain:
            chain.append("end", "in", run="7")
            told = [r.about["bytes"] for r in chain.receipts if r.kind == "recovered"]
        assert told == ([torn] if torn else [])
        assert Chain.verify(path, PUBLIC).ok


APPEND = """
import resource, signal, sys
from pathlib import Path
from knowmine.client.audit.log import Chain
from knowmine.shared.trust.keys import load_audit_key

path, limit = Path(sys.argv[1]), int(sys.argv[2])
with Chain.open(path, load_audit_key(path.parent.parent / "audit.key")) as chain:
    if limit:
        # The kernel kills this process in the middle of the write that crosses the limit.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for n in range(1, 10**9):
        receipt = chain.append("update", "out", run="7", round=n, digest="ab" * 32, bytes=100)
        print(receipt.number, chain.head, flush=True)
"""


def appending(path, limit=0):
    return subprocess.Popen(
        [sys.executable, "-c", APPEND, str(path), str(limit)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("after", [1, 20, 50])
def test_a_killed_process_leaves_a_record_that_verifies(path, after):
    """Kill -9 while it appends: all that it was told is written is there."""
    key = make_audit_key(path.parent.parent / "audit.key")
    process = appending(path)
    assert process.stdout
    for _ in range(after):
        number, head = process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    assert process.wait() == -signal.SIGKILL
    if rest and len(rest[-1].split()) == 2 and len(rest[-1].split()[1]) == 64:
        number, head = rest[-1].split()

    verdict = Chain.verify(path, [key.public_key()], published=[Head(0, head)])
    assert verdict.ok and verdict.last >= int(number)
    with Chain.open(path, key):
        pass
    assert Chain.verify(path, [key.public_key()]).ok


def test_a_process_killed_in_the_middle_of_a_line_leaves_the_lines_before(path):
    """The kernel wrote a part of the line and then killed the writer."""
    key = make_audit_key(path.parent.parent / "audit.key")
    process = appending(path, limit=5_000)
    assert process.stdout
    told = process.stdout.read().splitlines()
    assert process.wait() == -signal.SIGXFSZ

    verdict = Chain.verify(path, [key.public_key()], published=[Head(0, told[-1].split()[1])])
    assert (verdict.ok, verdict.last) == (True, int(told[-1].split()[0]))
    assert verdict.torn_bytes > 0 and f"after receipt {verdict.last}" in str(verdict)


def test_a_full_disk_lets_nothing_leave_and_breaks_nothing(path):
    """The half line is taken back at once."""
    with Chain.open(path, KEY) as chain:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
        try:
            with pytest.raises(CannotWrite, match="so nothing leaves"):
                chain.append("update", "out", run="7", round=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        chain.append("update", "out", run="7", round=1)
    assert Chain.verify(path, PUBLIC).last == 2


# ------------------------------------------------------------------------- files that are closed

SMALL = Records(rotate_mb=0.002, keep_days=30)


def test_closed_files_continue_the_record(path):
    """Several files, one chain."""
    head = written(path, 10, records=SMALL)
    assert len(list(path.parent.glob("receipts*.jsonl"))) > 3
    verdict = Chain.verify(path, PUBLIC, published=[Head(0, head)])
    assert (verdict.ok, verdict.last) == (True, 21)


def test_a_missing_closed_file_is_found(path):
    """A file from the middle, or the newest but one."""
    written(path, 10, records=SMALL)
    sorted(path.parent.glob("receipts.0*.jsonl"))[1].unlink()
    assert "expected" in Chain.verify(path, PUBLIC).why


def test_a_crash_between_two_files_loses_nothing(path):
    """The old file has its new name, and the new one is not there yet."""
    written(path, 2)
    path.rename(path.with_name("receipts.00000001.jsonl"))
    written(path, 1, run="8")
    assert Chain.verify(path, PUBLIC).last == 7


class Later(datetime):
    """A clock that is forty days ahead."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=40)


def test_old_files_are_retired_and_a_receipt_says_so(path, monkeypatch):
    """What went is told, so that its absence is no fault; totals go on."""
    written(path, 10, run="old", records=SMALL)
    monkeypatch.setattr(log, "datetime", Later)
    written(path, 5, run="new", records=SMALL)

    verdict = Chain.verify(path, PUBLIC)
    assert verdict.ok and verdict.first == verdict.retired + 1 > 10
    with Chain.open(path, KEY) as chain:
        assert (chain.past.rounds, chain.past.bytes) == (15, 1500)


def test_files_of_the_run_under_way_are_never_retired(path, monkeypatch):
    """The egress checks need to know which tasks were answered."""
    written(path, 10, run="7", records=SMALL)
    monkeypatch.setattr(log, "datetime", Later)
    written(path, 5, run="7", records=SMALL)
    assert Chain.verify(path, PUBLIC).retired == 0


# ------------------------------------------------------------------------- the server's confirmation


def confirmation(at, *, by=SERVER, **other):
    """What a server says of receipt 2, whose answer has digest 01."""
    said = Confirmation("lyon", "7", 1, 2, at, "01", "2026-11-23T04:00:00+00:00")
    return countersign(by, replace(said, **other))


def confirmed(path, times=1):
    """A log whose second receipt is confirmed, as the site would write it."""
    written(path, 0)
    with Chain.open(path, KEY) as chain:
        chain.append("update", "out", run="7", round=1, digest="01", bytes=100)
        said = confirmation(chain.head)
        for _ in range(times):
            chain.countersigned(said, SERVER.public_key())
        return [receipt.kind for receipt in chain.receipts]


def forged(path, **other):
    """A log into which the site wrote what no server signed."""
    written(path, 0)
    with Chain.open(path, KEY) as chain:
        chain.append("update", "out", run="7", round=1, digest="01", bytes=100)
        chain.append("countersigned", "in", about=vars(confirmation(chain.head, **other)))
    return Chain.verify(path, PUBLIC, server_keys=[SERVER.public_key()])


def test_the_servers_confirmation_is_kept_and_checked(path):
    """By the server's public key."""
    confirmed(path)
    verdict = Chain.verify(path, PUBLIC, server_keys=[SERVER.public_key()])
    assert (verdict.ok, verdict.confirmed) == (True, 1)


def test_a_confirmation_that_comes_twice_is_kept_once(path):
    """A task is sent again when the connection breaks, with the same confirmation."""
    assert confirmed(path, times=2) == ["opened", "update", "countersigned"]


def test_a_strangers_confirmation_is_found(path):
    """Signed by someone who is not the server."""
    assert "not signed by the server" in forged(path, by=OTHER).why


def test_a_confirmation_whose_time_was_changed_is_found(path):
    """All of it is signed."""
    written(path, 0)
    with Chain.open(path, KEY) as chain:
        chain.append("update", "out", run="7", round=1, digest="01", bytes=100)
        about = {**vars(confirmation(chain.head)), "time": "2025-01-01T00:00:00+00:00"}
        chain.append("countersigned", "in", about=about)
    verdict = Chain.verify(path, PUBLIC, server_keys=[SERVER.public_key()])
    assert "not signed by the server" in verdict.why


@pytest.mark.parametrize("other", [{"head": "ab" * 32}, {"digest": "02"}])
def test_a_confirmation_of_another_answer_is_found(path, other):
    """The server confirmed a receipt that is not there."""
    assert "another receipt 2" in forged(path, **other).why


def test_a_confirmation_of_a_receipt_that_is_not_there_is_found(path):
    """A receipt that is still to come cannot be confirmed."""
    assert "is not before it" in forged(path, receipts=9).why


@pytest.mark.parametrize("number", ["", "two", "2" * 5000])
def test_a_confirmation_that_is_none_is_found(path, number):
    """A site that writes junk into its own log does not stop its auditor."""
    assert "does not hold a confirmation" in forged(path, receipts=number).why


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"signature": "00" * 64}, "not signed by the server"),
        ({"head": "ab" * 32}, "that is not in this audit log"),
        ({"receipts": 9}, "that is not in this audit log"),
        ({"digest": "02"}, "what arrived there is not what left"),
        ({"run": "8"}, "what arrived there is not what left"),
    ],
)
def test_a_false_confirmation_is_not_kept(path, other, words):
    """It is refused when it comes."""
    written(path, 0)
    with Chain.open(path, KEY) as chain:
        chain.append("update", "out", run="7", round=1, digest="01")
        false = replace(confirmation(chain.head, **other), **other)
        with pytest.raises(Refused, match=words):
            chain.countersigned(false, SERVER.public_key())


def test_a_confirmation_survives_the_retirement_of_its_receipt(path):
    """What it confirms is gone; its signature still holds."""
    confirmed(path)
    with Chain.open(path, KEY) as chain:
        chain.append("end", "in", run="7")
    told = {"upto": 2, "head": json.loads(lines_of(path)[2])["previous"]}
    with Chain.open(path, KEY) as chain:
        chain.append("retired", "here", about=told)
    path.write_bytes(b"".join(lines_of(path)[2:]))
    verdict = Chain.verify(path, PUBLIC, server_keys=[SERVER.public_key()])
    assert (verdict.ok, verdict.retired, verdict.confirmed) == (True, 2, 1)


def test_times_are_utc(path):
    """An auditor in another country reads the same."""
    written(path, 1)
    time = json.loads(lines_of(path)[0])["time"]
    assert datetime.fromisoformat(time).tzinfo == UTC
