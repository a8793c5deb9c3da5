"""How amounts are written in a recipe: `250M`, `16k`, `15T` or `2e6` tokens, shares, rates."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

CONFIG = ConfigDict(extra="forbid", populate_by_name=True)
UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_count(value: Any) -> Any:
    """Read `2M`, `1.5k`, `2e6` or a number as a whole count of tokens."""
    if isinstance(value, str) and value and value[-1] in UNITS:
        try:
            return round(float(value[:-1]) * UNITS[value[-1]])
        except ValueError:
            return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(read_count), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(read_count), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


def added(default: Any = None, **how: Any) -> Any:
    """Return a field that is left out of a written recipe where it holds its default.

    So a recipe from before the field keeps its identity, and what it has trained stays its own.
    """
    if "default_factory" in how:
        return Field(exclude_if=lambda value: value == how["default_factory"](), **how)
    return Field(default=default, exclude_if=lambda value: value == default, **how)
