"""A run on disk: whole rounds or none, whatever kills the process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from knowmine.server.journal.journal import Committed, Journal
from knowmine.shared.errors import RunFailed, UsageError
from knowmine.shared.weights import Array, digest_of, load_weights

WRITER = Path(__file__).with_name("journal_writer.py")


def weights(round_: int) -> dict[str, Array]:
    return {"w": np.full(4, round_, np.float32), "n": np.array(round_)}


def state(round_: int) -> dict[str, Array]:
    return {"step:w": np.full(1, round_, np.float32)}


@pytest.fixture
def run(tmp_path):
    """A run with its initial weights and three rounds, closed."""
    folder = tmp_path / "run"
    with Journal.create(folder, {"seed": 7}) as journal:
        journal.commit_initial(weights(0))
        for round_ in (1, 2, 3):
            journal.commit_round({"round": round_, "dice": 0.5}, weights(round_), state(round_))
    return folder


def last_of(journal: Journal) -> Committed:
    last = journal.last()
    assert last is not None
    return last


def reopened(folder: Path) -> Committed:
    with Journal.open(folder) as journal:
        return last_of(journal)


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_the_last_round_comes_back(run):
    """Weights and optimiser state are those of the newest round."""
    last = reopened(run)
    seen = (last.round, digest_of(last.weights), digest_of(last.optimiser_state))
    assert seen == (3, digest_of(weights(3)), digest_of(state(3)))


def test_all_records_come_back_in_order(run):
    """Each with what was recorded, from round 1."""
    seen = [(record["round"], record["dice"]) for record in reopened(run).records]
    assert seen == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_the_settings_come_back(run):
    """A resumed run is told what it was started with."""
    with Journal.open(run) as journal:
        assert journal.settings == {"seed": 7}


def test_two_checkpoints_are_kept(run):
    """Older ones are deleted, their records stay."""
    assert [name for name in files(run) if name != ".lock"] == [
        "checkpoints/0000.json",
        "checkpoints/0002.optimiser.safetensors",
        "checkpoints/0002.safetensors",
        "checkpoints/0003.optimiser.safetensors",
        "checkpoints/0003.safetensors",
        "rounds/0001.json",
        "rounds/0002.json",
        "rounds/0003.json",
        "settings.json",
    ]


def test_a_run_that_committed_nothing_has_no_last(tmp_path):
    """It starts from the beginning."""
    with Journal.create(tmp_path / "run", {}) as journal:
        assert journal.last() is None


def test_the_initial_weights_are_round_0_without_a_record(tmp_path):
    """A run killed in its first round starts again with the same weights."""
    with Journal.create(tmp_path / "run", {}) as journal:
        journal.commit_initial(weights(0))
        last = last_of(journal)
    seen = (last.round, digest_of(last.weights), last.optimiser_state, last.records)
    assert seen == (0, digest_of(weights(0)), {}, [])


def test_numpy_numbers_and_nan_are_recorded_as_json(tmp_path):
    """A record is strict JSON, whoever reads it."""
    with Journal.create(tmp_path / "run", {}) as journal:
        journal.commit_round(
            {"round": 1, "dice": np.float32(0.5), "hd95": float("nan")}, weights(1), {}
        )
        assert journal.records()[0] | {"checkpoint": 0} == {
            "round": 1,
            "dice": 0.5,
            "hd95": None,
            "checkpoint": 0,
        }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rounds/0003.json", cut),
        ("rounds/0003.json", lambda path: path.write_text("[]")),
        ("rounds/0003.json", lambda path: path.write_text('{"round": 3}')),
        ("checkpoints/0003.safetensors", cut),
        ("checkpoints/0003.safetensors", flip),
        ("checkpoints/0003.safetensors", Path.unlink),
        ("checkpoints/0003.optimiser.safetensors", flip),
        ("checkpoints/0003.optimiser.safetensors", Path.unlink),
    ],
)
def test_a_damaged_round_falls_back_to_the_one_before(run, name, damage):
    """The newest whole round counts, with its own optimiser state and records."""
    damage(run / name)
    last = reopened(run)
    seen = (last.round, digest_of(last.weights), digest_of(last.optimiser_state))
    assert (seen, len(last.records)) == ((2, digest_of(weights(2)), digest_of(state(2))), 2)


def test_a_damaged_round_is_moved_aside_not_deleted(run):
    """A person can still look at what was there."""
    flip(run / "checkpoints/0003.safetensors")
    content = (run / "checkpoints/0003.safetensors").read_bytes()
    reopened(run)
    assert (run / "checkpoints/0003.safetensors.broken").read_bytes() == content
    assert (run / "rounds/0003.json.broken").exists()


def test_a_round_can_be_committed_again_after_a_fall_back(run):
    """The run goes on where it is whole, twice if need be."""
    for _ in range(2):
        cut(run / "rounds/0003.json")
        with Journal.open(run) as journal:
            assert last_of(journal).round == 2
            journal.commit_round({"round": 3}, weights(3), state(3))
            assert last_of(journal).round == 3
    assert (run / "rounds/0003.json.broken2").exists()


def test_a_run_without_any_whole_checkpoint_is_not_started_over(run):
    """Rounds of work are not thrown away in silence."""
    for number in (2, 3):
        flip(run / f"checkpoints/000{number}.safetensors")
    before = files(run)
    with pytest.raises(RunFailed, match=r"no checkpoint in .* is whole"):
        reopened(run)
    assert files(run) == before


def test_half_written_files_are_cleared(run):
    """What a killed process left is gone after opening."""
    for name in ("rounds/0004.json.tmp", "checkpoints/0004.safetensors.tmp", "summary.json.tmp"):
        (run / name).write_text("half")
    reopened(run)
    assert not list(run.rglob("*.tmp"))


def test_a_folder_that_holds_a_run_is_not_overwritten(run):
    """The message offers both ways on."""
    with pytest.raises(UsageError, match=r"already holds a run: .*`--resume .*run`, or choose"):
        Journal.create(run, {})


def test_a_refused_folder_is_not_left_locked(run):
    """After the refusal it can be opened."""
    with pytest.raises(UsageError):
        Journal.create(run, {})
    assert reopened(run).round == 3


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    """The message says how one starts."""
    with pytest.raises(UsageError, match=r"holds no run .*without `--resume`"):
        Journal.open(tmp_path)


def test_damaged_settings_are_refused(run):
    """A run whose settings are lost is not resumed with others."""
    cut(run / "settings.json")
    with pytest.raises(UsageError, match=r"settings\.json is damaged"):
        Journal.open(run)


def test_a_file_is_no_run_folder(tmp_path):
    """The path is named."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make the run folder .*file"):
        Journal.create(tmp_path / "file", {})


def test_summary_and_model_are_written(run):
    """The end of a run, where the contract says."""
    with Journal.open(run) as journal:
        journal.write_summary({"status": "done", "global": {"dice": np.float64(0.9)}})
        journal.finish(weights(3))
    assert json.loads((run / "summary.json").read_text())["global"] == {"dice": 0.9}
    assert digest_of(load_weights(run / "model.safetensors")) == digest_of(weights(3))


@pytest.mark.parametrize(
    "name",
    ["checkpoints/0004.safetensors", "checkpoints/0004.optimiser.safetensors", "rounds/0004.json"],
)
def test_a_full_disk_loses_no_finished_round(run, name):
    """The message says what is safe and how to go on; going on works."""
    with Journal.open(run) as journal:
        (run / f"{name}.tmp").symlink_to("/dev/full")
        words = (
            rf"cannot write .*{name} \(No space left on device; \d+ MB are free there\): "
            r"rounds up to 3 are safe; make room and go on with `--resume .*run`"
        )
        with pytest.raises(RunFailed, match=words):
            journal.commit_round({"round": 4}, weights(4), state(4))
        assert last_of(journal).round == 3
        journal.commit_round({"round": 4}, weights(4), state(4))
    assert reopened(run).round == 4


def started(folder: Path, how: str) -> tuple[subprocess.Popen[str], IO[str]]:
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    return writer, writer.stdout


def test_another_process_is_kept_out(tmp_path):
    """One process at a time, and the other is named."""
    writer, output = started(tmp_path / "run", "create")
    try:
        assert output.readline() == "open\n"
        with pytest.raises(UsageError, match=rf"another process \({writer.pid}\) works in .*run"):
            Journal.open(tmp_path / "run")
    finally:
        writer.kill()
        writer.communicate()


def test_one_process_cannot_open_a_run_twice(run):
    """Not even the same one."""
    with Journal.open(run), pytest.raises(UsageError, match=rf"\({os.getpid()}\) works in"):
        Journal.open(run)


def test_a_kill_at_any_moment_loses_at_most_the_round_under_way(tmp_path):
    """Killed and resumed six times at other moments: every round that was reported is there,
    whole, and nothing had to be moved aside.
    """
    folder, reported = tmp_path / "run", 0
    moments = np.random.default_rng(5).uniform(0, 0.02, 6)
    for attempt, moment in enumerate(moments):
        writer, output = started(folder, "open" if attempt else "create")
        assert output.readline() == "open\n"
        for _ in range(1 + attempt):
            reported = int(output.readline())
        try:
            writer.wait(moment)
        except subprocess.TimeoutExpired:
            os.kill(writer.pid, signal.SIGKILL)
        rest, errors = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, errors
        reported = max([reported, *map(int, rest.split())])

        last = reopened(folder)
        assert last.round in (reported, reported + 1)
        assert [record["round"] for record in last.records] == list(range(1, last.round + 1))
        assert set(last.weights["w"]) == {last.round} and last.weights["n"] == last.round
        assert set(last.optimiser_state["step:w"]) == {-last.round}
    assert not list(folder.rglob("*.broken*"))
