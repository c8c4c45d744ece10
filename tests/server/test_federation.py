"""A server and a site in one process, over real sockets and TLS."""

import json
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from knowmine.client.federation.service import Resident
from knowmine.client.settings import ClientSettings
from knowmine.server.enrolment.enrolments import admit_request
from knowmine.server.federation import run_federation
from knowmine.server.settings import ServerSettings
from knowmine.shared.errors import UsageError
from knowmine.shared.settings import read_settings
from knowmine.shared.trust.certificates import expires, load_certificate
from knowmine.shared.weights import load_notes, load_weights
from tests.faults.tiny import TinyWorker, initial
from tests.provisioned import NOW, Federation


class Watch:
    """A watch that does nothing."""

    def round_started(self, round_, rounds):
        pass

    def round_done(self, record):
        pass


@pytest.fixture
def federation(tmp_path):
    found = Federation(tmp_path)
    found.provision()
    return found


def settings_of(federation, **more):
    flags = {"listen.port": 0, "listen.host": "127.0.0.1", "run.rounds": 2, **more}
    return read_settings(ServerSettings, federation.folder / "server.yaml", flags)


def take_part(federation, site, port, stop):
    home = federation.home(site)
    flags = {"network.server": f"127.0.0.1:{port}"}
    settings = read_settings(ClientSettings, home / "client.yaml", flags)
    settings.state.mkdir()
    worker = TinyWorker(site, 1000, 0, "", settings.state / "diary")
    thread = threading.Thread(target=Resident(settings, lambda: worker).run, args=(stop,))
    thread.start()
    return thread


def port_of(run: Path):
    for line in (run / "run.log.jsonl").read_text().splitlines():
        if (event := json.loads(line))["event"] == "listening":
            return event["port"]
    return None


@pytest.fixture
def running(federation):
    """The federation's whole run with one site, whose certificate is as old as asked."""

    def run(age: timedelta, **more):
        admit_request(federation.enrol("lyon", now=NOW - age), federation.folder, NOW - age)
        settings, stop = settings_of(federation, **more), threading.Event()
        settings.out.mkdir()
        site = []

        def start_site():
            while not (settings.out / "run.log.jsonl").exists() or not port_of(settings.out):
                if stop.wait(0.02):
                    return
            site.append(take_part(federation, "lyon", port_of(settings.out), stop))

        starter = threading.Thread(target=start_site)
        starter.start()
        try:
            summary = run_federation(settings, Watch(), lambda: initial(1000))
        finally:
            starter.join()
            stop.set()
            for thread in site:
                thread.join()
        return settings, summary

    return run


def test_a_run_ends_with_a_model_and_its_roster(running):
    """Two rounds, each adding 1 to every number."""
    settings, summary = running(timedelta(0))
    model = load_weights(settings.out / "model.safetensors")
    assert (summary["status"], summary["sites"]) == ("done", ["lyon"])
    assert np.all(model["layer0.weight"] == 2)


def test_a_run_ends_alike_with_small_updates(running):
    """In a quarter of the bytes: a change of 1 everywhere is a whole number of int8's steps."""
    settings, summary = running(timedelta(0), **{"plan.transport.update": "int8"})
    model = load_weights(settings.out / "model.safetensors")
    assert np.allclose(model["layer0.weight"], 2)
    assert 4 * summary["per_round"][1]["bytes_up"] < summary["per_round"][0]["bytes_down"] / 2


def test_a_site_renews_its_certificate_by_itself(running, federation):
    """Twenty days before the end of the old one; both serve until that."""
    running(timedelta(days=345))
    used = load_certificate(federation.home("lyon") / "keys" / "tls.crt")
    pinned = federation.sites.sites()["lyon"].certificates
    assert expires(used) - NOW > timedelta(days=300) and len(pinned) == 2


def test_a_server_without_sites_says_what_to_do(federation):
    """It would wait in vain."""
    with pytest.raises(UsageError, match=r"no site is admitted .*`knowmine-server admit`"):
        run_federation(settings_of(federation), Watch())


def test_the_model_says_which_sites_are_in_it(running):
    """And in which rounds, in the file itself."""
    settings, _ = running(timedelta(0))
    notes = load_notes(settings.out / "model.safetensors")
    assert json.loads(notes["roster"]) == {"lyon": [1, 2]}
