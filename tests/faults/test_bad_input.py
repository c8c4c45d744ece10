"""What a person can do wrong is one clear line with the repair, and exit code 2."""

import socket
import sys
from pathlib import Path

import pytest

from tests.faults.stage import change

BIN = Path(sys.executable).parent


@pytest.fixture
def one(stage):
    return stage("lyon")


def said(stage, command, *arguments):
    """Exit code and text of an installed command."""
    program = stage.program([str(BIN / command), *map(str, arguments)])
    return program.ended(), program.text


def test_the_console_says_one_line_and_2(one):
    """The installed command, with a key that is misspelt: file, key and repair."""
    settings = one.folder / "server.yaml"
    change(settings, {"run": {"rouns": 3}})
    code, text = said(one, "knowmine-server", "run", settings)
    expected = f"knowmine-server: {settings}: unknown key `run.rouns`; did you mean `rounds`?"
    assert (code, text) == (2, expected)


def test_the_clients_console_does_too(one):
    """A value of the wrong kind."""
    settings = one.home("lyon") / "client.yaml"
    change(settings, {"network": {"heartbeat_s": "often"}})
    code, text = said(one, "knowmine-client", "run", settings)
    assert (code, text.count("\n")) == (2, 0)
    assert f"{settings}: `network.heartbeat_s`" in text and "'often'" in text


def test_a_port_in_use(one):
    """The address is named."""
    with socket.create_server(("127.0.0.1", one.port)):
        server = one.start("server", one.folder / "server.yaml")
        assert server.ended() == 2
    assert f"cannot listen on 127.0.0.1:{one.port}" in server.text
    assert "another listen.port" in server.text


@pytest.mark.parametrize("key", ["tls.key", "node.key", "audit.key"])
def test_a_key_that_others_can_read(one, key):
    """The mode, and the command that repairs it."""
    path = one.home("lyon") / "keys" / key
    path.chmod(0o640)
    lyon = one.join("lyon")
    assert lyon.ended() == 2
    assert f"chmod 600 {path}" in lyon.text and len(lyon.lines) == 1


@pytest.mark.parametrize("file", ["tls.key", "node.key", "tls.crt"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAA=="])
def test_a_sites_key_that_cannot_be_used(one, file, content):
    """Missing, empty, damaged: the file is named."""
    path = one.home("lyon") / "keys" / file
    path.unlink() if content is None else path.write_bytes(content)
    lyon = one.join("lyon")
    assert lyon.ended() == 2
    assert str(path) in lyon.text and len(lyon.lines) == 1


@pytest.mark.parametrize("file", ["server.key", "server.crt"])
def test_a_servers_key_that_cannot_be_used(one, file):
    """The file is named."""
    (one.folder / "keys" / file).write_bytes(b"")
    server = one.start("server", one.folder / "server.yaml")
    assert server.ended() == 2
    assert file in server.text and len(server.lines) == 1


def test_the_authoritys_certificate_is_missing(one):
    """At a site: put back the files of the enrolment."""
    (one.home("lyon") / "ca.crt").unlink()
    lyon = one.join("lyon")
    assert lyon.ended() == 2
    assert "put back the files of the enrolment" in lyon.text and len(lyon.lines) == 1


def test_a_kit_that_is_used_twice(one):
    """The folder is already enrolled, and stays as it is."""
    home = one.home("lyon")
    before = (home / "client.yaml").read_bytes()
    kit, data = one.folder / "kits" / "lyon.tar.gz", one.root / "data"
    code, text = said(one, "knowmine-client", "enrol", kit, "--data", data, "--home", home)
    assert (code, "already enrolled" in text) == (2, True)
    assert (home / "client.yaml").read_bytes() == before


def test_nobody_is_admitted(one):
    """The server says what comes first."""
    (one.folder / "sites" / "lyon.json").unlink()
    server = one.start("server", one.folder / "server.yaml")
    assert server.ended() == 2
    assert "knowmine-server admit" in server.text and len(server.lines) == 1


def test_a_run_of_another_plan(one):
    """An unfinished run is not mixed with another."""
    server = one.serve()
    one.logged("listening")
    server.kill()
    change(one.folder / "server.yaml", {"plan": {"seed": 7}})
    server = one.start("server", one.folder / "server.yaml")
    assert server.ended() == 2
    assert "another plan" in server.text and len(server.lines) == 1


def test_a_run_that_is_done(one):
    """It is not done again."""
    programs = [one.serve(), one.join("lyon")]
    assert [program.ended() for program in programs] == [0, 0]
    server = one.start("server", one.folder / "server.yaml")
    assert server.ended() == 2
    assert "is done" in server.text and one.result() == [2.0]


def test_two_servers_in_one_folder(one):
    """The second leaves at once."""
    one.serve()
    second = one.start("server", one.folder / "server.yaml")
    assert second.ended() == 2
    assert "another process" in second.text and len(second.lines) == 1
