"""From what a user names to a description: a recipe's model or a checkpoint's folder. No torch."""

from pathlib import Path

from etude import arch
from etude.errors import EtudeError, closest
from etude.files import read_json
from etude.models import table
from etude.recipe.parts import Model
from etude.recipe.stages import Recipe


def describe(model: Model, *, vocab: int | None = None) -> arch.Decoder:
    """Return the description of a recipe's model without making it.

    Args:
        model: family and size, or the path of a checkpoint.
        vocab: size of a vocabulary trained with it; None keeps the size's own.

    Raises:
        EtudeError: unknown family, size or key, or a folder without config.json.
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
    return table.family(model.family).arch(config | own | model.config)


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
    config = read_json(behind(folder) / "config.json")
    return table.by_model_type(config).arch(config)


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
