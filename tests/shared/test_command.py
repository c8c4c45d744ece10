"""What all commands share: they teach by example, say as much as asked, and complete in shells."""

import re
import shlex
from contextlib import suppress

import pytest

from knowmine.client.cli import app as client
from knowmine.deploy.cli import app as simulate
from knowmine.deploy.commands import app as server
from knowmine.shared import talk
from knowmine.shared.command import command_of, commands_in, run_command
from knowmine.shared.log import open_log
from knowmine.shared.version import code_digest

APPS = {"knowmine-client": client, "knowmine-server": server, "knowmine-simulate": simulate}
COMMANDS = {
    name: command
    for program, app in APPS.items()
    for name, command in commands_in(command_of(app), program)
}


@pytest.fixture(autouse=True)
def usual():
    """Every test begins and ends with a command that says the usual."""
    talk.set_level(talk.USUAL)
    yield
    talk.set_level(talk.USUAL)


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
    """Nobody has to guess what goes where."""
    told = {param.name: getattr(param, "help", None) for param in COMMANDS[name].params}
    assert not [name for name, help_ in told.items() if not help_]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet_or_verbose(name):
    """-q and -v stand in the help of each."""
    known = {option for param in COMMANDS[name].params for option in param.opts}
    assert {"-q", "--quiet", "-v", "--verbose"} <= known


@pytest.mark.parametrize("name", APPS)
def test_every_command_completes_in_bash(name, monkeypatch, capsys):
    """The script that a shell loads asks the command itself."""
    monkeypatch.setenv(f"_{name.upper().replace('-', '_')}_COMPLETE", "source_bash")
    with pytest.raises(SystemExit) as left:
        run_command(APPS[name], name)
    assert left.value.code in (0, None)
    assert f"complete -o default -F _{name.replace('-', '_')}_completion" in capsys.readouterr().out


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
    talk.set_level(talk.VERBOSE)
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
