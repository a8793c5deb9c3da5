"""Parts of a stage: data, optimizer, schedule, objective, rollout. Frozen, validated, torch-free.

Every number a report leaves open is a field here, with our choice as its default and a word on
where it comes from.
Amounts of tokens may be written `250M`, `16k`, `15T` or `2e6`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from etude.recipe.chats import Budget as Budget
from etude.recipe.chats import Chats as Chats
from etude.recipe.chats import TaskMix as TaskMix
from etude.recipe.chats import tuned
from etude.recipe.numbers import CONFIG as CONFIG
from etude.recipe.numbers import Count, Rate, Share, added
from etude.recipe.numbers import Positive as Positive
from etude.recipe.objectives import Grpo as Grpo
from etude.recipe.objectives import Objective as Objective
from etude.recipe.pace import Balance as Balance
from etude.recipe.pace import Batch as Batch
from etude.recipe.pace import Mtp as Mtp
from etude.recipe.pace import Schedule as Schedule
from etude.recipe.pace import Short as Short
from etude.recipe.rollouts import Difficulty as Difficulty
from etude.recipe.rollouts import Rollout as Rollout
from etude.recipe.rollouts import Temperature as Temperature


@dataclass(frozen=True, slots=True, config=CONFIG)
class Tokenizer:
    """The vocabulary: trained on the corpus, or read from a folder.

    Args:
        vocab: size of a byte-level BPE trained here, special tokens included.
        path: folder with a published tokenizer.json instead.
        sample_bytes: text the training reads at most.
    """

    vocab: Positive = 1024
    path: str | None = None
    sample_bytes: Count = 4_000_000


@dataclass(frozen=True, slots=True, config=CONFIG)
class Corpus:
    """The embedded corpus, made from packages on this machine.

    Args:
        size: `smoke` (a few MB), `full` (about 60 MB raw) or `none` (the mixes name folders or hub
            sets only).
        documents: how many derived documents (traces, agent runs, records) to make per set.
        keep: what the quality score of a document decides: how often it is seen (`buckets`,
            GLM-4.5 section 2.2), or the chance that it stays at all (`pareto`, GPT-3 appendix A).
        alpha: of that chance, (2 - score) ** -alpha (GPT-3: 9).
        similarity: share of equal runs of words from which on two documents are near-duplicates
            (unpublished in both reports; our choice).
        hashes: length of the signatures that estimate it (GPT-3: 10; our choice elsewhere).
        decontaminate: cut out of training documents what they share with held-out ones: runs of 13
            words and 200 characters around (GPT-3 appendix C).
    """

    size: Literal["smoke", "full", "none"] = "smoke"
    documents: Positive = 4000
    keep: Literal["buckets", "pareto"] = "buckets"
    alpha: Rate = 9.0
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    hashes: Annotated[int, Field(ge=2)] = 64
    decontaminate: bool = False


@dataclass(frozen=True, slots=True, config=CONFIG)
class Change:
    """A move to another mixture while a stage trains.

    Args:
        mix: shares from then on, as in `data.mix`.
        at: tokens of the stage at which the move begins.
        over: tokens over which every share moves in a straight line; 0 = at once.
    """

    mix: dict[str, Annotated[float, Field(gt=0)]]
    at: Count = 0
    over: Count = 0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Data:
    """A mixture of packed text.

    Args:
        mix: share of tokens by set: a corpus domain (`general code math technical`), a derived set
            (`repository commits traces agent long long_qa document_qa recall`), `folder:PATH` or
            `hub:ORG/NAME`.
            A domain that has no source on this machine is left out, and said: the others grow.
        length: tokens in a row.
        pack: `truncate` joins documents and cuts at random places (pre-training), `best_fit` keeps
            documents whole where they fit (from mid-training on; GLM-4.5 section 2.4).
        fim: share of `code` documents rewritten as fill-in-the-middle (our choice: the report gives
            no rate).
        mask: `documents` lets a token read its own document, whose positions start at 0; `none`
            lets it read its whole row, in which documents follow each other behind an end-of-text
            token (GPT-3 appendix B).
        changes: other mixtures later in the stage, in their order (MiniMax-Text-01 moves its shares
            linearly at each change, and mixes in questions about long documents at the end).
        short: steps of shorter rows among the others.
    """

    mix: dict[str, Annotated[float, Field(gt=0)]]
    length: Positive = 256
    pack: Literal["truncate", "best_fit"] = "truncate"
    fim: Share = 0.0
    mask: Literal["documents", "none"] = "documents"
    changes: tuple[Change, ...] = ()
    short: Short | None = None

    def __post_init__(self) -> None:
        """Changes follow one another, and short rows fill a long one."""
        if self.short and (self.changes or self.length % self.short.length):
            raise ValueError("short.length must divide length, and excludes changes")
        ends = [0, *(change.at + change.over for change in self.changes)]
        for change, before in zip(self.changes, ends, strict=False):
            if change.at < before:
                raise ValueError(f"a change at {change.at} begins before the one before it ends")

    @property
    def mixes(self) -> tuple[dict[str, float], ...]:
        """Every mixture of the stage, in order."""
        return (self.mix, *(change.mix for change in self.changes))


@dataclass(frozen=True, slots=True, config=CONFIG)
class AdamW:
    """AdamW with decoupled decay (objectives as in Loshchilov & Hutter; no decay on 1-D tensors).

    Args:
        learning_rate: peak of the schedule.
        betas, eps: moments; GLM-4.5 gives none, the defaults are our choice.
        weight_decay: GLM-4.5 uses 0.1 (section 2.4).
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: Rate = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: float = 0.1


@dataclass(frozen=True, slots=True, config=CONFIG)
class QkClip:
    """After each step, scale down the heads whose largest attention score was above tau.

    Muon with it is MuonClip (Kimi K2, arXiv:2507.20534, section 2.1).

    Args:
        tau: largest score allowed; the report uses 100.
    """

    tau: Rate = 100.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Muon:
    """Muon for hidden matrices, AdamW for embeddings, biases and norms (GLM-4.5 section 2.4).

    Args:
        learning_rate: peak for the Muon group.
        adam_learning_rate: peak for the AdamW group; None takes `learning_rate`, as the RMS
            matching allows.
        momentum, steps, rms: 0.95, five Newton-Schulz steps, update RMS 0.2 (GLM-4.5 section 2.4).
        nesterov: unconfirmed for GLM-4.5; on in the cited recipe.
        qk_clip: bound on attention scores, which Muon lets grow; None = none.
        head: whether the output head belongs to `adamw` (our choice) or `muon` (the report's words
            taken literally).
        betas, eps: of the AdamW group.
        weight_decay: for both groups.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: Rate = 2.5e-4
    adam_learning_rate: Rate | None = None
    momentum: float = 0.95
    steps: Positive = 5
    rms: Rate = 0.2
    nesterov: bool = True
    qk_clip: QkClip | None = None
    head: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: float = 0.1


def _default_kind(value: Any) -> Any:
    return {"kind": "muon", **value} if isinstance(value, dict) else value


Optimizer = Annotated[
    Annotated[AdamW | Muon, Field(discriminator="kind")], BeforeValidator(_default_kind)
]


@dataclass(frozen=True, slots=True, config=CONFIG)
class Environment:
    """One source of rewarded problems.

    Args:
        name: a task family (`rev`, `sort`, `calc`, `lookup`, `instruct`, `code`, `rg:NAME`), `unit`
            (code run in a sandbox), `math` (answers compared by value), `search` (pages of a small
            world), `mcp:desk`, `mcp:time`, `mcp:git` (tools of real servers), `user:desk` (a
            simulated user), or `verifiers:NAME`.
        levels: weight by level.
        weight: share of prompts among the stage's environments.
        thinking: whether the prompt asks for reasoning.
        turns: model turns at most; more than one lets tools answer.
        reward: `outcome` scores the finished answer; `step` scores one turn, which must equal the
            written call exactly (GLM-4.5 section 3.4, step-wise function calling); `share` is the
            share of unit tests passed, where `outcome` asks for all.
        knobs: of an `rg:` generator's configuration, e.g. `{min_word_len: 3}`; before its levels.
        attributes: a level for some attributes of its curriculum, where `levels` sets all.
        threshold: reward of the generator from which an answer counts as right; below it counts 0,
            so that partial rewards give no group a signal.
    """

    name: str
    levels: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: {0: 1.0})
    weight: Annotated[float, Field(gt=0)] = 1.0
    thinking: bool = False
    turns: Positive = 1
    reward: Literal["outcome", "step", "share"] = "outcome"
    knobs: dict[str, Any] = added(default_factory=dict)
    attributes: dict[str, Count] = added(default_factory=dict)
    threshold: Annotated[float, Field(gt=0, le=1)] = added(1.0)

    @property
    def tuning(self) -> dict[str, Any]:
        """What differs from the generator's own settings, as `etude.data.tasks` takes it."""
        return tuned(self.knobs, self.attributes, self.threshold)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Teacher:
    """What one expert contributes to unified training.

    Args:
        stage: name of the expert's stage.
        tasks: families and levels to sample from it.
        thinking: share of prompts answered with reasoning.
        turns: model turns at most.
        weight: share of the prompts among the experts; conversations with tools are long, so that
            few of them already make up much of the tokens.
    """

    stage: str
    tasks: dict[str, TaskMix]
    thinking: Share = 0.5
    turns: Positive = 1
    weight: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Probe:
    """What an evaluation asks of one task family.

    Args:
        levels: levels asked, equally often.
        thinking: modes asked: with reasoning, without, or both.
        budgets: further modes: reasoning that is closed after so many tokens.
        turns: model turns at most; a list asks for each of them (GLM-4.5 section 3.3, accuracy by
            turns of interaction).
        column: the report's column it counts for.
        knobs, attributes: of an `rg:` generator, as an environment has them.
    """

    levels: tuple[int, ...] = (0,)
    thinking: tuple[bool, ...] = (False,)
    budgets: tuple[Count, ...] = added(())
    turns: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 1
    knobs: dict[str, Any] = added(default_factory=dict)
    attributes: dict[str, Count] = added(default_factory=dict)
    column: Literal["agentic", "reasoning", "coding", "chat"] = "reasoning"

    @property
    def modes(self) -> tuple[tuple[bool, int | None], ...]:
        """Whether each mode reasons, and on how many tokens at most."""
        free = tuple((thinking, None) for thinking in self.thinking)
        return (*free, *((True, budget) for budget in self.budgets))

    @property
    def limits(self) -> tuple[int, ...]:
        """Every number of turns asked for."""
        return (self.turns,) if isinstance(self.turns, int) else self.turns


@dataclass(frozen=True, slots=True, config=CONFIG)
class ByLength:
    """Bits per byte by the place in long held-out texts, up to beyond the trained length.

    Args:
        edges: places, in tokens, at which a bucket ends; the texts are as long as the last.
        domains: sets of long documents.
        stretches: texts read in all, cut one after the other from the documents.
    """

    edges: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256, 512, 1024)
    domains: tuple[str, ...] = ("long",)
    stretches: Positive = 40

    def __post_init__(self) -> None:
        """Buckets follow one another."""
        if list(self.edges) != sorted(set(self.edges)) or self.edges[0] < 2:
            raise ValueError("edges must rise, from 2 tokens on")


@dataclass(frozen=True, slots=True, config=CONFIG)
class FewShot:
    """How a task is asked by examples in the prompt (GPT-3 section 2.4).

    Args:
        shots: numbers of examples; where they do not all fit into the context, fewer are shown.
        beams: width of the search for a written answer (GPT-3: 4); 1 is greedy.
        length_penalty: of that search (GPT-3: 0.6).
    """

    shots: Annotated[tuple[Count, ...], Field(min_length=1)] = (0, 1, 8)
    beams: Positive = 1
    length_penalty: Annotated[float, Field(ge=0)] = 0.6
