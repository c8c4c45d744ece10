"""Write docs/commands.md from the commands themselves, so that the page cannot lie.

.venv/bin/python docs/make_commands.py
"""

import re
from pathlib import Path

import click

from knowmine.client.cli import app as client
from knowmine.deploy.cli import app as simulate
from knowmine.deploy.commands import app as server
from knowmine.shared.command import command_of, commands_in

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

One program for each person. Every command takes `--help`, which ends in an example, `-q` (say only
what went wrong, and results) and `-v` (say every event of the log too, as JSON on standard error,
and where an error comes from). `--version` gives digests of the code and of the list of what may
leave a site, for two machines to compare. Colours are for terminals only; `NO_COLOR=1` turns them
off there too. This page is written by `docs/make_commands.py`.

| exit code | what it says |
|---|---|
| 0 | done |
| 2 | wrong use or settings; `check` found an error |
| 3 | the run failed or paused, or some inputs did |
| 4 | refused: by a policy, a peer, or a signature that is wrong |
| 130 | interrupted; what was finished is kept |

`knowmine-client --install-completion` (and the same for the two others) lets bash, zsh, fish and
PowerShell complete commands and options, from the next shell on (in zsh, the first Tab of a shell
only loads it: press it again).
"""
PROGRAMS = (
    ("knowmine-client", "A hospital's side: images stay here, weights leave.", client),
    ("knowmine-server", "The coordinator's side: weights, counts and means, no image.", server),
    ("knowmine-simulate", "Many hospitals on one machine, for the researcher.", simulate),
)
EVERYWHERE = {"quiet", "verbose", "help", "version", "install_completion", "show_completion"}


def page() -> str:
    """The whole page."""
    text = HEAD
    for program, what, app in PROGRAMS:
        text += f"\n## {program}\n\n{what}\n"
        for name, command in commands_in(command_of(app), program):
            text += section(name, command, alone=name == program)
    return text


def section(name: str, command: click.Command, *, alone: bool) -> str:
    """A command: what it does, an example, its arguments and options."""
    words = f"{command.help or ''}\n\n{command.epilog or ''}"
    what, example = re.split(r"Example:\s+", words)
    params = [param for param in command.params if param.name not in EVERYWHERE]
    text = "" if alone else f"\n### {name}\n"
    text += f"\n{tidy(what)}\n\n    {' '.join(example.split())}\n"
    text += "\n| | what it is |\n|---|---|\n" if params else ""
    return text + "".join(line(param) for param in params)


def line(param: click.Parameter) -> str:
    """One argument or option, with its default where it has one that says something."""
    what = (getattr(param, "help", None) or "").replace("|", "\\|")
    if isinstance(param, click.Argument):
        shown = (param.metavar or (param.name or "").upper()).strip("[]")
    else:
        flags = ", ".join([*param.opts, *param.secondary_opts])
        value = "" if getattr(param, "is_flag", False) else f" {value_of(param)}"
        shown = f"{flags}{value}"
    default = param.default
    if default not in (None, False, (), "") and not callable(default) and default is not True:
        what += f" Default: `{default}`."
    if param.required:
        what += " Required."
    return f"| `{shown}` | {what.strip()} |\n"


def value_of(param: click.Parameter) -> str:
    """What stands after an option: a metavar, the choices, or its type."""
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return "\\|".join(str(getattr(choice, "value", choice)) for choice in param.type.choices)
    return {"integer range": "INTEGER"}.get(param.type.name, param.type.name.upper())


def tidy(text: str) -> str:
    """Paragraphs, one line each."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))


if __name__ == "__main__":
    PAGE.write_text(page())
