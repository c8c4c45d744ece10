"""The commands of docs/hospital-guide.md do what the guide says; others are spelled right."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
import typer
import yaml

from knowmine.client.cli import app as client
from knowmine.deploy.commands import app as server

DOCS = Path(__file__).parents[1] / "docs"


def page(name):
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def commands_of(name):
    """The lines that a page asks to type."""
    blocks = re.findall(r"^```console\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


COMMANDS = commands_of("hospital-guide.md")
TRIAL = COMMANDS[:6]
OURS = [line for line in (*COMMANDS, *commands_of("first-day.md")) if line.startswith("knowmine-")]

# What the test changes of the guide's trial, to end in seconds: labels alone (so no SAM), a tiny
# untrained network, one round of two steps on eight images, and a port that is free.
FEWER_IMAGES = ("--images 40 --masks 24", "--images 8 --masks 8")
TINY = {
    "plan": {
        "method": "supervised",
        "model": {"image_px": 32, "pretrained": False},
        "training": {"steps": 2, "batch": 2},
    },
    "run": {"rounds": 1},
}


@pytest.mark.parametrize("line", OURS)
def test_every_command_of_the_pages_is_spelled_right(line):
    """Command, arguments and options are known; nothing is run."""
    program, *words = shlex.split(line.partition(" > ")[0])
    group = typer.main.get_command({"knowmine-server": server, "knowmine-client": client}[program])
    if words == ["--version"]:
        return
    assert isinstance(group, click.Group)
    command = group.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    assert context.args == []


def test_the_trial_has_six_commands():
    """From an empty folder to a model, as the guide promises."""
    assert [shlex.split(line)[0] for line in TRIAL] == [
        "python",
        "knowmine-server",
        "knowmine-client",
        "knowmine-client",
        "knowmine-server",
        "knowmine-server",
    ]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """The folder after the guide's six commands, word for word but for what is noted above.

    And what the server said, and each site.
    """
    folder = tmp_path_factory.mktemp("trial")
    draw, provision, first, second, admit, run = TRIAL
    assert FEWER_IMAGES[0] in draw
    said(draw.replace(*FEWER_IMAGES), folder)
    said(provision, folder)
    make_tiny(folder / "federation.yaml")
    said(provision.replace(" --example", ""), folder)

    sites = [started(line, folder) for line in (first, second)]
    try:
        for site in sites:
            assert "Send" in site.stdout.readline()
        said(admit, folder)
        ending = said(run, folder)
        told = [site.communicate(timeout=120)[0] for site in sites]
    finally:
        for site in sites:
            site.kill()
    return folder, ending, told


def test_the_trial_ends_in_a_model_of_both_sites(trial):
    """As the guide shows it."""
    folder, ending, told = trial
    summary = json.loads((folder / "fed" / "run" / "summary.json").read_text())
    assert (summary["status"], summary["sites"]) == ("done", ["bergen", "lyon"])
    assert (folder / "fed" / "run" / "model.safetensors").is_file()
    assert "Done: 1 rounds" in ending and "bergen" in ending
    for lines in told:
        assert "round 1: asked to train" in lines
        assert "the end: the run is over" in lines


def test_the_record_of_the_trial_is_shown_as_docs_audit_shows_it(trial):
    """Every command there, in its order; only numbers, hashes and dates may differ."""
    shown = re.findall(r"^```\n(\$ .*?)^```", page("audit.md"), re.MULTILINE | re.DOTALL)
    seen = transcript(trial[0])
    assert masked("\n".join(shown)) == masked(seen), seen


def transcript(folder):
    """What a site and then an auditor type and read, with the record whole, edited and cut off."""
    site, auditor = folder / "lyon", folder / "auditor"
    verify = "knowmine-client audit verify receipts.jsonl --key audit.pub"
    held = f"{verify} --server-key server.crt --rounds rounds"
    told = [
        typed("knowmine-client audit show client.yaml", site),
        typed("knowmine-client audit export client.yaml lyon-audit.zip", site),
    ]
    with zipfile.ZipFile(site / "lyon-audit.zip") as parcel:
        parcel.extractall(auditor)
    shutil.copy(folder / "fed" / "keys" / "server.crt", auditor)
    shutil.copytree(folder / "fed" / "run" / "rounds", auditor / "rounds")
    record = auditor / "receipts.jsonl"
    whole = record.read_bytes().splitlines(keepends=True)
    told.append(typed(verify, auditor))
    record.write_bytes(
        b"".join([*whole[:4], whole[4].replace(b'"bytes":', b'"bytes":1', 1), *whole[5:]])
    )
    told.append(typed(verify, auditor, code=4))
    record.write_bytes(b"".join(whole))
    told.append(typed(held, auditor))
    record.write_bytes(b"".join(whole[:-6]))
    told.append(typed(held, auditor, code=4))
    return "\n".join(told)


def typed(line, folder, code=0):
    """A command and what it prints, as a page shows them."""
    return f"$ {line}\n{said(line, folder, code)}"


def masked(text):
    """Numbers and hashes as N, and no more than one space: what is left is what a page promises."""
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", re.sub(r"[ \n]+", " ", text)).strip()


def make_tiny(file):
    """The example's file, made small."""
    values = yaml.safe_load(file.read_text()) | TINY
    with socket.create_server(("127.0.0.1", 0)) as free:
        values["server"]["port"] = free.getsockname()[1]
    file.write_text(yaml.safe_dump(values))


def environment():
    """The tests' own environment comes first, as after `activate`."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": commands, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def started(line, folder):
    """A command of the guide, running."""
    return subprocess.Popen(
        shlex.split(line),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(line, folder, code=0):
    """What a command of the guide prints; it has to end with this code."""
    command = started(line, folder)
    output, _ = command.communicate(timeout=400)
    assert command.returncode == code, output
    return output
