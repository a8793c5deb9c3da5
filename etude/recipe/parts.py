"""Parts of a stage: data, optimizer, schedule, objective, rollout. Frozen, validated, torch-free.

Every number a report leaves open is a field here, with our choice as its default and a word on
where it comes from.
Amounts of tokens may be written `250M`, `16k`, `15T` or `2e6`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

CONFIG = ConfigDict(extra="forbid", populate_by_name=True)
UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_count(value: Any) -> Any:
    """Read `2M`, `1.5k`, `2e6` or a number as a whole count of tokens."""
    if isinstance(value, str) and value and value[-1] in UNITS:
        try:
            return round(float(value[:-1]) * UNITS[value[-1]])
        except ValueError:
            return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(read_count), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(read_count), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, config=CONFIG)
class Model:
    """Where the weights come from: a family and size made here, or a published checkpoint.

    Args:
        family: name of a system, for example `glm45`.
        size: a name from the family's table (`tiny`, `mini`, `air`, `full`).
        config: fields of the published config.json to change, for example `num_hidden_layers`.
        path: folder or hub name of a checkpoint to start from instead.
    """

    family: str | None = None
    size: str = "tiny"
    config: dict[str, Any] = Field(default_factory=dict)
    path: str | None = None

    def __post_init__(self) -> None:
        """Exactly one origin."""
        if (self.family is None) == (self.path is None):
            raise ValueError("give either family (with size) or path")


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
    """

    size: Literal["smoke", "full", "none"] = "smoke"
    documents: Positive = 4000


@dataclass(frozen=True, slots=True, config=CONFIG)
class Data:
    """A mixture of packed text.

    Args:
        mix: share of tokens by set: a corpus domain (`general code math technical`), a derived set
            (`repository commits traces agent long`), `folder:PATH` or `hub:ORG/NAME`.
        length: tokens in a row.
        pack: `truncate` joins documents and cuts at random places (pre-training), `best_fit` keeps
            documents whole where they fit (from mid-training on; GLM-4.5 section 2.4).
        fim: share of `code` documents rewritten as fill-in-the-middle (our choice: the report gives
            no rate).
    """

    mix: dict[str, Annotated[float, Field(gt=0)]]
    length: Positive = 256
    pack: Literal["truncate", "best_fit"] = "truncate"
    fim: Share = 0.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class TaskMix:
    """How often one family of checkable tasks is drawn, and at which levels.

    Args:
        weight: share relative to the other families.
        levels: weight by level.
        thinking: share of items answered with written reasoning; None takes the stage's value.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    levels: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: {0: 1.0})
    thinking: Share | None = None


@dataclass(frozen=True, slots=True, config=CONFIG)
class Chats:
    """Conversations with loss masks, made from checkable tasks and written lines.

    Args:
        tasks: family name -> how often and how hard.
        items: conversations to make; drawn without the held-out questions.
        thinking: share answered with reasoning (the rest renders an empty `<think></think>`).
        lines: share of small-talk lines.
        replay: share of each step's tokens taken from `replay_mix`, against forgetting.
        replay_mix: mixture of text sets for the replay.
        length: longest conversation; longer ones are left out and counted.
    """

    tasks: dict[str, TaskMix]
    items: Positive = 4000
    thinking: Share = 0.5
    lines: Share = 0.0
    replay: Share = 0.0
    replay_mix: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    length: Positive = 256


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
class Muon:
    """Muon for hidden matrices, AdamW for embeddings, biases and norms (GLM-4.5 section 2.4).

    Args:
        learning_rate: peak for the Muon group.
        adam_learning_rate: peak for the AdamW group; None takes `learning_rate`, as the RMS
            matching allows.
        momentum, steps, rms: 0.95, five Newton-Schulz steps, update RMS 0.2 (GLM-4.5 section 2.4).
        nesterov: unconfirmed for GLM-4.5; on in the cited recipe.
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
class Schedule:
    """Learning rate as a factor of the peak, by trained tokens.

    Args:
        shape: `constant`, `cosine` (GLM-4.5) or `wsd` (warm-up, stable, decay).
        warmup: tokens of linear warm-up.
        final: factor at the end.
        decay: share of the tokens that `wsd` decays over.
        decay_shape: `linear`, `sqrt` (1 - sqrt) or `cosine`.
        begin: tokens of this schedule spent in earlier stages; one cosine can span several stages.
        total: tokens of the whole schedule; None = `begin` + this stage's tokens.
    """

    shape: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup: Count = 0
    final: Share = 0.1
    decay: Share = 0.2
    decay_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    begin: Count = 0
    total: Count | None = None


@dataclass(frozen=True, slots=True, config=CONFIG)
class Batch:
    """Rows per optimizer step, and how they grow.

    Args:
        rows: rows of the global batch.
        micro: rows per forward on one rank; None = all at once. Gradients do not depend on it.
        ramp_from: rows at the start of a linear growth (GLM-4.5: 16M to 64M tokens), None = no
            growth.
        ramp_tokens: tokens over which the batch grows.
    """

    rows: Positive = 16
    micro: Positive | None = None
    ramp_from: Positive | None = None
    ramp_tokens: Count = 0

    def __post_init__(self) -> None:
        """A growth needs both ends."""
        if self.ramp_from is not None and not (self.ramp_from <= self.rows and self.ramp_tokens):
            raise ValueError(f"ramp_from {self.ramp_from} needs ramp_tokens > 0 and rows above it")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Balance:
    """Expert balance by a selection bias, plus a small sequence-level loss (GLM-4.5 section 2.4).

    Args:
        bias_rate: step of the selection bias after each optimizer step (the report: 1e-3, later 0).
        bias_until: tokens of this stage after which the bias rests; None = never.
        sequence_weight: weight of the sequence-level loss (the report: 1e-4).
    """

    bias_rate: float = 1e-3
    bias_until: Count | None = None
    sequence_weight: float = 1e-4


@dataclass(frozen=True, slots=True, config=CONFIG)
class Mtp:
    """Weight of the extra prediction loss (GLM-4.5: 0.3, then 0.1 after 15T of 23T tokens)."""

    weight: float = 0.3
    later: float = 0.1
    after: Count | None = None


@dataclass(frozen=True, slots=True, config=CONFIG)
class Grpo:
    """Group-relative clipped policy loss without a KL term (GLM-4.5 section 3.2).

    The report publishes no clip values; the defaults are our choice.

    Args:
        clip_low, clip_high: width of the ratio clip below and above 1.
        aggregate: `token` (the report's choice for code) or `sequence` mean.
        std: divide advantages by the group's standard deviation (our default; the agentic objective
            does not).
    """

    kind: Literal["grpo"] = "grpo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    aggregate: Literal["token", "sequence"] = "token"
    std: bool = True


@dataclass(frozen=True, slots=True, config=CONFIG)
class Environment:
    """One source of rewarded problems.

    Args:
        name: a task family (`rev`, `sort`, `calc`, `lookup`, `instruct`, `code`, `rg:NAME`).
        levels: weight by level.
        weight: share of prompts among the stage's environments.
        thinking: whether the prompt asks for reasoning.
        turns: model turns at most; more than one lets tools answer.
        reward: `outcome` scores the finished answer; `step` scores one turn, which must equal the
            written call exactly (GLM-4.5 section 3.4, step-wise function calling).
    """

    name: str
    levels: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: {0: 1.0})
    weight: Annotated[float, Field(gt=0)] = 1.0
    thinking: bool = False
    turns: Positive = 1
    reward: Literal["outcome", "step"] = "outcome"


@dataclass(frozen=True, slots=True, config=CONFIG)
class Rollout:
    """How answers are sampled for one update.

    Args:
        prompts: problems per update.
        per_prompt: answers per problem; at least 2, since the baseline is the group's mean.
        max_tokens: longest answer of one turn.
        temperature: of sampling, and of the log-probabilities that train.
        updates: optimizer steps taken on one set of rollouts.
        tool_seconds: a tool that answers later than this ends its own rollout with reward 0.
    """

    prompts: Positive = 48
    per_prompt: Annotated[int, Field(ge=2)] = 8
    max_tokens: Positive = 64
    temperature: Rate = 1.0
    updates: Positive = 1
    tool_seconds: Rate = 5.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Difficulty:
    """Which problems a stage trains on, by measured pass@k (GLM-4.5 section 3.2).

    Args:
        keep: `moderate` = solved sometimes (0 < pass rate < 1 over `k` samples), `hard` = pass@k =
            0 and pass@`many` > 0,
            `all` = no filter.
        k, many: the report's 8 and 512; a miniature uses fewer.
        pool: problems measured.
        least: problems the filter must leave; fewer falls back to the next easier rule, and says
            so.
    """

    keep: Literal["all", "moderate", "hard"] = "all"
    k: Positive = 8
    many: Positive = 64
    pool: Positive = 256
    least: Positive = 16


@dataclass(frozen=True, slots=True, config=CONFIG)
class Temperature:
    """Raise the sampling temperature once the reward stands still (GLM-4.5 section 3.2).

    Args:
        window: steps the slope is taken over.
        slope: reward per step below which the reward counts as stable (our choice).
        grid: temperatures tried on held-out problems.
        tolerance: the largest temperature whose accuracy is within this of the best is taken (the
            report's 1%, read as
            an absolute difference).
        problems: held-out problems per temperature.
    """

    window: Positive = 20
    slope: float = 0.002
    grid: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)
    tolerance: float = 0.01
    problems: Positive = 64


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
        turns: model turns at most.
        column: the report's column it counts for.
    """

    levels: tuple[int, ...] = (0,)
    thinking: tuple[bool, ...] = (False,)
    turns: Positive = 1
    column: Literal["agentic", "reasoning", "coding", "chat"] = "reasoning"
