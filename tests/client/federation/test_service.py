"""A site's process before its first task: what it opens and what it knows."""

import threading

import pytest

from knowmine.client.federation import service
from knowmine.client.federation.service import Resident
from knowmine.client.settings import ClientSettings
from knowmine.client.vault.requests import installed_manifest
from knowmine.shared.settings import read_settings
from knowmine.shared.weights import bytes_of_manifest
from tests.provisioned import Federation


class NoLink:
    """A link that stops at once and keeps how many bytes it was to expect."""

    expected: list[int] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, *_):
        """Nothing is connected."""

    def server_key(self):
        """There is no server."""

    def serve(self, app, stop, stop_s, weights_bytes):
        self.expected.append(weights_bytes())
        return "stopped"

    def close(self):
        """Nothing to close."""


def unopened():
    """A site that must stay closed."""
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
    """From the installed model. Only a task opens the site."""
    Resident(settings, unopened).run(threading.Event())
    installed = bytes_of_manifest(installed_manifest(settings.model))
    assert NoLink.expected == [installed]
