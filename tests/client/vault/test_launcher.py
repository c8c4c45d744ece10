"""The real vault behind its airlock: the same rounds, and nothing left when a process dies."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from knowmine.client.settings import ClientSettings
from knowmine.client.site.open import open_site_of
from knowmine.client.site.worker import SiteWorker
from knowmine.client.vault.launcher import Vault
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import UsageError
from knowmine.shared.protocol import EvaluateTask, TrainTask
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import digest_of
from tests.client.small_site import MODEL, plan

START_AND_WAIT = """
import sys
from pathlib import Path
from knowmine.client.vault.launcher import Vault
from knowmine.client.settings import ClientSettings
vault = Vault(ClientSettings.model_validate_json(Path(sys.argv[1]).read_text()))
print(vault.pid, flush=True)
sys.stdin.read()
"""


def settings_of(folder, **changes):
    """A hospital with ten phantom images, four of them labelled for training."""
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    values = {
        "federation": "trial",
        "site": "lyon",
        "network": {"server": "localhost:1"},
        "data": folder / "data",
        "state": folder / "state",
        "keys": folder / "keys",
        "model": MODEL,
        "split": {"labelled": 4, "calibration": 0.5},
        "machine": {"device": "cpu", "threads": 1},
        "stop_s": 5,
    }
    return ClientSettings.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Its settings and its images."""
    folder = tmp_path_factory.mktemp("hospital")
    make_folder(folder / "data", 10)
    return settings_of(folder)


@pytest.fixture(scope="module")
def vault(hospital):
    """The vault's real process; this one only keeps its sight of the images."""
    with Vault(hospital) as vault:
        yield vault


@pytest.fixture(scope="module")
def courier(vault):
    """Who asks it."""
    with vault.worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def task():
    """A first round on labels."""
    return TrainTask(1, 2, plan("supervised"), weights_of(build_model(MODEL, seed=0)))


def test_a_round_behind_the_airlock_is_the_same_round(courier, hospital, task, tmp_path):
    """Bit for bit what the same site does in this process."""
    site = open_site_of(hospital.model_copy(update={"state": tmp_path}))
    here, there = SiteWorker(site).improve(task), courier.improve(task)
    assert digest_of(there.weights) == digest_of(here.weights)
    assert (there.loss, there.labelled, there.mined) == (here.loss, here.labelled, here.mined)


def test_the_site_introduces_itself(courier, hospital):
    """With the counts of the vault and the name of the settings."""
    assert (courier.hello().site, courier.hello().test) == (hospital.site, 2)


def worker_of(vault):
    """The process that the vault's keeper keeps."""
    children = Path(f"/proc/{vault.pid}/task/{vault.pid}/children").read_text()
    return int(children.split()[0])


def test_a_task_survives_the_death_of_the_vaults_worker(courier, vault, task):
    """It is started again, and asked again."""
    before = worker_of(vault)
    os.kill(before, signal.SIGKILL)
    scores = courier.evaluate(EvaluateTask(1, 2, task.plan, task.weights))
    assert scores.test_images == 2
    assert worker_of(vault) != before


def test_nothing_is_left_when_the_courier_is_killed(hospital, tmp_path):
    """Keeper and worker end with it: all three held the other end of its standard error."""
    (tmp_path / "settings.json").write_text(hospital.model_dump_json())
    command = [sys.executable, "-c", START_AND_WAIT, str(tmp_path / "settings.json")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as courier:
        assert courier.stdout is not None
        keeper = int(courier.stdout.readline())
        watched = os.pidfd_open(keeper)
        courier.kill()
        courier.communicate(timeout=60)  # returns when no process holds a standard stream any more
    ended, _, _ = select.select([watched], [], [], 60)
    os.close(watched)
    assert ended


def test_a_vault_that_cannot_open_its_site_says_why_by_its_exit_code(hospital, tmp_path):
    """An error of settings or data is not tried again."""
    missing = hospital.model_copy(update={"data": tmp_path / "nowhere"})
    with Vault(missing) as vault, pytest.raises(UsageError, match="the vault ended with 2"):
        vault.worker()


def test_isolation_that_is_required_and_missing_is_refused(hospital):
    """This process has threads that were there before, so it cannot give up the images."""
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from knowmine.client.vault.launcher import start_vault\n"
        "from knowmine.client.settings import ClientSettings\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "from knowmine.shared.errors import Refused\n"
        "settings = ClientSettings.model_validate_json(sys.stdin.read())\n"
        "try:\n"
        "    start_vault(settings)\n"
        "except Refused as error:\n"
        "    print(error)\n"
        "    raise SystemExit(error.exit_code)\n"
    )
    required = hospital.model_copy(update={"isolation": "required"})
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=required.model_dump_json(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "older threads" in done.stdout) == (4, True), done.stderr
