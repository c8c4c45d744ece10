"""A run that is killed again and again ends like one that nobody touched."""

import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.simulate import simulate
from knowmine.shared.weights import digest_of, load_weights
from tests.deploy.small_runs import draw_data, small

KILLS = 10
# A server that has imported everything and forks a fresh process for each attempt: the imports,
# which are most of a small run's time, are paid once, and kills land in the run itself.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["knowmine.deploy.simulation.simulate", "tests.deploy.small_runs"])


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> SimulationSettings:
    """Three rounds at two sites that mine, keep their batch norm, and a server with a memory."""
    data = draw_data(tmp_path_factory.mktemp("drawn") / "data", 24)
    return small(
        {
            "plan": {
                "method": "self-training",
                "training": {"steps": 6, "batch": 8, "batch_norm": "local"},
                "mining": {"warmup_rounds": 1},
                "model": {"image_px": 64},
            },
            "run": {"rounds": 3, "optimiser": {"name": "adam", "learning_rate": 0.01}},
            "sites": {"data": str(data)},
            "split": {"labelled": 6},
        }
    )


def started(settings: SimulationSettings, run: Path):
    """A process that starts the run, or goes on with it where it had begun."""
    resume = (run / "settings.json").exists()
    process = FRESH.Process(
        target=simulate, args=(settings, run), kwargs={"resume": resume, "display": Display()}
    )
    process.start()
    return process


def finished(settings: SimulationSettings, run: Path) -> str:
    """Run it to its end; the digest of its model."""
    process = started(settings, run)
    process.join(120)
    assert process.exitcode == 0
    return digest_of(load_weights(run / "model.safetensors"))


def test_ten_kills_change_nothing(settings, tmp_path):
    """Killed -9 at ten random moments and resumed each time: the same weights, bit for bit."""
    finished(settings, tmp_path / "warm")  # the fork server has to start first
    begun = time.monotonic()
    undisturbed = finished(settings, tmp_path / "whole")
    length_s = time.monotonic() - begun

    moments = random.Random(7)
    run, kills, ends = tmp_path / "run", 0, []
    while kills < KILLS:
        process = started(settings, run)
        process.join(moments.uniform(0, 0.6 * length_s))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.exitcode == 0
            # it was through before its kill: the next kills are another run's
            ends.append(finished(settings, run))
            shutil.rmtree(run)
    ends.append(finished(settings, run))
    assert set(ends) == {undisturbed}
