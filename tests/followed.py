"""Follow a page of docs/ as a person does: read its commands, type them, look at what comes back."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1] / "docs"

# Labels alone (so no SAM), a tiny untrained network, one round of two steps.
TINY: dict[str, Any] = {
    "plan": {
        "method": "supervised",
        "model": {"image_px": 32, "pretrained": False},
        "training": {"steps": 2, "batch": 2},
    },
    "run": {"rounds": 1},
}


def page(name):
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def commands_of(name):
    """The lines that a page asks to type."""
    blocks = re.findall(r"^```console\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def masked(text):
    """Numbers and hashes as N, and no more than one space: what is left is what a page promises."""
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", re.sub(r"[ \n]+", " ", text)).strip()


def make_tiny(file, changes=TINY):
    """The example's file, made small and given a free port."""
    values = yaml.safe_load(file.read_text()) | changes
    values["server"]["port"] = free_port()
    file.write_text(yaml.safe_dump(values))


def free_port():
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


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
