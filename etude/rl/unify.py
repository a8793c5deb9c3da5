"""One model from several experts: their filtered answers become conversations to train a base on.

GLM-4.5 (arXiv:2508.06471, section 3.1) samples its experts, keeps what passes four filters, leaves
out the half of the reasoning problems with the shortest answers, and takes four answers of each
hard problem. Answers with and without reasoning are balanced, so that one model has both modes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from etude.data import tasks
from etude.data.synth import Chat
from etude.nn.decoder import Decoder
from etude.parallel.mesh import Ranks
from etude.recipe.parts import Environment, TaskMix, Teacher
from etude.recipe.stages import Unify
from etude.rl.dialogue import Dialogue
from etude.rl.filters import reject
from etude.rl.local import LocalSampler
from etude.rl.player import ALONE, Player
from etude.rl.problems import Problem, draw
from etude.rl.rollout import Sample
from etude.rl.sampler import seed_of
from etude.rl.toolbox import Toolbox
from etude.text.tokenizer import Tokenizer

HARD = 0.5  # a problem is hard if fewer of its answers pass
MORE = 3  # further rounds of tries that a hard problem gets

Counts = dict[str, int]


@dataclass(slots=True, eq=False)
class Asked:
    """One problem, its answers that passed, and how many were tried."""

    problem: Problem
    kept: list[Sample] = field(default_factory=list)
    tried: int = 0

    @property
    def hard(self) -> bool:
        """Whether the expert solves it less than half of the time."""
        return len(self.kept) < HARD * self.tried


@dataclass(frozen=True, slots=True)
class Unified:
    """What the experts taught.

    Args:
        chats: conversations, shuffled.
        counts: per expert, how many problems and answers there were and where they went.
    """

    chats: list[Chat]
    counts: dict[str, Counts]


def collect(
    spec: Unify,
    tokenizer: Tokenizer,
    load: Callable[[str], Decoder],
    seed: int,
    *,
    format: str | None = "glm45",
    toolbox: Toolbox | None = None,
    say: Callable[[str], None] = lambda text: None,
    ranks: Ranks = ALONE,
) -> Unified:
    """Sample the experts one after another and keep what is worth learning.

    Args:
        spec: experts, problems, and how many answers to keep.
        tokenizer: shared by the experts.
        load: from a stage's name to its model; each is dropped before the next is asked for.
        seed: decides problems, answers and order.
        format: name of the chat format.
        toolbox: tools; None opens the shipped ones.
        say: told one line per expert.
        ranks: processes that share the sampling.

    Raises:
        EtudeError: an unknown task family or level.
    """
    own = toolbox or Toolbox()
    dialogue = Dialogue(tokenizer, format)
    chats: list[Chat] = []
    counts: dict[str, Counts] = {}
    whole = sum(teacher.weight for teacher in spec.samples_of)
    try:
        for place, teacher in enumerate(spec.samples_of):
            share = round(spec.prompts * teacher.weight / whole)
            model = load(teacher.stage)
            player = Player(
                LocalSampler(model),
                dialogue,
                own,
                max_tokens=spec.max_tokens,
                length=model.arch.max_length,
                ranks=ranks,
            )
            where = seed_of(seed, "teacher", place, teacher.stage)
            found, counts[teacher.stage] = _ask(player, teacher, spec, share, where)
            chats += found
            told = ", ".join(f"{name} {n}" for name, n in counts[teacher.stage].items())
            say(f"{teacher.stage}: {told}")
            del model, player
    finally:
        if toolbox is None:
            own.close()
    random.Random(seed_of(seed, "chats")).shuffle(chats)
    return Unified(chats, counts)


def _ask(
    player: Player, teacher: Teacher, spec: Unify, share: int, seed: int
) -> tuple[list[Chat], Counts]:
    environments = _environments(teacher, spec.drop_short)
    asked = [Asked(problem) for problem in draw(environments, share, seed_of(seed, "problems"))]
    counts: Counter[str] = Counter({"problems": len(asked)})
    _try(player, asked, spec.tries, seed, counts)
    left = [one for one in asked if one.kept]
    counts["unsolved"] = len(asked) - len(left)
    left = _long(left, spec.drop_short)
    counts["short_problems"] = len(asked) - counts["unsolved"] - len(left)
    hard = [one for one in left if one.hard]
    counts["hard"] = len(hard)
    for _ in range(MORE):
        more = [one for one in hard if len(one.kept) < spec.per_hard_prompt]
        _try(player, more, spec.tries, seed, counts)
    limits = [spec.per_hard_prompt if one in hard else spec.per_prompt for one in left]
    pairs = [
        (one.problem, sample)
        for one, limit in zip(left, limits, strict=True)
        for sample in one.kept[:limit]
    ]
    kept = _balance(pairs, teacher, random.Random(seed_of(seed, "balance")))
    counts["unbalanced"] = len(pairs) - len(kept)
    counts["kept"] = len(kept)
    return [_chat(*pair) for pair in kept], dict(counts)


def _try(
    player: Player, asked: Sequence[Asked], tries: int, seed: int, counts: Counter[str]
) -> None:
    """Sample further answers of each problem and keep those that pass."""
    if not asked:
        return
    first = asked[0].tried
    groups = player.play([one.problem for one in asked], seed, tries=tries, first=first)
    for one, group in zip(asked, groups, strict=True):
        thinking = one.problem.environment.thinking
        words = [reject(one.problem.item, sample, thinking=thinking) for sample in group]
        one.kept += [sample for sample, word in zip(group, words, strict=True) if not word]
        one.tried += len(group)
        counts["answers"] += len(group)
        counts.update(word for word in words if word)


def _environments(teacher: Teacher, drop_short: float) -> list[Environment]:
    """One per family and mode; reasoning problems are asked more often, as some will be dropped."""
    found = []
    for name, mix in teacher.tasks.items():
        share = _share(name, mix, teacher)
        weights = {True: share / max(1 - drop_short, 0.1), False: 1 - share}
        found += [
            Environment(
                name=name,
                levels=mix.levels,
                weight=mix.weight * weight,
                thinking=thinking,
                turns=teacher.turns,
                knobs=mix.knobs,
                attributes=mix.attributes,
            )
            for thinking, weight in weights.items()
            if weight
        ]
    return found


def _share(name: str, mix: TaskMix, teacher: Teacher) -> float:
    """How many of a family's answers reason: none where it has no written steps, unless asked."""
    if mix.thinking is not None:
        return mix.thinking
    item = tasks.draw(name, random.Random(0), next(iter(mix.levels)), tuning=mix.tuning)
    return teacher.thinking if item.steps else 0.0


def _long(asked: Sequence[Asked], drop: float) -> list[Asked]:
    """Leave out the share of each family's reasoning problems whose answers are shortest."""
    families = defaultdict(list)
    for one in asked:
        if one.problem.environment.thinking:
            families[one.problem.environment.name].append(one)
    short: set[Asked] = set()
    for family in families.values():
        family.sort(key=lambda one: sum(sample.length for sample in one.kept) / len(one.kept))
        short |= set(family[: int(drop * len(family))])
    return [one for one in asked if one not in short]


Pair = tuple[Problem, Sample]


def _balance(pairs: Sequence[Pair], teacher: Teacher, rng: random.Random) -> list[Pair]:
    """Thin out the mode of a family of which there is more than its share."""
    kept: list[Pair] = []
    for name, mix in teacher.tasks.items():
        share = _share(name, mix, teacher)
        modes: dict[bool, list[Pair]] = {True: [], False: []}
        for pair in pairs:
            if pair[0].environment.name == name:
                modes[pair[0].environment.thinking].append(pair)
        if modes[True] and modes[False]:
            with_, without = len(modes[True]), len(modes[False])
            most = min(with_ / share, without / (1 - share))  # conversations at the wanted shares
            modes[True] = rng.sample(modes[True], min(with_, round(most * share)))
            modes[False] = rng.sample(modes[False], min(without, round(most * (1 - share))))
        kept += modes[True] + modes[False]
    return kept


def _chat(problem: Problem, sample: Sample) -> Chat:
    schemas = [tool.schema() for tool in problem.item.toolset()]
    return Chat(sample.messages, schemas, problem.environment.thinking)
