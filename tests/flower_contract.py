"""Whether the Flower that is installed still has what an adapter uses, by name and signature."""

import ast
import importlib
import inspect
from pathlib import Path


def imports_of(path: Path) -> list[tuple[str, str]]:
    """Module and name of all that a file imports from Flower."""
    return [
        (str(node.module), alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr"
        for alias in node.names
    ]


def missing(module: str, name: str) -> str:
    """What is wrong with an import, or nothing."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return f"module {module} is gone ({error})"
    return "" if hasattr(found, name) else f"{module}.{name} is gone"


def changed(thing: object, expected: str) -> str:
    """What is wrong with a callable that we call as `expected` says, or nothing.

    expected: the parameters' names in order, such as "request, state". More that have a default
    may follow.
    """
    found = list(inspect.signature(thing).parameters.values())  # type: ignore[arg-type]
    names = [name.strip() for name in expected.split(",") if name.strip()]
    given = [p.name for p in found if p.name != "self"]
    rest = [p for p in found if p.name not in (*names, "self")]
    needed = [
        p.name
        for p in rest
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if given[: len(names)] == names and not needed:
        return ""
    return (
        f"{getattr(thing, '__qualname__', thing)} takes ({', '.join(given)}); expected ({expected})"
    )
