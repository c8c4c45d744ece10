"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Format: TypeAlias = Annotated[str, typer.Option("--format", help="text or json.")]
SettingsFile: TypeAlias = Annotated[
    Path, typer.Argument(help="The server's settings, such as server.yaml.")
]
