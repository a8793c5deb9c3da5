"""What makes a stage the same stage: its own description and that of everything it stands on."""

import json
from dataclasses import replace

from etude.files import digest
from etude.recipe.load import as_data, parents
from etude.recipe.stages import Eval, Recipe, row_length

GENERATION = "2"  # raised when the code of a stage changes what it computes


def identities(recipe: Recipe) -> dict[str, str]:
    """Return a name for the content of each stage, `model` included.

    Two stages share an identity only if they, the model, tokenizer, corpus, seed and number format
    they build on, and all stages they name are described alike. A finished stage whose identity has
    not changed is skipped; a changed one runs again, and so do its descendants.
    """
    base = [recipe.model, recipe.tokenizer, recipe.corpus]
    weighed = [str(row_length(recipe))] if recipe.model.match == "flops" else []
    texts = [*map(_text, base), str(recipe.seed), recipe.dtype, *weighed]
    known = {"model": digest(GENERATION, *texts)}
    for stage in recipe.stages:
        known[stage.name] = digest(_text(stage), *(known[parent] for parent in parents(stage)))
    return known


def figure_key(stage: Eval, identity: str) -> str:
    """Return a name for one measurement: what the measured stage is, and all it is asked."""
    return digest(identity, json.dumps(as_data(replace(stage, of=("model",)))))


def figure_keys(recipe: Recipe) -> dict[str, list[str]]:
    """Return the keys that figures of this very recipe bear, by measured stage."""
    names, keys = identities(recipe), dict[str, list[str]]()
    for stage in recipe.stages:
        if isinstance(stage, Eval):
            for name in stage.of:
                keys.setdefault(name, []).append(figure_key(stage, names[name]))
    return keys


def figure_file(recipe: Recipe, stage: Eval, name: str) -> str:
    """Return the file, without its ending, that takes what an evaluation finds of one stage.

    It bears the measured stage's name, and that of the evaluation too where another one of the
    recipe, before this, measures the same stage.
    """
    evals = (one for one in recipe.stages if isinstance(one, Eval) and name in one.of)
    return name if next(evals).name == stage.name else f"{name}@{stage.name}"


def _text(part: object) -> str:
    return json.dumps(as_data(part), sort_keys=True)
