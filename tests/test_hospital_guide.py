"""The commands of docs/hospital-guide.md do what the guide says; others are spelled right."""

import json
import re
import shlex
import shutil
import zipfile

import click
import pytest
import typer

from knowmine.client.cli import app as client
from knowmine.deploy.commands import app as server
from tests.followed import commands_of, make_tiny, masked, page, said, started

COMMANDS = commands_of("hospital-guide.md")
TRIAL = COMMANDS[:6]
OURS = [line for line in (*COMMANDS, *commands_of("first-day.md")) if line.startswith("knowmine-")]

# What the test changes of the guide's trial, to end in seconds, beside `TINY` and a free port.
FEWER_IMAGES = ("--images 40 --masks 24", "--images 8 --masks 8")


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
