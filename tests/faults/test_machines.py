"""Machines in trouble: full disks, wrong clocks, two that claim to be one, long runs."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from knowmine.client.paths import prepare
from knowmine.shared.errors import REASONS
from tests.faults.stage import Stage, change


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for so many kB; needs the right to mount."""
    mounted = []

    def make(folder, kb):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kb}k", "none", str(folder)], check=True
        )
        mounted.append(folder)

    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    yield make
    for folder in mounted:
        with suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Use up what room there is; the file that does."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_the_servers_disk_is_full(stage, small_disk):
    """It ends with 3 and says what is safe; with room it goes on, and nothing is lost."""
    two = stage("lyon", "oslo", run={"rounds": 3})
    small_disk(two.run, 400)
    server = two.serve()
    sites = [two.join("lyon", "--work", "0.5"), two.join("oslo")]
    two.worked("lyon", "train 2")
    filler = fill(two.run)
    assert server.ended() == 3
    assert "No space left on device" in server.text
    filler.unlink()
    server = two.serve()
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    assert two.result() == [3.0]
    assert [two.diary(site).count("train 2") for site in ("lyon", "oslo")] == [1, 1]


def test_a_sites_disk_is_full(stage, small_disk):
    """Nothing leaves that cannot be written down: the rounds go on without it."""
    two = stage("lyon", "oslo")
    state = two.home("lyon") / "state"
    small_disk(state, 400)
    server = two.serve()
    diary = two.root / "diary"
    sites = [two.join("lyon", "--work", "1", "--diary", str(diary)), two.join("oslo")]
    until_has(diary, "train 1")
    fill(state)
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    rounds = two.summary()["per_round"]
    assert all("oslo" in r["sites"] for r in rounds)
    assert rounds[-1]["refused"] == {"lyon": REASONS["cannot-write"]}


def test_a_site_that_starts_on_a_full_disk(stage, small_disk):
    """Divided as it left it: it says so and ends, for nothing that it did could be written down."""
    one = stage("lyon", run={"rounds": 1})
    state = one.home("lyon") / "state"
    small_disk(state, 400)
    (prepare(state) / "feedback").mkdir()
    fill(state)
    lyon = one.join("lyon", "--diary", str(one.root / "diary"))
    assert lyon.ended() == 3
    assert "cannot write a receipt" in lyon.text


def until_has(path, line):
    from tests.faults.stage import until

    until(lambda: path.exists() and line in path.read_text(), line)


def faked_clock(offset):
    """The environment in which a program sees another time of day; its timers go on as they do."""
    libfaketime = pytest.importorskip("libfaketime")
    library = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.parametrize("offset", ["-600s", "+600s"])
def test_a_clock_ten_minutes_off(stage, offset):
    """The site takes the server's time for its signatures, and says by how much it is wrong."""
    two = stage("lyon", "oslo")
    server, oslo = two.serve(), two.join("oslo")
    command = [sys.executable, "-m", "tests.faults.tiny", "site"]
    settings = str(two.home("lyon") / "client.yaml")
    lyon = two.program([*command, settings, "--numbers", "1000"], **faked_clock(offset))
    assert [program.ended() for program in (server, lyon, oslo)] == [0, 0, 0]
    assert [r["sites"] for r in two.summary()["per_round"]] == [["lyon", "oslo"]] * 2
    wrong = two.told("lyon", "clock")[0]["wrong_by_s"]
    assert abs(wrong + int(offset.rstrip("s"))) < 30


def test_two_machines_with_one_identity(stage):
    """A copied home takes over; the first hears of it at its next heartbeat and gives up its work."""
    two = stage("lyon", "oslo")
    server, first = two.serve(), two.join("lyon", "--work", "600")
    two.worked("lyon", "train 1")
    copy = two.root / "copy"
    shutil.copytree(two.home("lyon"), copy)
    second, oslo = two.join("lyon", home=copy), two.join("oslo")
    assert [program.ended() for program in (server, second, oslo)] == [0, 0, 0]
    assert two.result() == [2.0]
    assert first.ended() == 4
    assert "another client of site 'lyon' took over" in first.text


def test_two_machines_with_one_key(stage):
    """Without what the first one's folder knows the second waits until that is gone."""
    two = stage("lyon", "oslo")
    copy = two.root / "copy"
    shutil.copytree(two.home("lyon"), copy)
    server, first = two.serve(), two.join("lyon", "--work", "600")
    two.worked("lyon", "train 1")
    second = two.join("lyon", home=copy)
    log = copy / "state" / "site.log.jsonl"
    until_has(log, "another client of site 'lyon' is connected")
    first.kill()
    oslo = two.join("oslo")
    assert [program.ended() for program in (server, second, oslo)] == [0, 0, 0]
    assert two.result() == [2.0]


def test_two_processes_in_one_folder(stage):
    """The second leaves at once with 2."""
    one = stage("lyon")
    one.serve()
    one.join("lyon", "--work", "600")
    one.worked("lyon", "train 1")
    second = one.join("lyon")
    assert second.ended() == 2
    assert "another process" in second.text


ROUNDS = int(os.environ.get("KNOWMINE_ENDURANCE_ROUNDS", "40"))


def test_many_rounds_leave_nothing_behind(tmp_path, nursery):
    """Memory, threads and open files after the first rounds are those at the end."""
    sites = ("bergen", "lyon", "oslo", "porto")
    stage = Stage(tmp_path, nursery, *sites, run={"rounds": ROUNDS})
    try:
        server = stage.serve()
        programs = [server, *(stage.join(site) for site in sites)]
        server.wait_for(rf"^done {ROUNDS // 4} ")
        before = [(p.rss_mb(), p.threads(), p.files()) for p in programs]
        for round_ in (*range(ROUNDS // 4, ROUNDS - 1, 20), ROUNDS - 1):
            server.wait_for(rf"^done {round_} ")
        after = [(p.rss_mb(), p.threads(), p.files()) for p in programs]
        assert [program.ended() for program in programs] == [0] * 5
        assert stage.result() == [float(ROUNDS)]
        for (rss, threads, files), (rss_then, threads_then, files_then) in zip(
            before, after, strict=True
        ):
            assert rss_then - rss < 8 + 0.02 * ROUNDS
            assert threads_then - threads <= 8  # a pool that fills
            assert files_then - files <= 4
        kept = list((stage.run / "checkpoints").glob("*.safetensors"))
        assert len(kept) <= 3
    finally:
        stage.clear()


def test_the_servers_disk_is_full_from_the_start(stage, small_disk):
    """One line and 3."""
    one = stage("lyon")
    small_disk(one.run, 16)
    fill(one.run)
    change(one.folder / "server.yaml", {"out": str(one.run)})
    server = one.serve()
    assert server.ended() in (2, 3)
    assert "Traceback" not in server.text
