"""Write docs/settings.md from the settings models, so that the page cannot lie.

.venv/bin/python docs/make_settings.py
"""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from knowmine.client.egress.policy import Policy
from knowmine.client.settings import ClientSettings
from knowmine.deploy.provision.settings import FederationSettings
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.server.settings import ServerSettings

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

A file for each command that reads settings; a site has `policy.yaml` besides. An unknown key or an impossible value is
refused with the file, the key and the repair; flags override keys. Groups that several files share
are described once, where they come first. This page is written by `docs/make_settings.py`.

| file | read by | written by |
|---|---|---|
| [a simulation](#a-simulation) | `knowmine-simulate` | you |
| [federation.yaml](#federationyaml) | `knowmine-server provision` | you; `--example` gives one to begin with |
| [server.yaml](#serveryaml) | `knowmine-server run`, `status` | `provision`, from federation.yaml |
| [client.yaml](#clientyaml) | `knowmine-client run`, `check` and the commands that look into its state | `knowmine-client enrol`; add to it what you need |
"""
FILES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("A simulation", "All keys are optional.", SimulationSettings),
    (
        "federation.yaml",
        "Change it and provision again: what is there stays, `server.yaml` and unused kits follow.",
        FederationSettings,
    ),
    (
        "server.yaml",
        "Paths are relative to the file. Change federation.yaml rather than this.",
        ServerSettings,
    ),
    (
        "client.yaml",
        "Paths are relative to the file. `model` is what this site agreed to train, and no other.",
        ClientSettings,
    ),
    (
        "A site's policy",
        (
            "`policy.yaml`, beside `client.yaml`. All keys are optional, and every default is the "
            "loosest value: see [what leaves a site](audit.md)."
        ),
        Policy,
    ),
)


def page() -> str:
    """The whole page."""
    text, told = HEAD, dict[type[BaseModel], str]()
    for title, what, kind in FILES:
        text += f"\n## {title}\n\n{what}\n"
        alone = [(name, field) for name, field in fields(kind) if model_in(field) is None]
        text += table(alone)
        for name, field in fields(kind):
            text += section(name, field, told)
    return text


def section(path: str, field: FieldInfo, told: dict[type[BaseModel], str]) -> str:
    """A group of settings and its inner groups, or a line where `told` says they were before."""
    kind = model_in(field)
    if kind is None:
        return ""
    text = f"\n### {path}\n\n{field.description}"
    if kind in told:
        return f"{text} Keys as in `{told[kind]}` above.\n"
    told[kind] = path
    inner = fields(kind)
    text += "\n" + table([(name, value) for name, value in inner if model_in(value) is None])
    return text + "".join(section(f"{path}.{name}", value, told) for name, value in inner)


def table(rows: list[tuple[str, FieldInfo]]) -> str:
    """Keys, defaults and what they are."""
    if not rows:
        return ""
    return "\n| key | default | what it is |\n|---|---|---|\n" + "".join(
        f"| `{name}` | {shown(value)} | {value.description} |\n" for name, value in rows
    )


def shown(field: FieldInfo) -> str:
    """A default as one writes it in YAML."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, {}, ()):
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def fields(kind: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The fields of a model, as they stand there."""
    return list(kind.model_fields.items())


def model_in(field: FieldInfo) -> type[BaseModel] | None:
    """The settings model that a field holds, if it holds one."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


if __name__ == "__main__":
    PAGE.write_text(page())
