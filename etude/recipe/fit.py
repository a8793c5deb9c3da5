"""Whether a recipe fits the model it trains and the machine, told before anything runs."""

from collections.abc import Callable, Mapping

from etude import arch
from etude.errors import EtudeError
from etude.recipe.post import Distill, Paired
from etude.recipe.stages import Eval, Recipe, Rl, Stage

BEHIND = 18  # tokens written behind a context to measure speed, see `etude.evals.speed`


def check_fit(
    recipe: Recipe,
    decoder: arch.Decoder,
    others: Mapping[str, arch.Decoder] | None = None,
    *,
    key: str | None = None,
) -> None:
    """Refuse rows, answers or vocabularies that the model has no room for.

    Args:
        recipe: what will run.
        decoder: the model it trains.
        others: by stage, where stages train other sizes.
        key: field of the config.json that holds the context; None where it cannot be changed.

    Raises:
        EtudeError: a length above the model's context, or a tokenizer larger than its embedding.
    """
    for stage in recipe.stages:
        where, length = _longest(stage)
        room = (others or {}).get(stage.name, decoder).max_length
        if length > room:
            found = f"{length} tokens"
            most = f"at most {room}, the model's context"
            do = f"lower it or raise {key} in model.config to {length}" if key else "lower it"
            raise EtudeError(f"{stage.name}.{where}", found, most, do)
    if recipe.tokenizer.path is None and recipe.tokenizer.vocab > decoder.vocab:
        found = f"{recipe.tokenizer.vocab} tokens"
        raise EtudeError(
            "tokenizer.vocab", found, f"at most {decoder.vocab}, the model's vocabulary"
        )


def check_dtype(recipe: Recipe, *, processes: int, gpu: Callable[[], bool]) -> None:
    """Refuse bfloat16 where one process on a CPU trains: it keeps no copies of that dtype.

    Args:
        recipe: what will run.
        processes: that train together.
        gpu: whether the machine has one; asked only where the recipe leaves the device open.

    Raises:
        EtudeError: bfloat16 for one process on a CPU.
    """
    if recipe.dtype != "bfloat16" or processes > 1:
        return
    kind = recipe.device.partition(":")[0]
    if kind == "cpu" or (kind == "auto" and not gpu()):
        found = "bfloat16, but one process on a CPU multiplies in float32"
        raise EtudeError("dtype", found, do="leave it at auto, or train on a GPU")


def _longest(stage: Stage) -> tuple[str, int]:
    match stage:
        case Rl():
            return "rollout.max_tokens", stage.rollout.max_tokens
        case Eval():
            edge = stage.by_length.edges[-1] if stage.by_length else 0
            behind = max(stage.speed, default=-BEHIND) + BEHIND
            found = {"length": stage.length, "by_length.edges": edge, "speed": behind}
            return max(found.items(), key=lambda pair: pair[1])
        case Paired():
            return "pairs.length", stage.pairs.length
        case Distill():
            return "length", stage.length
        case _:
            return "data.length", stage.data.length
