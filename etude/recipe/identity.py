"""What makes a stage the same stage: its own description and that of everything it stands on."""

import json

from etude.files import digest
from etude.recipe.load import as_data, parents
from etude.recipe.stages import Recipe

GENERATION = "1"  # raised when the code of a stage changes what it computes


def identities(recipe: Recipe) -> dict[str, str]:
    """Return a name for the content of each stage, `model` included.

    Two stages share an identity only if they, the model, tokenizer, corpus, seed and number format
    they build on, and all stages they name are described alike. A finished stage whose identity has
    not changed is skipped; a changed one runs again, and so do its descendants.
    """
    base = [recipe.model, recipe.tokenizer, recipe.corpus]
    known = {"model": digest(GENERATION, *map(_text, base), str(recipe.seed), recipe.dtype)}
    for stage in recipe.stages:
        known[stage.name] = digest(_text(stage), *(known[parent] for parent in parents(stage)))
    return known


def _text(part: object) -> str:
    return json.dumps(as_data(part), sort_keys=True)
