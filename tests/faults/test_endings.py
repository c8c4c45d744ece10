"""Every run ends in bounded time as done, failed or paused, and says why."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.stage import change

SERVER = str(Path(sys.executable).with_name("knowmine-server"))


@pytest.fixture
def two(stage):
    """Lyon and oslo, two rounds."""
    return stage("lyon", "oslo")


def test_a_site_fifty_times_slower_is_left_out(two):
    """The round goes on when it has its quorum and the others' time is over ten times."""
    deadlines = {"at_least_s": 1.0, "others_factor": 1.0}
    change(two.folder / "server.yaml", {"deadlines": deadlines})
    server = two.serve()
    lyon, oslo = two.join("lyon", "--work", "100"), two.join("oslo", "--work", "0.1")
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["oslo"]] * 2
    assert "no answer within" in two.summary()["per_round"][0]["refused"]["lyon"]
    assert lyon.runs


def test_a_site_that_never_answers(two):
    """Stopped in its tracks, it is silent, and the rounds go on without it."""
    change(
        two.folder / "server.yaml",
        {"deadlines": {"at_least_s": 1.0, "others_factor": 1.0}, "attendance": {"gather_s": 1.0}},
    )
    server = two.serve()
    lyon, oslo = two.join("lyon", "--work", "1"), two.join("oslo")
    two.worked("lyon", "train 1")
    lyon.signal(signal.SIGSTOP)
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["oslo"]] * 2


def test_a_quorum_that_is_never_met(two):
    """After its attempts the run fails with 3, and says who was left out and why."""
    change(two.folder / "server.yaml", {"run": {"quorum": 1.0}, "attendance": {"attempts": 3}})
    server = two.serve()
    two.join("lyon", "--fault", "nan")
    two.join("oslo")
    assert server.ended() == 3
    summary = two.summary()
    assert (summary["status"], summary["rounds"]) == ("failed", 0)
    assert "round 1 got 1 of 2 updates, needs 2 (lyon: " in summary["reason"]
    assert (two.diary("oslo").count("train 1"), len(two.logged("again", 2))) == (1, 2)


def test_nobody_comes(two):
    """The run pauses with 3 after its patience, and goes on when started again."""
    change(two.folder / "server.yaml", {"attendance": {"patience_s": 1.0, "gather_s": 0.5}})
    assert two.serve().ended() == 3
    paused = two.summary()
    change(two.folder / "server.yaml", {"attendance": {"patience_s": 60.0, "gather_s": 30.0}})
    programs = [two.serve(), two.join("lyon"), two.join("oslo")]
    assert [program.ended() for program in programs] == [0, 0, 0]
    assert (paused["status"], two.summary()["status"]) == ("paused", "done")
    assert "0 sites are here, 1 are needed" in paused["reason"]


def test_sigterm_of_the_server(two):
    """130, paused; the sites wait, and the same round goes on without working twice."""
    server = two.serve()
    sites = [two.join("lyon", "--work", "1"), two.join("oslo", "--work", "1")]
    two.worked("lyon", "train 1")
    two.worked("oslo", "train 1")
    server.signal(signal.SIGTERM)
    code, status = server.ended(), two.summary()["status"]
    server = two.serve()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert (code, status, two.result()) == (130, "paused", [2.0])
    assert two.diary("lyon").count("train 1") == 1


def test_sigterm_of_a_site_that_has_time_to_finish(two):
    """It sends what it works on, says goodbye and leaves."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = two.join("lyon", "--work", "1")
    two.worked("lyon", "train 1")
    lyon.signal(signal.SIGTERM)
    lyon.ended()
    lyon = two.join("lyon")
    assert [program.ended() for program in (server, lyon, oslo)] == [0, 0, 0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2
    assert (two.diary("lyon").count("train 1"), lyon.lines[-1]) == (1, "the run is over")


def test_sigterm_of_a_site_that_has_none(two):
    """It abandons the task by its deadline, and the server learns that a person stopped it."""
    change(two.home("lyon") / "client.yaml", {"stop_s": 0.5})
    deadlines = {"at_least_s": 1.0, "others_factor": 1.0}
    change(two.folder / "server.yaml", {"run": {"rounds": 1}, "deadlines": deadlines})
    server, oslo = two.serve(), two.join("oslo", "--work", "1")
    lyon = two.join("lyon", "--work", "600")
    two.worked("lyon", "train 1")
    lyon.signal(signal.SIGTERM)
    assert lyon.ended() == 130
    assert [server.ended(), oslo.ended()] == [0, 0]
    refused = two.summary()["per_round"][0]["refused"]["lyon"]
    assert refused == "the site was stopped by a person"


def test_sigterm_of_a_site_whose_server_is_gone(two):
    """An answer that cannot be sent does not keep it."""
    change(two.home("lyon") / "client.yaml", {"stop_s": 0.5})
    server, lyon = two.serve(), two.join("lyon", "--work", "1")
    two.join("oslo")
    two.worked("lyon", "train 1")
    server.kill()
    two.told("lyon", "unsent")
    lyon.signal(signal.SIGTERM)
    lyon.ended()
    assert two.told("lyon", "dropped")[0]["reason"] == "stopped before it was sent"


def test_status_while_a_run_is_on(two):
    """Who is here, what they are about, what went wrong, when certificates end."""
    server = two.serve()
    two.join("lyon", "--work", "600")
    two.join("oslo", "--fault", "nan")
    two.logged("refused", site="oslo")
    said = {}

    def told():
        command = [SERVER, "status", str(two.folder / "server.yaml"), "--format", "json"]
        program = two.program(command)
        assert program.ended() == 0, program.text
        said.update(json.loads(program.text))
        return said["sites"]["lyon"]["task"] == "train"

    while not told():
        pass
    lyon, oslo = said["sites"]["lyon"], said["sites"]["oslo"]
    assert (said["status"], said["round"], said["rounds"]) == ("running", 1, 2)
    assert (lyon["connected"], oslo["connected"]) == (True, True)
    assert lyon["certificate_expires"] and lyon["since"] and lyon["version"]
    assert server.runs
