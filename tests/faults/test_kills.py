"""kill -9 at the worst moments: no round is lost, and nothing is counted twice.

Each site adds 1 to every number in each round, so the finished model says how often.
"""

import signal

import pytest

from tests.faults.stage import change


@pytest.fixture
def two(stage):
    """Lyon and oslo, two rounds."""
    return stage("lyon", "oslo")


def test_an_undisturbed_run(two):
    """Two sites, two rounds, and everybody leaves with 0."""
    server, sites = two.serve(), [two.join("lyon"), two.join("oslo")]
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert two.diary("lyon") == ["train 1", "score 1", "train 2", "score 2"]


def test_a_site_killed_while_it_trains(two):
    """Started again, it is asked again, and its update is in the round."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = two.join("lyon", "--work", "600")
    two.worked("lyon", "train 1")
    lyon.kill()
    lyon = two.join("lyon")
    assert [program.ended() for program in (server, lyon, oslo)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2


def test_a_site_killed_again_and_again_within_a_second_of_coming_back(two):
    """Each new process takes the place of the last at once."""
    server, oslo = two.serve(), two.join("oslo")
    for life in range(1, 4):
        lyon = two.join("lyon", "--work", "600")
        two.worked("lyon", "train 1", life)
        lyon.kill()
    lyon = two.join("lyon")
    assert [program.ended() for program in (server, lyon, oslo)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2


def test_a_site_killed_before_it_is_greeted(two):
    """It joined and said no more; its next process is greeted."""
    server, lyon = two.serve(), two.join("lyon")
    two.logged("joined", site="lyon")
    lyon.kill()
    sites = [two.join("lyon"), two.join("oslo")]
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]


def test_the_server_killed_while_sites_train(two):
    """The same round goes on, and nobody trains twice for it."""
    server = two.serve()
    sites = [two.join("lyon", "--work", "2"), two.join("oslo")]
    two.worked("lyon", "train 1")
    server.kill()
    server = two.serve()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert [d.count("train 1") for d in (two.diary("lyon"), two.diary("oslo"))] == [1, 1]


@pytest.mark.parametrize(
    "moment", ["mean", "step", "evaluate", "checkpoint", "record", "committed"]
)
def test_the_server_killed_in_and_around_aggregation(two, moment):
    """Whatever was not committed is done again from what the sites remember."""
    count = {"mean": 3, "checkpoint": 3, "record": 4}.get(moment, 2)  # in the second round of three
    change(two.folder / "server.yaml", {"run": {"rounds": 3}})
    server = two.serve("--die", f"{moment} {count}")
    sites = [two.join("lyon"), two.join("oslo")]
    assert server.ended() == -signal.SIGKILL
    server = two.serve()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [3.0]
    assert [two.diary(site).count("train 2") for site in ("lyon", "oslo")] == [1, 1]


@pytest.mark.parametrize("moment", ["committed 2", "finished 1", "goodbye 1"])
def test_the_server_killed_at_the_very_end(two, moment):
    """Started again it finishes, and the sites that still wait hear the goodbye."""
    if moment.startswith("goodbye"):  # nobody will come again: the server waits for them in vain
        change(two.folder / "server.yaml", {"attendance": {"gather_s": 1.0}})
    server = two.serve("--die", moment)
    sites = [two.join("lyon"), two.join("oslo")]
    assert server.ended() == -signal.SIGKILL
    server = two.serve()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert (two.result(), two.summary()["status"]) == ([2.0], "done")
