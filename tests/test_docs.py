"""The pages under docs/ say what the code says."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECURITY = ROOT / "docs" / "security.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["settings", "commands", "architecture"])
def test_a_page_made_from_the_code_is_what_the_code_says(name):
    """After a change of settings or commands: .venv/bin/python docs/make_NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/make_{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / f"{name}.md").read_text() == module.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    """Links and pictures of a page point to files that are there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@functools.cache
def said():
    """Every text in the code, a line each; of an f-string its parts."""
    folders = ("client", "deploy", "server", "shared")
    sources = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return "\n".join(
        node.value
        for file in sources
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = [
    words
    for line in TROUBLE.splitlines()
    if line.startswith("| `")
    for words in re.findall(r"`([^`]+)`", line.split("|")[1])
]


@pytest.mark.parametrize("words", MESSAGES)
def test_every_message_that_is_explained_is_one_that_the_code_says(words):
    """Word for word, so that a search finds it."""
    assert words in said()


NAMED = sorted(set(re.findall(r"`((?:\w+/)+\w+\.\w+)(?:::(\w+))?`", SECURITY.read_text())))


@pytest.mark.parametrize(("file", "test"), NAMED, ids="::".join)
def test_what_the_security_page_points_to_is_there(file, test):
    """A file that does it, and a test that tries."""
    assert (ROOT / file).is_file()
    assert not test or f"def {test}(" in (ROOT / file).read_text()
