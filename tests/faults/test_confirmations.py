"""What an auditor finds after a run of real processes: the site's file, the server's folder."""

import json

import pytest

from knowmine.client.audit.heads import heads_in
from knowmine.client.audit.report import read_public
from knowmine.client.audit.verify import verify
from knowmine.client.paths import audit_log_of
from knowmine.shared.trust.keys import audit_line, load_audit_key


@pytest.fixture
def audited(stage):
    """Two rounds of lyon and oslo, and lyon's record with what its auditor has beside it."""
    stage = stage("lyon", "oslo")
    server = stage.serve()
    sites = [stage.join(name) for name in ("lyon", "oslo")]
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    record = audit_log_of(stage.home("lyon") / "state")
    public = audit_line(load_audit_key(stage.home("lyon") / "keys" / "audit.key"))
    servers = [read_public(stage.folder / "keys" / "server.crt")]

    def judge():
        published = heads_in(stage.run / "rounds", record)
        return verify(record, [public], server_keys=servers, published=published)

    return record, judge


def test_every_answer_is_confirmed_and_a_cut_end_shows(audited):
    """By the key of the server's certificate, which TLS showed the site."""
    record, judge = audited
    verdict = judge()
    assert (verdict.ok, verdict.confirmed, verdict.published) == (True, 4, 2)

    lines = record.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in lines]
    assert "refused" not in kinds
    last = len(kinds) - 1 - kinds[::-1].index("scores")
    record.write_bytes(b"".join(lines[:last]))
    assert "cut off" in judge().why
