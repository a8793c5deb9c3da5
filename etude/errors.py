"""The one error a user sees: where, what was found, what was expected, what to do next.

And the checks of plain values that raise it.
"""

import difflib
import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any


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


def shown(value: Any) -> str:
    """A value in few letters, for an error."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: Any, least: float = -math.inf) -> int:
    """Read any kind of integer; an `EtudeError` tells of another value, or one below `least`."""
    try:
        found = operator.index(value)
    except TypeError as error:
        raise EtudeError(name, shown(value), "a whole number") from error
    if found < least:
        raise EtudeError(name, shown(found), f"at least {least}")
    return found


def number(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Read any kind of finite number; an `EtudeError` tells of another value, or one out of bounds.

    Args:
        name: what the value is of.
        value: a number, perhaps a fraction or an integer beyond all floats.
        low, high: bounds, themselves allowed.
        open_low: the lower one is not.
    """
    try:
        found = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        found = math.inf
    # infinity is no bound that anybody may ask for, and NaN compares false
    if not (math.isfinite(found) and low <= found <= high) or (open_low and found == low):
        known = "at least 0" if high == math.inf else f"from {low} to {high}"
        more = f", {low} apart" if open_low else ""
        raise EtudeError(name, shown(value), f"a finite number {known}{more}")
    return found
