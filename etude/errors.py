"""The one error a user sees: where, what was found, what was expected, what to do next."""

import difflib
from collections.abc import Iterable


class EtudeError(Exception):
    """Bad input or a fault of the machine, told in one line.

    Anything else that escapes is a bug of etude.

    Args:
        where: file, recipe key, tensor name or argument the error speaks of.
        found: what is there.
        expected: what should be there, if that is not plain from `found`.
        do: what the user can do next.
        code: exit status of the command line; 2 for a wrong request, 1 for a failure while working.
    """

    def __init__(
        self, where: str, found: str, expected: str = "", do: str = "", *, code: int = 2
    ) -> None:
        self.where, self.found, self.expected, self.do, self.code = where, found, expected, do, code
        super().__init__(str(self))

    def __str__(self) -> str:
        """One line, whatever the parts hold."""
        tail = f", expected {self.expected}" if self.expected else ""
        line = f"{self.where}: {self.found}{tail}" + (f"; {self.do}" if self.do else "")
        return " ".join(line.split())


def closest(name: str, names: Iterable[str]) -> str:
    """Return "did you mean X?" for the nearest of `names`, or "" when none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""
