"""The checker of annotations that `conftest.py` turns on; an int passes for a float."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

CONF = BeartypeConf(is_pep484_tower=True)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check calls of a function; one whose annotations cannot be checked stays as it is."""
    try:
        return beartype(conf=CONF)(function)
    except BeartypeDecorHintException:  # for example a Protocol
        return function
