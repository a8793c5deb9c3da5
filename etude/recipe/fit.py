"""Whether a recipe fits the model it trains, told before anything runs."""

from etude import arch
from etude.errors import EtudeError
from etude.recipe.stages import Eval, Recipe, Rl, Stage


def check_fit(recipe: Recipe, decoder: arch.Decoder) -> None:
    """Refuse rows, answers or vocabularies that the model has no room for.

    Raises:
        EtudeError: a length above the model's context, or a tokenizer larger than its embedding.
    """
    for stage in recipe.stages:
        key, length = _longest(stage)
        if length > decoder.max_length:
            found = f"{length} tokens"
            most = f"at most {decoder.max_length}, the model's context"
            do = f"lower it or raise max_position_embeddings in model.config to {length}"
            raise EtudeError(f"{stage.name}.{key}", found, most, do)
    if recipe.tokenizer.path is None and recipe.tokenizer.vocab > decoder.vocab:
        found = f"{recipe.tokenizer.vocab} tokens"
        raise EtudeError(
            "tokenizer.vocab", found, f"at most {decoder.vocab}, the model's vocabulary"
        )


def _longest(stage: Stage) -> tuple[str, int]:
    match stage:
        case Rl():
            return "rollout.max_tokens", stage.rollout.max_tokens
        case Eval():
            return "length", stage.length
        case _:
            return "data.length", stage.data.length
