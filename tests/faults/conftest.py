"""A stage for each test, cleared whatever happens."""

import pytest

from tests.faults.nursery import Nursery
from tests.faults.stage import ROOT, Stage, clean_environment


@pytest.fixture(scope="session")
def nursery():
    """What starts the processes."""
    made = Nursery(str(ROOT), clean_environment())
    yield made
    made.close()


@pytest.fixture
def stage(tmp_path, nursery):
    """Makes stages: `stage("lyon", "oslo", run={"rounds": 3})`."""
    made = []

    def make(*sites, **settings):
        made.append(Stage(tmp_path, nursery, *sites, **settings))
        return made[-1]

    yield make
    for each in made:
        each.clear()
