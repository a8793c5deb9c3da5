"""A toolbox whose servers stay warm for all tests: each takes seconds to start."""

import pytest

from etude.rl.toolbox import Toolbox


@pytest.fixture(scope="session")
def box():
    with Toolbox() as made:
        yield made
