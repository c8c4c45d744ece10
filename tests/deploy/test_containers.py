"""Containers and units keep what the guide says of them. Linters look further: `make lint-deploy`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
each_service = pytest.mark.parametrize("name", SERVICES)
each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
each_dockerfile = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)


def service_of(unit):
    """Keys of a unit's [Service]; of one that stands there twice, the last."""
    section = unit.read_text().partition("\n[Service]\n")[2].partition("\n[Install]\n")[0]
    lines = [line for line in section.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def instructions(file):
    """Words of each instruction of a Dockerfile, long lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


@each_service
def test_a_container_has_no_powers(name):
    """No root, no capabilities, no way to more, nothing to write but what is mounted."""
    service = SERVICES[name]
    assert (service["user"], service["read_only"]) == ("10001:10001", True)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_are_mounted_to_be_read():
    """A client cannot change the hospital's data."""
    for name in ("client", "client-gpu"):
        assert any(volume.endswith(":/data:ro") for volume in SERVICES[name]["volumes"])


def test_only_the_server_opens_a_port():
    """A hospital connects outwards."""
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["server"]


@each_service
def test_a_compose_file_builds_what_is_there(name):
    """Context and Dockerfile exist."""
    build = SERVICES[name]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


@each_dockerfile
def test_an_image_ends_as_a_user_with_a_pinned_base_and_a_healthcheck(file):
    """What each image promises."""
    words = instructions(file)
    bases = {value.split()[0] for word, value in words if word == "FROM"}
    assert bases == {"python:3.12.11-slim-bookworm"}
    assert [value for word, value in words if word == "USER"] == ["10001:10001"]
    assert sum(word == "HEALTHCHECK" for word, _ in words) == 1


@each_dockerfile
def test_an_image_runs_the_command_of_its_role(file):
    """The entry point is one of the installed commands."""
    role = file.suffix.removeprefix(".")
    entry = [json.loads(value) for word, value in instructions(file) if word == "ENTRYPOINT"]
    assert entry == [[f"knowmine-{role}"]]


@each_dockerfile
def test_an_image_is_built_from_files_that_are_there(file):
    """Each COPY of the first stage has its source."""
    copied = [value.split()[:-1] for word, value in instructions(file) if word == "COPY"]
    assert all((DEPLOY.parent / name).exists() for names in copied for name in names)


@each_unit
def test_a_unit_is_shut_in(unit):
    """The lines that matter most, and systemd's own filters."""
    service = service_of(unit)
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "User": "knowmine",
    }
    assert {key: service.get(key) for key in wanted} == wanted


def test_the_clients_unit_leaves_the_gpu_in_sight():
    """Each of these hides its devices, ProtectClock in older systemd by way of DeviceAllow."""
    service = service_of(DEPLOY / "systemd" / "knowmine-client@.service")
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy"} & service.keys()


@each_unit
def test_a_mistake_of_settings_is_not_tried_again_for_ever(unit):
    """Exit codes 2 and 4 need a person."""
    assert service_of(unit)["RestartPreventExitStatus"].split() == ["2", "4", "130"]


@each_unit
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_finds_no_fault(unit, tmp_path):
    """`systemd-analyze verify`, with the installed commands put in place of /opt/knowmine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("knowmine-server", "knowmine-client"):
        (commands / name).symlink_to(sys.executable)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/knowmine/bin", str(commands)))

    ran = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
