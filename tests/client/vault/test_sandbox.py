"""Neither process of a site can do the other's part: real attacks from inside each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from knowmine.client.storage.encryption import Seal
from knowmine.client.vault.sandbox import Isolation

HERE = Path(__file__).parent
AS_INSTALLED = {key: value for key, value in os.environ.items() if "NUM_THREADS" not in key}
"""The environment of a hospital, without any setting of thread counts."""
WAYS_OUT = (
    "connect",
    "datagram",
    "bind",
    "dns",
    "raw socket",
    "abstract socket",
    "path socket",
    "another's socket",
    "another's network",
    "io_uring",
    "private keys",
)
WAYS_IN = (
    "open",
    "list",
    "through /proc",
    "through the vault",
    "link",
    "hard link",
    "mount",
    "moved elsewhere",
    "moved",
)
WAYS_TO_CHANGE = ("overwritten", "removed", "joined", "its folder replaced")
CHANGES = (
    "the vault's settings, overwritten",
    "the vault's settings, replaced",
    "the vault's code",
    "the state folder, replaced",
    "the state folder, joined",
)
TARGETS = {
    "an image": "data/images/mueller-anna.png",
    "the project's key": "state/vault-keys/project.key",
    "the keys of files": "state/vault-keys/files.keys",
    "a sealed embedding": "cache/embeddings/sealed/one.npy",
    "a reviewed mask": "state/site/masks_reviewed/mueller-anna.png",
}
"""Files of a hospital that are the vault's alone."""


def settings_file(folder, isolation):
    """Settings of a hospital with a key, and a data folder with one image."""
    (folder / "keys").mkdir()
    (folder / "keys" / "site.key").write_text("secret")
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "data" / "images" / "mueller-anna.png").write_bytes(b"pixels")
    (folder / "state").mkdir()
    values = {
        "federation": "trial",
        "site": "lyon",
        "network": {"server": "localhost:1"},
        "data": "data",
        "isolation": isolation,
        "sam": {"cache": str(folder / "cache")},
    }
    (folder / "client.yaml").write_text(yaml.safe_dump(values))
    return folder / "client.yaml"


def attacked_from_the_vault(folder, isolation):
    """What a hostile reader of images could reach of listeners that really listen."""
    file = settings_file(folder, isolation)
    with (
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0{folder.name}-{os.getpid()}")
        path.bind(str(folder / "other"))
        for listener in (tcp, abstract, path):
            listener.listen()
        targets = {
            "tcp": tcp.getsockname()[1],
            "abstract": f"{folder.name}-{os.getpid()}",
            "path": str(folder / "other"),
            "pid": os.getpid(),
            "fd": tcp.fileno(),
        }
        (folder / "state" / "targets.json").write_text(json.dumps(targets))
        command = [sys.executable, str(HERE / "hostile_vault.py"), "--settings", str(file)]
        command += ["--socket", str(folder / "airlock")]
        # An open standard input stands for a courier that lives.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=AS_INSTALLED
        ) as keeper:
            assert keeper.stderr is not None
            said = keeper.stderr.read()
            code = keeper.wait(60)
    assert code == 2, said  # the DataError that ends the attack
    found = json.loads((folder / "state" / "escapes.json").read_text())
    return found["ways"], Isolation(**found["shut"]), said


@pytest.fixture(scope="module")
def vault_attack(tmp_path_factory):
    """An attack from inside a vault that shut itself in by what this system offers."""
    return attacked_from_the_vault(tmp_path_factory.mktemp("vault"), "auto")


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_way_leads_out_of_the_vault(vault_attack, way):
    """Each is shut, or else the vault found by itself that it is not, and said so."""
    ways, isolation, _ = vault_attack
    shut = isolation.no_keys if way == "private keys" else isolation.no_sockets
    assert ways[way].startswith("shut") == shut


def test_the_vault_says_why_where_it_is_not_shut_in(vault_attack):
    """On a system that gives all three means nothing is missing; elsewhere the keeper says why."""
    _, isolation, said = vault_attack
    assert bool(isolation.missing()) == ("the vault has" in said)


def test_the_same_attacks_succeed_where_isolation_is_off(tmp_path):
    """So it is the isolation that shuts the ways, and not this machine."""
    ways, isolation, _ = attacked_from_the_vault(tmp_path, "off")
    opened = {way for way, result in ways.items() if result == "open"}
    assert {"connect", "bind", "abstract socket", "path socket", "private keys"} <= opened
    assert not isolation.no_sockets


def threads_after(statements):
    """How many threads a fresh process has once it has run `statements`."""
    code = f"{statements}\nimport os; print(len(os.listdir('/proc/self/task')))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=AS_INSTALLED, capture_output=True, check=True, timeout=60)
    return int(said.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["cli", "vault.launcher", "vault.process"])
def test_a_process_that_is_to_be_shut_in_has_one_thread(module):
    """Rules and namespaces do not hold older threads."""
    assert threads_after(f"import knowmine.client.{module}") == 1


@pytest.mark.parametrize("module", ["cli", "vault.process"])
def test_an_entry_point_starts_no_thread_with_numpy_either(module):
    """Its command may import NumPy before it shuts itself in."""
    begin = f"import sys; sys.argv = ['trial', '--help']\nfrom knowmine.client.{module} import main"
    run = "try: main()\nexcept SystemExit: import numpy"
    assert threads_after(f"{begin}\n{run}") == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to start threads for")
def test_numpy_by_itself_starts_threads():
    """Else the test before this one could not fail."""
    assert threads_after("import numpy") > 1


def attacked_from_the_courier(folder, isolation):
    """What a hostile process with the network could read and change."""
    file = settings_file(folder, isolation)
    # A state folder that is in use, as its vault leaves it.
    seal = Seal(folder / "state" / "vault-keys")
    for name, content in (
        ("cache/embeddings/sealed/one.npy", seal.seal("embedding", "one", b"numbers")),
        ("state/site/masks_reviewed/mueller-anna.png", b"mask"),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    targets = [str(folder / name) for name in TARGETS.values()]
    command = [sys.executable, str(HERE / "hostile_courier.py"), str(file)]
    command += [str(folder / "got.json"), *targets]
    subprocess.run(command, check=True, timeout=120, env=AS_INSTALLED)
    got = json.loads((folder / "got.json").read_text())
    for part in ("before", "ways"):
        got[part] = {what: got[part][str(folder / name)] for what, name in TARGETS.items()}
    return got


@pytest.fixture(scope="module")
def courier_attack(tmp_path_factory):
    """An attack from inside a courier that gave up what this system lets it give up."""
    return attacked_from_the_courier(tmp_path_factory.mktemp("courier"), "auto")


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("what", TARGETS)
def test_the_courier_cannot_read_what_is_the_vaults(courier_attack, what, way):
    """It could before it gave it up; afterwards each way is shut, or it says that none is."""
    assert courier_attack["before"][what] > 0
    assert courier_attack["ways"][what][way].startswith("shut") == (not courier_attack["missing"])


@pytest.mark.parametrize("way", WAYS_TO_CHANGE)
@pytest.mark.parametrize("what", TARGETS)
def test_the_courier_cannot_change_what_is_the_vaults(courier_attack, what, way):
    """Nor put a folder of its own in its place."""
    assert courier_attack["ways"][what][way].startswith("shut") == (not courier_attack["missing"])


@pytest.mark.parametrize("change", CHANGES)
def test_the_courier_cannot_change_what_the_vault_goes_by(courier_attack, change):
    """A vault that is started again finds settings, code and folders as they were."""
    assert courier_attack["changes"][change].startswith("shut") == (not courier_attack["missing"])


def test_the_couriers_attacks_succeed_where_isolation_is_off(tmp_path):
    """So it is the isolation that shuts the ways; only root may mount, wherever it is."""
    got = attacked_from_the_courier(tmp_path, "off")
    ways = {way for found in got["ways"].values() for way, result in found.items()
            if result != "open"}  # fmt: skip
    assert ways <= {"mount", "through the vault"}
    assert set(got["changes"].values()) == {"open"}


def test_what_the_vault_went_by_is_gone_with_it(courier_attack):
    """The courier may not remove it, so the vault does."""
    assert not Path(courier_attack["settings"]).parent.exists()


BESIDE_A_FOLDER_WITHOUT_NAMES = """
import ctypes, struct, sys
from pathlib import Path
from knowmine.client.vault.sandbox import hide_folders
# Root lists any folder; without its capabilities it is like others.
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
print(hide_folders([Path(sys.argv[1])]))
"""


def test_a_way_that_cannot_be_listed_is_said(tmp_path):
    """A home of mode 0711 above the images: nothing is hidden, and the reason names it."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    home.chmod(0o311)
    command = [sys.executable, "-c", BESIDE_A_FOLDER_WITHOUT_NAMES, str(home / "data")]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    home.chmod(0o755)
    assert f"folders not hidden (cannot list {home}: Permission denied)" in done.stdout
