"""Write docs/settings.md from the settings models, so that the page cannot lie.

.venv/bin/python docs/make_settings.py
"""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from knowmine.deploy.settings import SimulationSettings

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings of a simulation

`knowmine-simulate SETTINGS.yaml` reads these keys; all are optional, and flags override them.
An unknown key or an impossible value is refused with the file, the key and the repair. This page
is written by `docs/make_settings.py`.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(section(name, field) for name, field in fields(SimulationSettings))


def section(path: str, field: FieldInfo) -> str:
    """A group of settings as a table, its inner groups behind it."""
    kind = model_in(field)
    assert kind is not None, f"{path} is no group of settings"
    inner = [(f"{path}.{name}", value) for name, value in fields(kind)]
    rows = [(name, value) for name, value in inner if model_in(value) is None]
    text = f"\n## {path}\n\n{field.description}\n"
    if rows:
        text += "\n| key | default | what it is |\n|---|---|---|\n"
        text += "".join(
            f"| `{name.removeprefix(path + '.')}` | {shown(value)} | {value.description} |\n"
            for name, value in rows
        )
    groups = [(name, value) for name, value in inner if model_in(value) is not None]
    return text + "".join(section(name, value) for name, value in groups)


def shown(field: FieldInfo) -> str:
    """A default as one writes it in YAML."""
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == {}:
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
