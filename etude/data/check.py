"""Whether every set, task and level that a recipe names exists, told before anything runs."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from etude.data import folders, tasks_fewshot
from etude.data.mix import SHARES
from etude.data.synth import DERIVED
from etude.data.tasks import OUTSIDE, family
from etude.data.tasks_gym import PREFIX
from etude.errors import EtudeError, closest
from etude.models import table
from etude.recipe.post import Distill, Paired
from etude.recipe.stages import Eval, Midtrain, Pretrain, Recipe, Rl, Sft, Stage, Unify
from etude.text import chat

Levels = Iterable[int]


def check_names(recipe: Recipe, *, ready: bool) -> None:
    """Refuse a recipe that names what does not exist.

    Args:
        recipe: what will run.
        ready: ask also for what only a run needs: folders, and the package behind `rg:` tasks.

    Raises:
        EtudeError: an unknown set, task family or level, by its dotted key; something missing; or
            messages, or a mode of thinking, that the system does not know.
    """
    domains = () if recipe.corpus.size == "none" else tuple(SHARES)
    for stage in recipe.stages:
        if recipe.model.family:
            format = table.family(recipe.model.family).CHAT
            for key, thinking in _modes(stage):
                _check_mode(f"{stage.name}.{key}", format, thinking)
        for key, name in _sets(stage):
            try:
                _check_set(name, domains, ready=ready)
            except EtudeError as error:
                raise _at(f"{stage.name}.{key}", error) from error
        for key, name, levels in _tasks(stage):
            try:
                _check_task(name, levels, ready=ready)
            except EtudeError as error:
                raise _at(f"{stage.name}.{key}", error) from error
        if isinstance(stage, Eval):
            for name in stage.fewshot:
                try:
                    tasks_fewshot.check(name)
                except EtudeError as error:
                    raise _at(f"{stage.name}.fewshot", error) from error


def _sets(stage: Stage) -> Iterator[tuple[str, str]]:
    match stage:
        case Pretrain() | Midtrain():
            yield from (("data.mix", name) for mix in stage.data.mixes for name in mix)
        case Sft() | Unify():
            yield from (("data.replay_mix", name) for name in stage.data.replay_mix)
        case Eval():
            yield from (("domains", name) for name in stage.domains)
            far = stage.by_length.domains if stage.by_length else ()
            yield from (("by_length.domains", name) for name in far)


def _tasks(stage: Stage) -> Iterator[tuple[str, str, Levels]]:
    match stage:
        case Rl():
            yield from (("environments", e.name, e.levels) for e in stage.environments)
        case Eval():
            yield from (("probes", name, probe.levels) for name, probe in stage.probes.items())
        case Sft() | Unify():
            yield from (("data.tasks", name, mix.levels) for name, mix in stage.data.tasks.items())
        case Paired():
            mixes = stage.pairs.tasks.items()
            yield from (("pairs.tasks", name, mix.levels) for name, mix in mixes)
        case Distill():
            for tutor in stage.teachers:
                mixes = tutor.tasks.items()
                yield from (("teachers.tasks", name, mix.levels) for name, mix in mixes)
    if isinstance(stage, Unify):
        for teacher in stage.samples_of:
            yield from (("samples_of", name, mix.levels) for name, mix in teacher.tasks.items())


def _modes(stage: Stage) -> Iterator[tuple[str, bool | None]]:
    """Where a stage speaks in messages, and whether it asks for thinking, if it says so.

    Turns without reasoning can be learned by a system that always thinks, so they ask for nothing.
    """
    match stage:
        case Rl():
            yield from (("environments", one.thinking) for one in stage.environments)
        case Eval():
            for name, probe in stage.probes.items():
                yield from ((f"probes.{name}.thinking", mode) for mode in probe.thinking)
        case Sft() | Unify():
            shares = [stage.data.thinking, *(m.thinking or 0 for m in stage.data.tasks.values())]
            yield "data.thinking", any(share > 0 for share in shares) or None
        case Paired():
            yield "pairs.thinking", stage.pairs.thinking > 0 or None
        case Distill():
            yield "thinking", stage.thinking > 0 or None


def _check_mode(key: str, format: str | None, thinking: bool | None) -> None:
    try:
        chat.asked(chat.format_of(format), thinking)
    except EtudeError as error:
        raise _at(key, error) from error


def _check_set(name: str, domains: tuple[str, ...], *, ready: bool) -> None:
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        if ready:
            folders.text_files(rest)
    elif not (kind == "hub" and rest) and name not in (*domains, *DERIVED):
        names = [*domains, *DERIVED, "folder:PATH", "hub:ORG/NAME"]
        raise EtudeError(f"set {name}", "no such set", ", ".join(names), closest(name, names))


def _check_task(name: str, levels: Levels, *, ready: bool) -> None:
    if name.startswith(OUTSIDE):
        return
    if name.startswith(PREFIX) and not ready and find_spec("reasoning_gym") is None:
        return
    most = family(name).levels - 1
    for level in levels:
        if not 0 <= level <= most:
            raise EtudeError(f"task {name}", f"level {level}", f"0 to {most}")


def _at(key: str, error: EtudeError) -> EtudeError:
    where = f"{key}: {error.where}"
    return EtudeError(where, error.found, error.expected, error.do, code=error.code)
