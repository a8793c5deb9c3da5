"""From what a user names to a description: a recipe's model or a checkpoint's folder. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude import arch
from etude.arch.swap import WINDOW, compare, match, swap
from etude.errors import EtudeError, closest
from etude.files import read_json
from etude.models import table
from etude.recipe.load import load, read, shipped
from etude.recipe.model import Model
from etude.recipe.post import Distill
from etude.recipe.stages import Eval, Pretrain, Recipe, Rl, Stage, row_length


def describe(model: Model, *, vocab: int | None = None, length: int | None = None) -> arch.Decoder:
    """Return the description of a recipe's model without making it, its swapped parts in place.

    Args:
        model: family and size, or the path of a checkpoint.
        vocab: size of a vocabulary trained with it; None keeps the size's own.
        length: tokens of a document, where FLOPs are to be matched; None is the longest.

    Raises:
        EtudeError: unknown family, size or key, a swap that cannot be made, or a folder without
            config.json.
    """
    if model.path is not None or model.family is None:
        from etude.weights.hub import locate

        return from_folder(locate(model.path or ""))
    config = table.size(model.family, model.size)
    for key in model.config:
        if key not in config:
            do = closest(key, config) or f"known: {', '.join(sorted(config))}"
            raise EtudeError(f"model.config.{key}", "no such key in its config.json", do=do)
    own = {} if vocab is None else {"vocab_size": vocab}
    with speaking_of("model.config"):
        plain = table.family(model.family).arch(config | own | model.config)
    return _swapped(model, plain, length)


def _swapped(model: Model, plain: arch.Decoder, length: int | None) -> arch.Decoder:
    other = swap(
        plain,
        mixer=model.mixer,
        every=model.every,
        window=model.window or WINDOW,
        ffn=model.ffn,
        router=model.router,
        norm=model.norm,
    )
    if model.match is None:
        return other
    return match(other, plain, model.match, length=length or plain.max_length).decoder


def planned(recipe: Recipe, *, vocab: int | None = None) -> arch.Decoder:
    """Return the description of the model that a recipe trains.

    Args:
        recipe: a checked recipe.
        vocab: size of the vocabulary, once it is trained; it can be smaller than the recipe asks.

    Raises:
        EtudeError: see `describe`.
    """
    vocab = own_vocab(recipe) if vocab is None else vocab
    return describe(recipe.model, vocab=vocab, length=row_length(recipe))


def by_stage(recipe: Recipe, *, vocab: int | None = None) -> dict[str, arch.Decoder]:
    """Return the description of what each stage trains, `model` included; see `Pretrain.fresh`.

    Teachers outside of the recipe are there by their paths.

    Raises:
        EtudeError: see `describe`.
    """
    found = {"model": planned(recipe, vocab=vocab)}
    for stage in recipe.stages:
        if isinstance(stage, Eval):
            continue
        if isinstance(stage, Pretrain) and stage.fresh is not None:
            try:
                found[stage.name] = planned(resized(recipe, stage.fresh), vocab=vocab)
            except EtudeError as error:
                where = error.where.replace("model.config", f"{stage.name}.fresh")
                raise EtudeError(where, error.found, error.expected, error.do) from error
        else:
            found[stage.name] = found[stage.start or "model"]
        found |= {path: named(path) for path in _teachers(stage)}
    return found


def _teachers(stage: Stage) -> Iterator[str]:
    """Checkpoints outside of the recipe that a stage learns from."""
    if isinstance(stage, Distill):
        yield from (tutor.path for tutor in stage.teachers if tutor.path)
    if isinstance(stage, Rl) and stage.distill and stage.distill.path:
        yield stage.distill.path


def resized(recipe: Recipe, config: Mapping[str, Any]) -> Recipe:
    """Return a recipe whose model has other fields of config.json."""
    model = replace(recipe.model, config=recipe.model.config | dict(config))
    return replace(recipe, model=model)


def compute(recipe: Recipe, stage: str, *, vocab: int | None = None) -> tuple[int, int, float]:
    """Return the parameters N of a stage, its tokens D with those it stands on, and FLOPs 6 N D.

    N counts every parameter, a tied embedding once, as GPT-3 does (arXiv:2005.14165, table D.1).
    """
    plans = by_stage(recipe, vocab=vocab)
    stages = {one.name: one for one in recipe.stages}
    tokens, flops, name = 0, 0.0, stage
    while name != "model":
        one = stages[name]
        if isinstance(one, Eval):
            break
        more = getattr(one, "tokens", 0)  # rl and its kin count steps
        tokens += more
        flops += 6.0 * arch.count(plans[name]).trunk * more
        name = one.start or "model"
    return arch.count(plans[stage]).trunk, tokens, flops


def recipe_of(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name or file, or one around a model's name such as `glm45-tiny`.

    Raises:
        EtudeError: no such thing, or an override that it cannot take.
    """
    if name in shipped() or name.endswith((".yaml", ".yml")):
        return load(name, overrides)
    if Path(name).exists():
        whole = "a recipe or a name such as glm45-tiny; the parts of a checkpoint stay"
        raise EtudeError(name, "is a folder of its own", whole)
    family, size = table.named(name)
    stages = [{"stage": "eval", "of": ["model"]}]
    raw = {"recipe": name, "model": {"family": family, "size": size}, "stages": stages}
    return read(raw, overrides)


def length_key(recipe: Recipe) -> str | None:
    """Return the field of config.json that holds the model's context; None for a checkpoint's."""
    if recipe.model.family is None:
        return None
    fields = table.size(recipe.model.family, recipe.model.size)
    return next(key for key in ("max_position_embeddings", "n_positions") if key in fields)


def unswapped(model: Model) -> Model:
    """Return the model with the family's own parts."""
    return Model(family=model.family, size=model.size, config=model.config, path=model.path)


def swap_told(recipe: Recipe) -> str:
    """Return what a recipe's swap changes of parameters and FLOPs; empty where it swaps nothing.

    Raises:
        EtudeError: see `describe`.
    """
    if not recipe.model.swapped:
        return ""
    before = describe(unswapped(recipe.model), vocab=own_vocab(recipe))
    return compare(before, planned(recipe), row_length(recipe) or before.max_length)


def own_vocab(recipe: Recipe) -> int | None:
    """Size of the vocabulary that a recipe trains; None where it reads one."""
    trains = recipe.tokenizer.path is None and recipe.model.path is None
    return recipe.tokenizer.vocab if trains else None


def named(text: str) -> arch.Decoder:
    """Return the description behind a name such as `glm45-air`, or of a folder.

    Raises:
        EtudeError: no such family or size, and no such folder.
    """
    folder = Path(text)
    if any((folder / name).exists() for name in ("config.json", "run.json")):
        return from_folder(folder)
    if folder.exists() or text.count("/"):
        found = "holds no config.json" if folder.exists() else "no such folder"
        raise EtudeError(text, found, "a checkpoint, a run, or a name such as glm45-air")
    family, size = table.named(text)
    return describe(Model(family=family, size=size))


def from_folder(folder: Path) -> arch.Decoder:
    """Return the description of a checkpoint folder, or of a run's last checkpoint.

    Raises:
        EtudeError: the folder holds neither.
    """
    folder = behind(folder)
    config = read_json(folder / "config.json")
    with speaking_of(str(folder / "config.json")):
        return table.by_model_type(config).arch(config)


@contextmanager
def speaking_of(where: str) -> Iterator[None]:
    """Let an error that speaks of `config.json` name the very file or size."""
    try:
        yield
    except EtudeError as error:
        key = error.where.removeprefix("config.json").lstrip(": ")
        at = f"{where}: {key}" if key else where
        raise EtudeError(at, error.found, error.expected, error.do) from error


def behind(folder: Path) -> Path:
    """Return the checkpoint that a folder stands for: itself, or the last one of a run.

    Raises:
        EtudeError: a run that has finished no stage, or one whose `run.json` is damaged.
    """
    if not (folder / "run.json").exists():
        return folder
    about = read_json(folder / "run.json")
    if not isinstance(about, dict):
        do = "the run's `etude train` writes it again"
        raise EtudeError(str(folder / "run.json"), "is not about a run", do=do)
    if not about.get("last"):
        raise EtudeError(str(folder), "this run has finished no stage", do="train it first")
    return folder / "stages" / str(about["last"]) / "checkpoint"
