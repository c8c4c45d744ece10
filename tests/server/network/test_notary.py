"""The server confirms what arrived, and publishes where each site's record stood."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.client.audit.log import Chain
from knowmine.client.commands.audit_cli import audit
from knowmine.client.egress.porter import Porter
from knowmine.client.federation.app import client_app
from knowmine.deploy.simulation.grid import RUN_ID, LocalGrid
from knowmine.server.journal.journal import Journal
from knowmine.server.network.notary import Notary
from knowmine.server.rounds.app import GridSites
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.settings import RunSettings
from knowmine.shared.log import silent
from knowmine.shared.protocol import PROTOCOL, Calibration, Hello, Scores, Update
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Head, digest_of_reply, is_countersigned
from knowmine.shared.trust.keys import audit_line, make_audit_key, node_line
from knowmine.shared.weights import digest_of_manifest, manifest_of

from typer.testing import CliRunner  # isort: skip

KEY = ec.derive_private_key(7, ec.SECP384R1())
SENT = {"a.weight": np.ones(4, np.float32)}
SCORES = Scores(1, 4, 3.0, 2.0, 9.0, Calibration(3, (1.5,) * 5, (0.1,) * 36, (0.2,) * 30, 1))


class Site:
    """Moves each weight by a tenth."""

    manifest = manifest_of(SENT)

    def hello(self):
        return Hello("lyon", PROTOCOL, digest_of_manifest(self.manifest), 8, 0, 3, 4)

    def improve(self, task):
        moved = {name: array + np.float32(0.1) for name, array in task.weights.items()}
        return Update(task.round, moved, 8, 0, 0.5, 2.0)

    def evaluate(self, task):
        return replace(SCORES, round=task.round)


class Quiet:
    """A `Watch` that says nothing."""

    def round_started(self, round_, rounds):
        pass

    def round_done(self, record):
        pass


@pytest.fixture
def ran(tmp_path):
    """Runs two rounds with one site; gives the site's record and the server's run folder."""

    def run(*, notary=True, chain=True, form="none"):
        record, out = tmp_path / "audit" / "receipts.jsonl", tmp_path / "run"
        key = make_audit_key(tmp_path / "audit.key")
        (tmp_path / "audit.pub").write_text(audit_line(key) + "\n")
        kept = Chain.open(record, key, site="lyon") if chain else None
        porter = Porter(chain=kept, server_key=KEY.public_key)
        app = client_app(lambda _: Site(), porter_of=lambda _: porter)
        grid = LocalGrid({1: app}, lambda _: None)
        signs = Notary(KEY, str(RUN_ID)) if notary else None
        sites = GridSites(grid, notary=signs)
        plan = Plan.model_validate({"transport": {"update": form}})
        with Journal.create(out, {}) as journal:
            run_rounds(
                sites,
                journal,
                plan,
                RunSettings(rounds=2),
                lambda: SENT,
                log=silent(),
                watch=Quiet(),
            )
            sites.dismiss()
        porter.close()
        return record, out, kept

    return run


def published(out):
    """What the server wrote of the site's record, round by round."""
    rounds = sorted((out / "rounds").glob("*.json"))
    return [json.loads(file.read_text())["heads"] for file in rounds]


def verified(record, *words, rounds=None):
    """Exit code and words of `audit verify`."""
    given = ["verify", str(record), "--key", str(record.parents[1] / "audit.pub"), *words]
    given += ["--rounds", str(rounds)] if rounds else []
    seen = CliRunner().invoke(audit, given)
    code = getattr(seen.exception, "exit_code", seen.exit_code)
    return code, f"{seen.output}{seen.exception or ''}"


def cut(record, lines):
    """Take lines off the record's end."""
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:-lines]))


@pytest.mark.parametrize("form", ["none", "bf16", "int8"])
def test_each_answer_is_confirmed_as_it_left(ran, form):
    """Both ends find the same digest, in whatever form the update travels."""
    _, _, kept = ran(form=form)
    said = [receipt for receipt in kept.receipts if receipt.kind == "countersigned"]
    left = [
        receipt
        for receipt in kept.receipts
        if receipt.kind in ("update", "scores") and receipt.left
    ]
    assert [c.about["digest"] for c in said] == [r.digest for r in left] and len(said) == 4


def test_the_heads_of_each_round_are_published(ran):
    """The head after the scores, whose receipt holds all before it."""
    _, out, kept = ran()
    scores = [kept.head_of(r) for r in kept.receipts if r.kind == "scores" and r.left]
    assert [Head(**heads["lyon"]) for heads in published(out)] == scores


def test_a_whole_record_holds_what_was_published(ran):
    """The auditor has the site's file and the server's folder."""
    record, out, _ = ran()
    code, said = verified(record, rounds=out / "rounds")
    assert code == 0 and "confirmed it 4 times" in said and "the 2 checkpoints" in said


@pytest.mark.parametrize("lines", [6, 9])
def test_a_cut_end_shows(ran, lines):
    """A site that would rather not have sent its last update."""
    record, out, _ = ran()
    cut(record, lines)
    assert verified(record)[0] == 0
    code, said = verified(record, rounds=out / "rounds")
    assert code == 4 and "cut off" in said


def test_a_history_written_anew_shows(ran, tmp_path):
    """The site has its key, and nobody else's heads."""
    record, out, _ = ran()
    key = make_audit_key(tmp_path / "other.key")
    (tmp_path / "audit.pub").write_text(audit_line(key) + "\n")
    record.unlink()
    with Chain.open(record, key, site="lyon") as chain:
        chain.append("update", "out", run="1", round=1)
    assert verified(record)[0] == 0
    assert verified(record, rounds=out / "rounds")[0] == 4


def test_confirmations_are_checked_by_the_servers_certificate_or_key(ran, tmp_path):
    """Another server's key did not sign them."""
    record, _, _ = ran()
    codes = []
    for number in (7, 8):
        public = tmp_path / f"{number}.pub"
        public.write_text(node_line(ec.derive_private_key(number, ec.SECP384R1())))
        codes.append(verified(record, "--server-key", str(public))[0])
    assert codes == [0, 4]


def test_rounds_of_a_run_without_the_site_prove_nothing(ran, tmp_path):
    """It is said, rather than passed."""
    record, _, _ = ran()
    (tmp_path / "none").mkdir()
    code, said = verified(record, rounds=tmp_path / "none")
    assert code != 0 and "holds no checkpoint of site 'lyon'" in said


def test_a_server_without_a_key_confirms_nothing_and_publishes(ran):
    """A stock Flower server: heads still stand in its rounds."""
    record, out, kept = ran(notary=False)
    assert "countersigned" not in [receipt.kind for receipt in kept.receipts]
    assert verified(record, rounds=out / "rounds")[0] == 0


def test_a_site_without_a_record_says_nothing_of_one(ran):
    """A simulation."""
    _, out, _ = ran(chain=False)
    assert published(out) == [{}, {}]


def test_a_confirmation_is_signed_over_all_of_it():
    """No field can be changed."""
    said = Notary(KEY, "7").confirm("lyon", SCORES, Head(3, "ab" * 32))
    assert is_countersigned(KEY.public_key(), said) and said.digest == digest_of_reply(SCORES)
    other: dict[str, Any] = dict.fromkeys(("site", "run", "head", "digest", "time"), "x")
    for name, value in (other | {"receipts": 4, "round": 2}).items():
        assert not is_countersigned(KEY.public_key(), replace(said, **{name: value}))


def test_the_newest_confirmation_stands_for_all_before_it():
    """One a site."""
    notary = Notary(KEY, "7")
    assert notary.newest("lyon") is None
    notary.confirm("lyon", SCORES, Head(3, "ab" * 32))
    newer = notary.confirm("lyon", SCORES, Head(6, "cd" * 32))
    assert (notary.newest("lyon"), notary.newest("oslo")) == (newer, None)
