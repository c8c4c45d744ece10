"""Provisioning from the command line."""

import pytest
from typer.testing import CliRunner

from knowmine.deploy.commands import app
from knowmine.shared.errors import UsageError


def provision(*words):
    return CliRunner().invoke(app, ["provision", *map(str, words)])


def test_the_example_can_be_provisioned_as_it_is(tmp_path):
    """Two kits, and the file to go on from."""
    done = provision(tmp_path / "federation.yaml", "--example", "--out", tmp_path / "fed")

    assert done.exit_code == 0, done.output
    assert (tmp_path / "federation.yaml").is_file()
    kits = sorted(kit.name for kit in (tmp_path / "fed" / "kits").glob("*.tar.gz"))
    assert kits == ["bergen.tar.gz", "lyon.tar.gz"]


def test_the_example_is_never_written_over_a_file(tmp_path):
    """Somebody's own settings stay."""
    (tmp_path / "federation.yaml").write_text("federation: mine")

    done = provision(tmp_path / "federation.yaml", "--example", "--out", tmp_path / "fed")

    assert isinstance(done.exception, UsageError)
    assert (tmp_path / "federation.yaml").read_text() == "federation: mine"


def test_a_missing_file_names_the_way_to_one(tmp_path):
    """The message says what to do."""
    with pytest.raises(UsageError, match="let --example write one"):
        raise provision(tmp_path / "federation.yaml", "--out", tmp_path / "fed").exception
