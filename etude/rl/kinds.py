"""What makes and plays the problems of an environment, by its name: one row a kind.

A name that ends in `:` stands for all that begin with it. Whatever has no row is a family of
`etude.data.tasks`, played by `etude.rl.tasks`. A row names a module, imported when it is asked for,
with some of these functions; the plain ones take the place of those it lacks:

    ready(ask): raises an EtudeError where something that it needs is missing
    draw(ask, rng, level, *, held) -> Item
    group(problem, count, toolbox, *, format_penalty) -> Sequence[Environment]
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

KINDS: dict[str, str] = {
    "unit": "etude.rl.env_code",
    "math": "etude.rl.env_math",
    "verifiers:": "etude.rl.env_verifiers",
    "mcp:": "etude.rl.env_mcp",
    "user:": "etude.rl.env_user",
}


def function(name: str, what: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the kind behind an environment's name does instead of `plain`, if it does.

    Args:
        name: as in a recipe, e.g. `unit` or `verifiers:gsm8k`.
        what: `ready`, `draw` or `group`.
        plain: what task families do.
    """
    head = name.partition(":")[0] + ":" if ":" in name else name
    return getattr(import_module(KINDS[head]), what, plain) if head in KINDS else plain
