"""Reasoning traces: questions with written steps and the answer, as plain documents.

GLM-4.5's second mid-training stage reads such texts (arXiv:2508.06471, section 2.3); there a
reasoning model writes the steps, here they are computed, so they are always true.
"""

import random
from collections.abc import Iterator, Mapping

from etude.data.documents import Document
from etude.data.tasks import Item, draw
from etude.data.tasks_steps import STEPS

Mix = Mapping[str, Mapping[int, float]]  # family -> level -> weight

OWN: Mix = {
    "sum": {0: 4, 1: 3, 2: 1},
    "var": {0: 4, 1: 3, 2: 1},
    "rev": {0: 2, 1: 2},
    "sort": {0: 2, 1: 1},
}
GYM: Mix = {name: {0: 0.7, 1: 0.3} for name in STEPS}
LICENCE = "generated"


def traces(
    count: int, seed: int, *, mix: Mix | None = None, held: bool = False
) -> Iterator[Document]:
    """Yield written solutions.

    Args:
        count: how many.
        seed: decides all of them.
        mix: family -> level -> weight; by default our own families and, where the package is
            installed, those of reasoning-gym that `tasks_steps` can write out.
        held: draw from the held-out questions instead, for evaluation.

    Raises:
        EtudeError: an unknown family or level.
    """
    mix = default_mix() if mix is None else mix
    choices = [(name, level) for name, levels in mix.items() for level in levels]
    weights = [mix[name][level] for name, level in choices]
    rng = random.Random(seed)
    for number in range(count):
        name, level = rng.choices(choices, weights)[0]
        item = draw(name, rng, level, held=held)
        yield Document(written(item), "traces", name, f"{name}.{level}.{number}", LICENCE)


def default_mix() -> Mix:
    """Return the families that can be written out on this machine."""
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        return OWN
    return {**OWN, **GYM}


def written(item: Item) -> str:
    """Return question, steps and answer, one below the other."""
    return "".join(f"{part}\n" for part in (item.question, item.steps, item.answer) if part)
