"""The process that stays: what it opens and what it says before the first question."""

import json
import threading

import pytest

from knowmine.client.federation import service
from knowmine.client.federation.service import Resident
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.client.vault.requests import installed_manifest
from knowmine.shared.mask_decoder import DECODER_BYTES
from knowmine.shared.settings import read_settings
from knowmine.shared.weights import bytes_of_manifest
from tests.provisioned import Federation


class NoLink:
    """A way to a server that is told to stop at once; keeps what it was to expect."""

    expected: list[int] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, *_):
        """Nothing is connected."""

    def server_key(self):
        """Nobody's."""

    def serve(self, app, stop, stop_s, weights_bytes):
        self.expected.append(weights_bytes())
        return "stopped"

    def close(self):
        """Nothing to close."""


def unopened():
    """A site that nobody has asked for."""
    pytest.fail("the site was opened")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """An enrolled site's."""
    monkeypatch.setattr(NoLink, "expected", [])
    monkeypatch.setattr(service, "Link", NoLink)
    federation = Federation(tmp_path)
    federation.provision()
    federation.enrol("lyon")
    return read_settings(ClientSettings, federation.home("lyon") / "client.yaml", {})


def test_how_many_bytes_to_expect_is_known_without_the_images(settings):
    """By the installed model and SAM's decoder; the thread that answers opens the site, not this."""
    Resident(settings, unopened).run(threading.Event())
    installed = bytes_of_manifest(installed_manifest(settings.model))
    assert NoLink.expected == [installed + DECODER_BYTES]


def test_what_is_left_in_old_places_is_said(settings):
    """Once, by name: it was not moved because there is newer."""
    for folder in ("answers", "courier/answers", "feedback", "courier/feedback"):
        (settings.state / folder).mkdir(parents=True)
    (settings.state / "feedback" / "lost-000001.safetensors").write_bytes(b"x")
    Resident(settings, unopened, weights_bytes=0).run(threading.Event())
    events = [json.loads(line) for line in (settings.state / SITE_LOG).read_text().splitlines()]
    (left,) = [event for event in events if event["event"] == "leftovers"]
    assert (left["level"], left["names"]) == ("warning", "answers, feedback")


def test_nothing_is_said_of_a_folder_in_order(settings):
    """As is every new one."""
    Resident(settings, unopened, weights_bytes=0).run(threading.Event())
    assert "leftovers" not in (settings.state / SITE_LOG).read_text()
