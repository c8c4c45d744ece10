"""The network breaks, stalls and comes back; the run goes on and nothing is worked twice."""

import pytest

from tests.faults.stage import change, until
from tests.faults.wires import ConnectProxy, Forwarder, silence

BIG = 26_000_000
"""Numbers of a model of 104 MB."""


@pytest.fixture
def two(stage):
    """Lyon behind a forwarder, and oslo; two rounds."""
    return stage("lyon", "oslo")


def behind(stage, site):
    """A network of its own for one site."""
    wire = Forwarder(stage.port)
    stage.through(site, wire.port)
    return wire


def test_a_cut_shorter_than_the_silence_that_counts(two):
    """The site is still here for the server, and its update is in the round."""
    wire = behind(two, "lyon")
    server, sites = two.serve(), [two.join("lyon", "--work", "2"), two.join("oslo")]
    two.worked("lyon", "train 1")
    wire.cut()
    silence(1)
    wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2


def test_a_cut_longer_than_the_silence_that_counts(two):
    """It counts as gone, comes back with the work done meanwhile, and is in the round."""
    change(two.folder / "server.yaml", {"listen": {"silent_s": 1.5}})
    wire = behind(two, "lyon")
    server, sites = two.serve(), [two.join("lyon", "--work", "1"), two.join("oslo")]
    two.worked("lyon", "train 1")
    wire.cut()
    silence(5)
    wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert two.diary("lyon").count("train 1") == 1
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2


def test_a_cut_longer_than_the_deadline(two):
    """The round goes on without the site; it is in the next one after it is back."""
    deadlines = {"first_s": 3.0, "factor": 1.0, "others_factor": 1.0, "at_least_s": 3.0}
    change(two.folder / "server.yaml", {"deadlines": deadlines, "run": {"rounds": 4}})
    change(two.folder / "server.yaml", {"listen": {"silent_s": 1.5}})
    wire = behind(two, "lyon")
    server, sites = two.serve(), [two.join("lyon", "--work", "0.5"), two.join("oslo")]
    two.worked("lyon", "train 1")
    wire.cut()
    two.logged("round", round=1)
    wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    taking_part = [r["sites"] for r in two.summary()["per_round"]]
    assert two.result() == [4.0]
    assert (taking_part[0], taking_part[-1]) == (["oslo"], ["lyon", "oslo"])


def test_a_cut_while_the_site_waits_for_work(two):
    """What waits at the server on the broken line does not swallow the next question."""
    change(two.folder / "server.yaml", {"deadlines": {"at_least_s": 60.0}})
    wire = behind(two, "lyon")
    server, sites = two.serve(), [two.join("lyon"), two.join("oslo", "--work", "1.5")]
    for round_ in (1, 2):
        two.told("lyon", "answered", 2 * round_)
        wire.cut()
        wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2
    assert max(r["seconds"] for r in two.summary()["per_round"]) < 15


def test_a_stall_that_ends_no_connection(two):
    """Silence without an end is survived as well as a cut."""
    change(two.folder / "server.yaml", {"listen": {"silent_s": 1.5}})
    wire = behind(two, "lyon")
    server, sites = two.serve(), [two.join("lyon", "--work", "1"), two.join("oslo")]
    two.worked("lyon", "train 1")
    wire.stall()
    silence(4)
    wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert two.diary("lyon").count("train 1") == 1


def test_the_server_is_cut_off_from_everybody(two):
    """All sites are gone in the middle of a round, and come back to it."""
    change(two.folder / "server.yaml", {"listen": {"silent_s": 1.0}})
    wires = [behind(two, "lyon"), behind(two, "oslo")]
    server = two.serve()
    sites = [two.join("lyon", "--work", "1"), two.join("oslo", "--work", "1")]
    two.worked("lyon", "train 1")
    two.worked("oslo", "train 1")
    for wire in wires:
        wire.cut()
    silence(3)
    for wire in wires:
        wire.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]


def test_a_proxy_that_dies_and_comes_back(two):
    """The site reaches the server through it alone, before and after."""
    proxy = ConnectProxy()
    environment = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": ""}
    server = two.serve()
    sites = [two.join("lyon", "--work", "1", **environment), two.join("oslo")]
    two.worked("lyon", "train 1")
    before = len(proxy.asked)
    proxy.cut()
    two.told("lyon", "unsent")
    proxy.repair()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert 0 < before < len(proxy.asked)
    assert {*proxy.asked} == {f"CONNECT localhost:{two.port}"}


def test_a_connection_that_breaks_halfway_through_100_mb(stage):
    """The answer is sent again from the start, counted once, and half of it is not kept."""
    one = stage("lyon", numbers=BIG)
    wire = behind(one, "lyon")
    server, lyon = one.serve(), one.join("lyon")
    one.worked("lyon", "train 1")
    sent = wire.up
    wire.cut_after(52_000_000)
    one.worked("lyon", "train 2")
    assert wire.up - sent > 104_000_000
    assert [program.ended() for program in (server, lyon)] == [0, 0]
    assert one.result() == [2.0]
    assert one.diary("lyon").count("train 1") == 1


def test_a_site_killed_while_it_sends_100_mb(stage):
    """Its next process remembers the update and sends it; the half that came is forgotten."""
    one = stage("lyon", numbers=BIG)
    wire = behind(one, "lyon")
    server, lyon = one.serve(), one.join("lyon")
    one.worked("lyon", "train 1")
    sent = wire.up
    until(lambda: wire.up - sent > 30_000_000, "30 MB on their way")
    lyon.kill()
    lyon = one.join("lyon")
    assert [program.ended() for program in (server, lyon)] == [0, 0]
    assert one.result() == [2.0]
    assert one.diary("lyon").count("train 1") == 1


@pytest.mark.parametrize("how", ["swollen", "repeated"])
def test_a_server_that_sends_more_than_the_model(stage, how):
    """100 MB beside a model of 4 kB, as many parts or as one named often: the site takes 2 MB of it."""
    one = stage("lyon", run={"rounds": 1})
    one.serve("--fault", how)
    lyon = one.join("lyon")
    assert lyon.ended() == 4, lyon.text
    assert "2,004,000 bytes" in lyon.text or "expected at most 2004000" in lyon.text
    assert one.diary("lyon") == []
