"""What all descriptions share: no unknown field, and one line for a value that cannot be."""

from pydantic import ConfigDict

from etude.errors import EtudeError

FORBID = ConfigDict(extra="forbid")


def require(holds: bool, where: str, found: str, expected: str) -> None:
    """Raise EtudeError unless `holds`."""
    if not holds:
        raise EtudeError(where, found, expected)
