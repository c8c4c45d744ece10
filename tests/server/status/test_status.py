"""What a coordinator reads of a run."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from knowmine.server.network.presence import Presence
from knowmine.server.status.status import StatusBoard, read_status
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.certificates import load_certificate
from tests.provisioned import Federation


@pytest.fixture
def board(tmp_path):
    """Of a run with lyon admitted and here, and oslo revoked."""
    federation = Federation(tmp_path)
    federation.provision()
    federation.admit("lyon")
    federation.admit("oslo")
    federation.sites.revoke("oslo")
    presence = Presence(60)
    presence.arrive("lyon", "one", "0.1")
    own = load_certificate(federation.folder / "keys" / "server.crt")
    made = StatusBoard(tmp_path / "status.json", "chest", presence, federation.sites, lambda: own)
    yield made
    made.end("done", "")


def test_it_says_who_is_here(board):
    """With version, and when the certificate ends."""
    sites = board.now()["sites"]
    lyon = sites["lyon"]
    assert (lyon["connected"], lyon["version"], lyon["certificate_warning"]) == (True, "0.1", None)
    assert datetime.fromisoformat(lyon["certificate_expires"]) > datetime.now(UTC)
    assert (sites["oslo"]["connected"], sites["oslo"]["revoked"]) == (False, True)


def test_it_says_when_the_servers_own_certificate_ends(board):
    """With no warning long before."""
    now = board.now()
    assert datetime.fromisoformat(now["server_certificate_expires"]) > datetime.now(UTC)
    assert now["server_certificate_warning"] is None


def test_it_says_what_a_site_does(board):
    """From its task to its answer."""
    board.round_started(3, 9)
    board.asked("lyon", "train", 20.0)
    asked = board.now()["sites"]["lyon"]
    board.answered("lyon", "train", 18.5, "")
    answered = board.now()["sites"]["lyon"]
    assert (asked["task"], asked["task_expected_seconds"]) == ("train", 20.0)
    assert (answered["task"], answered["last_round"]) == ("", 3)
    assert answered["last_seconds"] == {"train": 18.5}


def test_it_keeps_the_reason_of_a_failure(board):
    """Until the site answers well."""
    board.answered("lyon", "train", 1.0, "the disk is full")
    failed = board.now()["sites"]["lyon"]["error"]
    board.answered("lyon", "train", 1.0, "")
    assert (failed, board.now()["sites"]["lyon"]["error"]) == ("the disk is full", "")


def test_the_end_is_written(board, tmp_path):
    """As the last thing."""
    board.end("failed", "no quorum")
    status = read_status(tmp_path)
    assert (status["status"], status["reason"]) == ("failed", "no quorum")


def test_an_old_status_means_that_the_server_is_gone(tmp_path):
    """It was killed."""
    old = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "updated_at": old}))
    status = read_status(tmp_path)
    assert status["status"] == "gone" and "start it again" in status["reason"]


def test_no_status(tmp_path):
    """There was no run."""
    with pytest.raises(UsageError, match=r"no run in .*knowmine-server run"):
        read_status(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"updated_at": 3}'])
def test_a_status_that_cannot_be_read(tmp_path, text):
    """The file is named."""
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UsageError, match=r"status\.json cannot be read"):
        read_status(tmp_path)
