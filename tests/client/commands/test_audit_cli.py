"""`knowmine-client audit` and `approve`, as a person and an auditor use them."""

import json
import subprocess
import sys
import zipfile

import pytest
import yaml

from knowmine.client.audit.log import Chain
from knowmine.client.cli import main
from knowmine.client.paths import audit_log_of
from knowmine.shared.trust.keys import audit_line, make_audit_key


@pytest.fixture
def home(tmp_path):
    """A site whose record tells of one run of two rounds."""
    (tmp_path / "keys").mkdir(mode=0o700)
    key = make_audit_key(tmp_path / "keys" / "audit.key")
    (tmp_path / "audit.pub").write_text(audit_line(key) + "\n")
    values = {
        "federation": "chest",
        "site": "lyon",
        "network": {"server": "localhost:1"},
        "data": "data",
    }
    (tmp_path / "client.yaml").write_text(yaml.safe_dump(values))
    with Chain.open(audit_log_of(tmp_path / "state"), key, site="lyon") as chain:
        for n in (1, 2):
            chain.append("update", "out", run="77", round=n, digest=f"{n:02x}", bytes=20_000_000)
            chain.append("scores", "out", run="77", round=n, bytes=40)
        chain.append("refused", "here", run="77", round=3, about={"what": "update"})
        chain.append("end", "in", run="77")
    return tmp_path


@pytest.fixture
def client(home, monkeypatch, capsys):
    """Gives what the command says, called from the site's folder or another."""

    def call(*words, code=0, at=None):
        monkeypatch.chdir(at or home)
        monkeypatch.setattr(sys, "argv", ["knowmine-client", *words])
        try:
            main()
            ended: str | int | None = 0
        except SystemExit as left:
            ended = left.code
        said = capsys.readouterr()
        assert ended == code, said.err
        return said.out

    return call


def test_show_says_on_one_screen_what_left(home, client):
    """Runs, sums, refusals and the verdict, in 24 lines of 100."""
    said = client("audit", "show", "client.yaml")
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 100
    for words in ("2 updates of 10000", "40.00 MB", "1 update", "Right: receipts 1 to 7"):
        assert words in said


def test_show_for_scripts(home, client):
    """The same numbers."""
    said = json.loads(client("audit", "show", "client.yaml", "--format", "json"))
    assert (said["left"]["updates"], said["runs"][0]["ended"]) == (2, True)


def test_verify_needs_the_file_and_the_public_key(home, client):
    """Exit code 0, and the head."""
    record = str(audit_log_of(home / "state"))
    said = client("audit", "verify", record, "--key", "audit.pub")
    assert said.startswith("Right: receipts 1 to 7") and "Checkpoint: " in said


def test_verify_names_the_first_wrong_line(home, client):
    """Exit code 4."""
    record = audit_log_of(home / "state")
    record.write_bytes(record.read_bytes().replace(b"20000000", b"10000000", 1))
    said = client("audit", "verify", str(record), "--key", "audit.pub", code=4)
    assert said.startswith("WRONG. receipts.jsonl, line 2:")


def test_an_export_is_checked_elsewhere(home, client):
    """The parcel holds all that verify needs, and no secret."""
    client("audit", "export", "client.yaml", "out.zip")
    with zipfile.ZipFile(home / "out.zip") as parcel:
        parcel.extractall(home / "elsewhere")
        assert not any(b"PRIVATE" in parcel.read(name) for name in parcel.namelist())
    said = client("audit", "verify", "receipts.jsonl", "--key", "audit.pub", at=home / "elsewhere")
    assert said.startswith("Right")


def test_an_export_overwrites_nothing(home, client):
    """It names the file."""
    (home / "out.zip").write_text("mine")
    client("audit", "export", "client.yaml", "out.zip", code=2)
    assert (home / "out.zip").read_text() == "mine"


def test_approve_without_a_name_lists_what_waits(home, client):
    """Nothing, here."""
    assert "Nothing waits" in client("approve", "client.yaml")
    client("approve", "client.yaml", "0001-abc", code=2)


def test_forget_wants_one_of_two(home, client):
    """And says which."""
    client("forget", "client.yaml", code=2)


def test_a_record_is_checked_without_torch(home):
    """An auditor's machine needs none of what trains."""
    code = "import sys, knowmine.client.audit.report; print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert seen.stdout.strip() == b"False"
