"""Every recorded case in turn."""

import pytest

from tests.parity.cases import NAMES, Case, read


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return read(request.param)


@pytest.fixture(params=[name for name in NAMES if "mtp.logits" in read(name).told])
def extra(request: pytest.FixtureRequest) -> Case:
    """The cases that have an extra prediction layer."""
    return read(request.param)
