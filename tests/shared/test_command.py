"""What all commands share: they teach by example, say as much as asked, and complete in shells."""

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select

import pytest

from knowmine.client.cli import app as client
from knowmine.deploy.cli import app as simulate
from knowmine.deploy.commands import app as server
from knowmine.shared import verbosity
from knowmine.shared.command import command_of, commands_in, run_command
from knowmine.shared.log import open_log
from knowmine.shared.version import code_digest

APPS = {"knowmine-client": client, "knowmine-server": server, "knowmine-simulate": simulate}
BIN = Path(sys.executable).parent
COMMANDS = {
    name: command
    for program, app in APPS.items()
    for name, command in commands_in(command_of(app), program)
}


def typed(shell, keys):
    """Types half a command on a terminal, and these keys; gives what the terminal shows."""

    def show(environment):
        terminal, inner = pty.openpty()
        running = subprocess.Popen(
            [shell, "-i"],
            start_new_session=True,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment,
        )
        try:
            os.write(terminal, b"PS1='rea''dy> '\n")
            assert "ready> " in shown(terminal, "ready> ")
            os.write(terminal, b"knowmine-client chec" + keys)
            return shown(terminal, "check ")
        finally:
            running.kill()
            running.wait()
            os.close(terminal)
            os.close(inner)

    return show


def shown(terminal, words):
    """What comes until these words, or until nothing comes for long."""
    seen, deadline = "", time.monotonic() + 30
    while words not in seen and time.monotonic() < deadline:
        if select([terminal], [], [], 0.5)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace").replace("\a", "")
    return seen


def asked_fish(environment):
    """What fish would offer; it asks its terminal too much to be typed at."""
    offer = ["fish", "-c", 'complete -C "knowmine-client chec"']
    return subprocess.run(
        offer, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


# In zsh the first Tab of a shell only loads typer's function; docs/commands.md says so.
TABBED = {"bash": typed("bash", b"\t"), "zsh": typed("zsh", b"\t\t"), "fish": asked_fish}


@pytest.fixture(autouse=True)
def usual():
    """Every test begins and ends with a command that says the usual."""
    verbosity.set_level(verbosity.USUAL)
    yield
    verbosity.set_level(verbosity.USUAL)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_is_spelled_right(name):
    """It names the command itself, and its options and arguments are known."""
    command = COMMANDS[name]
    told = " ".join(f"{command.help} {command.epilog or ''}".split())
    example = re.search(r"Example: (.+)$", told)
    assert example, told
    words = shlex.split(example[1])
    own = name.split()
    assert words[: len(own)] == own
    assert command.make_context(name, words[len(own) :]).args == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_is_explained(name):
    """A reader need not guess what goes where."""
    told = {param.name: getattr(param, "help", None) for param in COMMANDS[name].params}
    assert not [name for name, help_ in told.items() if not help_]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet_or_verbose(name):
    """-q and -v stand in the help of each."""
    known = {option for param in COMMANDS[name].params for option in param.opts}
    assert {"-q", "--quiet", "-v", "--verbose"} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_a_paragraph_of_help_is_broken_by_the_terminal_alone(name):
    """A line that ends where the source's did leaves ragged text."""
    assert not re.search(r"[^\n]\n[^\n]", str(COMMANDS[name].help))


@pytest.mark.parametrize("shell", TABBED)
def test_tab_completes_a_command_in_a_real_shell(shell, tmp_path):
    """Installed as the help says, in a new shell: `chec` and Tab are `check`."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    here = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    told = {**os.environ, "HOME": str(tmp_path), "PATH": here, "TERM": "dumb"}
    told.pop("XDG_CONFIG_HOME", None)
    # `; true`: a shell that replaced itself by the command could not be seen by it.
    install = "knowmine-client --install-completion; true"
    subprocess.run([shell, "-c", install], env=told, check=True, capture_output=True, timeout=60)
    assert "check" in TABBED[shell](told)


@pytest.mark.parametrize("words", [["--help"], ["chekc"]])
def test_a_pipe_gets_no_colours(words, monkeypatch, capsys):
    """Nor any other escape; a word that is nearly a command is told once."""
    monkeypatch.setattr("sys.argv", ["knowmine-client", *words])
    with suppress(SystemExit):
        run_command(client, "knowmine-client")
    out, err = capsys.readouterr()
    assert "check" in out + err and "\x1b" not in out + err
    assert err.count("Did you mean") <= 1


def test_a_log_says_its_lines_where_one_asked_for_them(tmp_path, capsys):
    """As JSON on standard error, and only with -v."""
    with open_log(tmp_path / "usual.jsonl") as log:
        log.event("round", number=1)
    assert capsys.readouterr().err == ""
    verbosity.set_level(verbosity.VERBOSE)
    with open_log(tmp_path / "verbose.jsonl") as log:
        log.event("round", number=2)
    assert capsys.readouterr().err == (tmp_path / "verbose.jsonl").read_text()


def test_an_error_shows_where_it_comes_from_only_if_asked(monkeypatch, capsys):
    """The usual is one line."""
    for words, lines in (([], False), (["-v"], True)):
        monkeypatch.setattr("sys.argv", ["knowmine-server", "status", "no-file.yaml", *words])
        with pytest.raises(SystemExit):
            run_command(server, "knowmine-server")
        assert ("Traceback" in capsys.readouterr().err) is lines


def test_the_codes_digest_follows_every_byte(tmp_path):
    """A changed, renamed or added file of code is another digest; a note beside it is not."""
    (tmp_path / "client").mkdir()
    file = tmp_path / "client" / "round.py"
    seen = []
    for content in (b"a = 1", b"a = 2"):
        file.write_bytes(content)
        seen.append(code_digest(tmp_path))
    seen.append((file.rename(file.with_name("turn.py")), code_digest(tmp_path))[1])
    (tmp_path / "client" / "notes.txt").write_text("nothing")
    assert len(set(seen)) == 3 and code_digest(tmp_path) == seen[-1]
