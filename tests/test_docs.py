"""The pages under docs/ say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECURITY = ROOT / "docs" / "security.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_what_the_models_say():
    """After a change of settings: .venv/bin/python docs/make_settings.py."""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text() == module.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    """Links and pictures of a page point to files that are there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


NAMED = sorted(set(re.findall(r"`((?:\w+/)+\w+\.\w+)(?:::(\w+))?`", SECURITY.read_text())))


@pytest.mark.parametrize(("file", "test"), NAMED, ids="::".join)
def test_what_the_security_page_points_to_is_there(file, test):
    """A file that does it, and a test that tries."""
    assert (ROOT / file).is_file()
    assert not test or f"def {test}(" in (ROOT / file).read_text()
